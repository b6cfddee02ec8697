/*
 * A guest that checks its own memory, for the machine virt of aarch64.
 *
 * It is the firmware itself (-bios).  In each round it gives PAGES pages of RAM
 * new contents, after a look at whether they still have the last ones, and
 * prints on the serial port, with hexadecimal numbers of 8 digits:
 *
 *      tick N             N times 256 pages are done
 *      sweep N            N rounds are done
 *      BAD page P         page P is not as it was left; the guest stops
 *
 * The contents follow from the page and the round, which is in a register.
 *
 * Copyright contributors of the direct-io series
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

        .equ    UART, 0x09000000
        .equ    FIRST, 0x40200000       /* address of the first page */
        .equ    PAGES, 2048

/* x20: UART; x21: round; x22: page; x23: its address; x24: ticks */

        .text
        .globl  _start
_start: ldr     x20, =UART
        mov     x21, #0
        mov     x24, #0

round:  mov     x22, #0
        ldr     x23, =FIRST
page:   cbz     x21, 1f
        mov     x0, x21
        bl      contents
        ldr     x2, [x23]
        cmp     x1, x2
        b.ne    bad
        ldr     x2, [x23, #4088]
        cmp     x1, x2
        b.ne    bad
1:      add     x0, x21, #1
        bl      contents
        str     x1, [x23]
        str     x1, [x23, #4088]
        add     x22, x22, #1
        add     x23, x23, #4096
        tst     x22, #255
        b.ne    2f
        add     x24, x24, #1
        adr     x0, s_tick
        mov     x1, x24
        bl      tell
2:      cmp     x22, #PAGES
        b.ne    page
        add     x21, x21, #1
        adr     x0, s_sweep
        mov     x1, x21
        bl      tell
        b       round

bad:    adr     x0, s_bad
        mov     x1, x22
        bl      tell
3:      wfi
        b       3b

/* What page x22 holds after round x0: in x1 */
contents:
        ldr     x1, =0x9e3779b97f4a7c15
        madd    x1, x1, x22, x0
        ret

/* Sends the text at x0, the number x1, and the end of the line. */
tell:   ldrb    w2, [x0], #1
        cbz     w2, 4f
        str     w2, [x20]
        b       tell
4:      mov     x3, #8
5:      ror     w1, w1, #28
        and     w2, w1, #15
        add     w2, w2, #'0'
        cmp     w2, #'9'
        b.ls    6f
        add     w2, w2, #'a' - '0' - 10
6:      str     w2, [x20]
        sub     x3, x3, #1
        cbnz    x3, 5b
        mov     w2, #10
        str     w2, [x20]
        ret

s_tick: .asciz  "tick "
s_sweep: .asciz "sweep "
s_bad:  .asciz  "BAD page "
