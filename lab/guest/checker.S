/*
 * A guest that checks its own memory.
 *
 * It is the firmware itself (-bios), so that it needs no other file, runs at
 * once, and is the same on every QEMU.  It fills the RAM above 2 MiB with
 * pages whose contents follow from page number and generation, then forever
 * rewrites some of them, compares others with what they should be, and tells
 * on the first serial port what it finds:
 *
 *      ready PAGES        the memory is filled
 *      tick N             N rounds are done; a round is a number of pages
 *                         rewritten and a number of pages checked
 *      sweep N            all pages have been checked N times
 *      BAD page P gen G want W got X
 *                         page P is not what it should be; the guest stops
 *
 * All numbers are hexadecimal with 8 digits.
 *
 * The counters live in the debug registers, and functions return through
 * %esp, so that it is known what is written how often: one page, HOT, all the
 * time, the others now and then.  A save that misses the last writes to HOT is
 * noticed, because it has to agree with a register.
 *
 * Copyright contributors of the direct-io series
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

        .set    COM1, 0x3f8
        .set    GENS, 0x100000          /* generation of each page, u8 */
        .set    FIRST, 0x200            /* number of the first page we use */
        .set    HOT, 0x5000             /* ticks; number of a page */
        .set    SECOND, 0x7000          /* code of the second CPU */
        .set    APIC_COMMAND, 0xfee00300

/* dr0: ticks; dr1: sweeps; dr2: next page to check; dr3: random number.
   %ebp: number of the first page behind the last */

        .macro  CALL function
        movl    $.Lback\@, %esp
        jmp     \function
.Lback\@:
        .endm

        .macro  RETURN
        jmp     *%esp
        .endm

        /* sends %al; changes %ah, %dx */
        .macro  PUTC
        movb    %al, %ah
        movw    $COM1 + 5, %dx
.Lwait\@: inb    %dx, %al
        testb   $0x20, %al
        jz      .Lwait\@
        movb    %ah, %al
        movw    $COM1, %dx
        outb    %al, %dx
        .endm

        /* sends text and the number in a register, and ends the line or not */
        .macro  TELL text, number
        movl    $\text, %esi
        movl    \number, %edi
        CALL    tell
        .endm

        .macro  NEWLINE
        movb    $10, %al
        PUTC
        .endm

/*
 * What page %ebx contains in its generation: the first word in %eax, the
 * difference from word to word in %edx.  Generation 0 and every eighth one
 * are zero pages, so that pages become zero and cease to be zero.
 */
        .macro  PAGE_CONTENTS
        movzbl  GENS(%ebx), %ecx
        xorl    %eax, %eax
        xorl    %edx, %edx
        testl   $7, %ecx
        jz      .Lzero\@
        imull   $0x9e3779b1, %ebx, %eax
        imull   $0x85ebca6b, %ecx, %edx
        xorl    %edx, %eax
        leal    (%eax, %ebx, 2), %edx
        orl     $1, %edx
.Lzero\@:
        .endm

        .text
        .code16
        .globl  _start

/* What the test harness may change in the image; it looks for the magic. */
_start:
        .ascii  "QDIOGST1"
c_dirty:                                /* pages to rewrite in a round */
        .long   0
c_check:                                /* pages to check in a round */
        .long   256
c_pause:                                /* idle loops at a round's end */
        .long   0
c_pages:                                /* pages to use, at most */
        .long   0x7fffffff
c_second:                               /* what the other CPUs do */
        .long   0

real_mode:
        cli
        cld
        lgdtl   %cs:gdt_pointer - _start
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $8, $protected_mode

        .code32
protected_mode:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss

        /* 115200 baud, 8 bits, no parity, no interrupts */
        movw    $COM1 + 1, %dx
        xorb    %al, %al
        outb    %al, %dx
        movw    $COM1 + 3, %dx
        movb    $0x80, %al
        outb    %al, %dx
        movw    $COM1, %dx
        movb    $1, %al
        outb    %al, %dx
        movw    $COM1 + 1, %dx
        xorb    %al, %al
        outb    %al, %dx
        movw    $COM1 + 3, %dx
        movb    $3, %al
        outb    %al, %dx

        /* CMOS 0x34, 0x35: RAM above 16 MiB, in units of 64 KiB */
        movb    $0x35, %al
        outb    %al, $0x70
        inb     $0x71, %al
        movzbl  %al, %ebx
        shll    $8, %ebx
        movb    $0x34, %al
        outb    %al, $0x70
        inb     $0x71, %al
        movb    %al, %bl
        shll    $4, %ebx
        addl    $0x1000, %ebx
        movl    %ebx, %ebp
        subl    $FIRST, %ebx
        cmpl    c_pages, %ebx
        jbe     1f
        movl    c_pages, %ebp
        addl    $FIRST, %ebp
1:

        xorl    %eax, %eax
        movl    %eax, %dr0
        movl    %eax, %dr1
        movl    %eax, HOT
        movl    $FIRST, %eax
        movl    %eax, %dr2
        movl    $0x2545f491, %eax
        movl    %eax, %dr3

        /* the first contents of all pages */
        movl    $FIRST, %ebx
1:      CALL    first_generation
        movb    %al, GENS(%ebx)
        CALL    write_page
        incl    %ebx
        cmpl    %ebp, %ebx
        jb      1b
        leal    -FIRST(%ebp), %eax
        TELL    s_ready, %eax
        NEWLINE

        /*
         * The second CPU increments a word that is not aligned, now and then.
         * To emulate that, TCG stops all other CPUs.
         */
        cmpl    $1, c_second
        jb      main_loop
        ja      1f
        movl    $0x0106fff0, SECOND     /* 1: lock incw 0xe01 */
        movl    $0x1000b90e, SECOND + 4 /* movw $0x1000, %cx */
        movl    $0xf4ebfee2, SECOND + 8 /* 2: loop 2b; jmp 1b */
        jmp     2f

        /* All other CPUs wait for COM1's scratch register to be at least 1. */
