/*
 * Fuzzing the layout of mapped-ram with hostile files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A target for libFuzzer; configure with CC=clang --enable-fuzzing and
 * --enable-sanitizers, and run
 *
 *     tests/unit/fuzz-mapped-ram -use_value_profile=1 [CORPUS]
 *
 * The input sets the position and the size of a RAM block and the size of the
 * file, followed by the contents of the header and the bitmap.  The header of
 * the input is its difference from the right one, so that zeroes give a header
 * that must be accepted, and any other header can still be reached.
 *
 * The checks use arithmetic that can't overflow: a layout that was accepted
 * conforms to the format, and no other layout is accepted; a refusal is
 * justified, and its error names the block.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/bswap.h"
#include "qemu/host-utils.h"
#include "qapi/error.h"
#include "migration/mapped-ram-layout.h"

/* Larger bitmaps find no more than smaller ones. */
#define BITMAP_MAX (64 * 1024)

typedef __uint128_t Wide;

typedef struct QEMU_PACKED Input {
    uint64_t header_offset;
    uint64_t length;
    uint64_t page_size;
    uint64_t file_size;
    uint8_t header[MAPPED_RAM_HEADER_SIZE];
    uint8_t bitmap[];
} Input;

/* libFuzzer's name and interface; it has no header for them. */
typedef int FuzzTarget(const uint8_t *data, size_t size);
FuzzTarget LLVMFuzzerTestOneInput;

#define CHECK(condition) do {                                               \
    if (!(condition)) {                                                     \
        fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__,          \
                #condition);                                                \
        abort();                                                            \
    }                                                                       \
} while (0)

/* Check for either @ok and no error, or an error that names the block. */
static bool check_outcome(bool ok, Error **err)
{
    CHECK(ok == !*err);
    if (*err) {
        CHECK(strstr(error_get_pretty(*err), "RAM block 'block'"));
        error_free(*err);
        *err = NULL;
    }
    return ok;
}

/* Compute the layout from the description of the format in mapped-ram.h. */
static bool expected_layout(const Input *in, MappedRamLayout *layout)
{
    uint64_t header_offset = le64_to_cpu(in->header_offset);
    uint64_t length = le64_to_cpu(in->length);
    uint64_t page_size = le64_to_cpu(in->page_size);
    Wide bitmap_size, pages;

    if (!is_power_of_2(page_size) || length % page_size ||
        length > MAPPED_RAM_MAX || header_offset > MAPPED_RAM_MAX) {
        return false;
    }
    bitmap_size = (length / page_size + 63) / 64 * 8;
    pages = (Wide)header_offset + MAPPED_RAM_HEADER_SIZE + bitmap_size;
    pages = (pages + MAPPED_RAM_PAGES_ALIGN - 1) / MAPPED_RAM_PAGES_ALIGN *
            MAPPED_RAM_PAGES_ALIGN;
    /* An accepted layout has offsets that a file can have. */
    CHECK(pages + length <= INT64_MAX);

    *layout = (MappedRamLayout) {
        .header_offset = header_offset,
        .bitmap_offset = header_offset + MAPPED_RAM_HEADER_SIZE,
        .pages_offset = pages,
        .length = length,
        .page_size = page_size,
    };
    CHECK(mapped_ram_layout_pages(layout) == length / page_size);
    CHECK(mapped_ram_layout_bitmap_size(layout) == bitmap_size);
    CHECK(mapped_ram_layout_end(layout) == pages + length);
    return true;
}

static void check_same(const MappedRamLayout *a, const MappedRamLayout *b)
{
    CHECK(a->header_offset == b->header_offset);
    CHECK(a->bitmap_offset == b->bitmap_offset);
    CHECK(a->pages_offset == b->pages_offset);
    CHECK(a->length == b->length);
    CHECK(a->page_size == b->page_size);
}

/* Decode the input's header; @right is the right layout, NULL if none is. */
static void check_decode(const Input *in, const MappedRamLayout *right)
{
    uint64_t file_size = le64_to_cpu(in->file_size);
    uint8_t right_header[MAPPED_RAM_HEADER_SIZE] = {};
    uint8_t header[MAPPED_RAM_HEADER_SIZE];
    MappedRamLayout layout;
    Error *err = NULL;
    bool deserved;

    if (right) {
        mapped_ram_header_encode(right, right_header);
    }
    for (int i = 0; i < sizeof(header); i++) {
        header[i] = in->header[i] ^ right_header[i];
    }
    deserved = right && !memcmp(header, right_header, sizeof(header)) &&
               (!file_size || mapped_ram_layout_end(right) <= file_size);
    CHECK(check_outcome(mapped_ram_header_decode(&layout, "block", header,
                            le64_to_cpu(in->header_offset),
                            le64_to_cpu(in->length),
                            le64_to_cpu(in->page_size), file_size, &err),
                        &err) == deserved);
    if (deserved) {
        check_same(&layout, right);
    }
}

/* Check the bitmap, whose last bytes are the input; the others are 0. */
static void check_bitmap(const MappedRamLayout *layout, const uint8_t *bytes,
                         size_t size)
{
    uint64_t bitmap_size = mapped_ram_layout_bitmap_size(layout);
    g_autofree unsigned long *bitmap = NULL;
    Error *err = NULL;
    bool stray = false;

    if (bitmap_size > BITMAP_MAX) {
        return;
    }
    /* Allocate not a byte more, so that an overrun is detected. */
    bitmap = g_malloc0(bitmap_size);
    size = MIN(size, bitmap_size);
    if (size) {
        memcpy((uint8_t *)bitmap + bitmap_size - size, bytes, size);
    }
    for (uint64_t bit = mapped_ram_layout_pages(layout);
         bit < bitmap_size * 8; bit++) {
        stray |= bitmap[bit / BITS_PER_LONG] >> bit % BITS_PER_LONG & 1;
    }
    CHECK(check_outcome(mapped_ram_bitmap_check(layout, "block", bitmap,
                                                &err), &err) == !stray);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    MappedRamLayout layout, right;
    Error *err = NULL;
    bool ok;
    Input in;

    if (size < sizeof(in)) {
        return 0;
    }
    memcpy(&in, data, sizeof(in));

    ok = expected_layout(&in, &right);
    CHECK(check_outcome(mapped_ram_layout_init(&layout, "block",
                                               le64_to_cpu(in.header_offset),
                                               le64_to_cpu(in.length),
                                               le64_to_cpu(in.page_size),
                                               &err), &err) == ok);
    check_decode(&in, ok ? &right : NULL);
    if (ok) {
        check_same(&layout, &right);
        check_bitmap(&layout, data + sizeof(in), size - sizeof(in));
    }
    return 0;
}