1:      movl    $0xec03ffba, SECOND     /* movw $0x3ff, %dx; 1: inb %dx, %al */
        movl    $0xfb72013c, SECOND + 4 /* cmpb $1, %al; jb 1b */
        movl    $0x000000ea, SECOND + 8 /* ljmp $0x9000, $0 */
        movl    $0x00000090, SECOND + 12
2:      movl    $0xc4600 | SECOND >> 12, APIC_COMMAND

main_loop:
        movl    c_dirty, %esi
        testl   %esi, %esi
        jz      2f
1:      CALL    dirty_one
        decl    %esi
        jnz     1b

2:      movl    c_check, %esi
        movl    %dr2, %ebx
3:      movl    %ebx, HOT + 4
        CALL    check_page
        incl    %ebx
        cmpl    %ebp, %ebx
        jb      4f
        movl    %dr1, %eax
        incl    %eax
        movl    %eax, %dr1
        movl    %esi, %ebx
        TELL    s_sweep, %eax
        NEWLINE
        movl    %ebx, %esi
        movl    $FIRST, %ebx
4:      decl    %esi
        jnz     3b
        movl    %ebx, %dr2

        movl    %dr0, %eax
        cmpl    %eax, HOT
        jne     bad_hot
        incl    %eax
        movl    %eax, %dr0
        movl    %eax, HOT
        TELL    s_tick, %eax
        NEWLINE

        movl    c_pause, %ecx
        testl   %ecx, %ecx
        jz      main_loop
5:      pause
        decl    %ecx
        jnz     5b
        jmp     main_loop

/*
 * The first generation of page %ebx, in %eax: 0 (a zero page) or 1.  In turn
 * 4 MiB full, 4 MiB with every other page zero, 4 MiB with every other 64 KiB
 * zero, and 4 MiB where only one page in 64 is not zero.
 */
first_generation:
        movl    %ebx, %eax
        shrl    $10, %eax
        andl    $3, %eax
        jz      2f
        decl    %eax
        jz      1f
        decl    %eax
        jnz     3f
        testl   $16, %ebx
        jnz     2f
        RETURN
1:      testl   $1, %ebx
        jnz     2f
        RETURN
3:      xorl    %eax, %eax
        movl    %ebx, %edx
        andl    $63, %edx
        cmpl    $17, %edx
        jne     4f
2:      movl    $1, %eax
4:      RETURN

write_page:
        PAGE_CONTENTS
        movl    %ebx, %edi
        shll    $12, %edi
        movl    $1024, %ecx
1:      movl    %eax, (%edi)
        addl    %edx, %eax
        addl    $4, %edi
        decl    %ecx
        jnz     1b
        RETURN

check_page:
        PAGE_CONTENTS
        movl    %ebx, %edi
        shll    $12, %edi
        movl    $1024, %ecx
1:      cmpl    %eax, (%edi)
        jne     bad_page
        addl    %edx, %eax
        addl    $4, %edi
        decl    %ecx
        jnz     1b
        RETURN

/* Gives a page chosen at random, one of a quarter of all, its next contents. */
dirty_one:
        movl    %dr3, %eax
        imull   $1664525, %eax, %eax
        addl    $1013904223, %eax
        movl    %eax, %dr3
        shrl    $4, %eax
        xorl    %edx, %edx
        leal    -FIRST(%ebp), %ecx
        shrl    $2, %ecx
        divl    %ecx
        leal    FIRST(, %edx, 4), %ebx
        incb    GENS(%ebx)
        jmp     write_page

bad_hot:
        movl    $HOT, %edi
        movl    $HOT >> 12, %ebx

/* Page %ebx at %edi is not %eax: the counters are not needed any more. */
bad_page:
        movl    %eax, %dr0
        movl    (%edi), %eax
        movl    %eax, %dr1
        TELL    s_bad, %ebx
        movzbl  GENS(%ebx), %eax
        TELL    s_gen, %eax
        movl    %dr0, %eax
        TELL    s_want, %eax
        movl    %dr1, %eax
        TELL    s_got, %eax
        NEWLINE
1:      hlt
        jmp     1b

/* Sends the text at %esi and the number %edi; changes %eax, %ecx, %edx, %esi,
   %edi. */
tell:
        lodsb
        testb   %al, %al
        jz      1f
        PUTC
        jmp     tell
1:      movl    $8, %ecx
2:      roll    $4, %edi
        movl    %edi, %eax
        andl    $15, %eax
        movb    digits(%eax), %al
        PUTC
        decl    %ecx
        jnz     2b
        RETURN

s_ready:        .asciz  "ready "
s_tick:         .asciz  "tick "
s_sweep:        .asciz  "sweep "
s_bad:          .asciz  "BAD page "
s_gen:          .asciz  " gen "
s_want:         .asciz  " want "
s_got:          .asciz  " got "
digits:         .ascii  "0123456789abcdef"

        .balign 8
gdt:
        .quad   0
        /* marked as accessed: they are in ROM */
        .quad   0x00cf9b000000ffff      /* code, flat */
        .quad   0x00cf93000000ffff      /* data, flat */
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt

        /* where a reset begins: 16 bytes before the end */
        .org    0xfff0
        .code16
        ljmpw   $0xf000, $real_mode - _start
        .org    0x10000
