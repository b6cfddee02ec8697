/*
 * mapped-ram: the layout of guest RAM in a migration file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Pure functions: encode, decode, validate.  The format is described in
 * include/migration/mapped-ram-layout.h.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/bswap.h"
#include "qemu/host-utils.h"
#include "qapi/error.h"
#include "migration/mapped-ram-layout.h"

/* Offsets of the fields in the header. */
enum {
    FIELD_VERSION = 0,
    FIELD_PAGE_SIZE = 4,
    FIELD_BITMAP_OFFSET = 12,
    FIELD_PAGES_OFFSET = 20,
    HEADER_END = 28,
};
QEMU_BUILD_BUG_ON(HEADER_END != MAPPED_RAM_HEADER_SIZE);

uint64_t mapped_ram_layout_bitmap_size(const MappedRamLayout *layout)
{
    return BITS_TO_LONGS(mapped_ram_layout_pages(layout)) *
           sizeof(unsigned long);
}

bool mapped_ram_layout_init(MappedRamLayout *layout, const char *block,
                            uint64_t header_offset, uint64_t length,
                            uint64_t page_size, Error **errp)
{
    if (!is_power_of_2(page_size) || !QEMU_IS_ALIGNED(length, page_size)) {
        error_setg(errp, "RAM block '%s': length %" PRIu64 " is not a whole "
                   "number of pages of %" PRIu64 " bytes",
                   block, length, page_size);
        return false;
    }
    if (length > MAPPED_RAM_MAX || header_offset > MAPPED_RAM_MAX) {
        error_setg(errp, "RAM block '%s': length %" PRIu64 " at file offset %"
                   PRIu64 " is too large for mapped-ram",
                   block, length, header_offset);
        return false;
    }

    layout->header_offset = header_offset;
    layout->bitmap_offset = header_offset + MAPPED_RAM_HEADER_SIZE;
    layout->length = length;
    layout->page_size = page_size;
    layout->pages_offset = ROUND_UP(layout->bitmap_offset +
                                    mapped_ram_layout_bitmap_size(layout),
                                    MAPPED_RAM_PAGES_ALIGN);
    return true;
}

void mapped_ram_header_encode(const MappedRamLayout *layout,
                              uint8_t buf[MAPPED_RAM_HEADER_SIZE])
{
    stl_be_p(buf + FIELD_VERSION, MAPPED_RAM_VERSION);
    stq_be_p(buf + FIELD_PAGE_SIZE, layout->page_size);
    stq_be_p(buf + FIELD_BITMAP_OFFSET, layout->bitmap_offset);
    stq_be_p(buf + FIELD_PAGES_OFFSET, layout->pages_offset);
}

void mapped_ram_header_encode_left_out(uint64_t page_size,
                                       uint8_t buf[MAPPED_RAM_HEADER_SIZE])
{
    MappedRamLayout layout = { .page_size = page_size };

    mapped_ram_header_encode(&layout, buf);
}

bool mapped_ram_header_left_out(const uint8_t buf[MAPPED_RAM_HEADER_SIZE],
                                uint64_t page_size)
{
    return ldl_be_p(buf + FIELD_VERSION) == MAPPED_RAM_VERSION &&
           ldq_be_p(buf + FIELD_PAGE_SIZE) == page_size &&
           !ldq_be_p(buf + FIELD_BITMAP_OFFSET) &&
           !ldq_be_p(buf + FIELD_PAGES_OFFSET);
}

/* Sets @errp unless the 64-bit field at @field holds @expected. */
static bool check_field(const char *block, const char *name,
                        const uint8_t *buf, unsigned field,
                        uint64_t header_offset, uint64_t expected,
                        Error **errp)
{
    uint64_t value = ldq_be_p(buf + field);

    if (value == expected) {
        return true;
    }
    error_setg(errp, "RAM block '%s': the mapped-ram header at file offset %"
               PRIu64 " has %s %" PRIu64 " instead of %" PRIu64 ": "
               "the file is damaged or from another machine type",
               block, header_offset, name, value, expected);
    return false;
}

bool mapped_ram_header_decode(MappedRamLayout *layout, const char *block,
                              const uint8_t buf[MAPPED_RAM_HEADER_SIZE],
                              uint64_t header_offset, uint64_t length,
                              uint64_t page_size, uint64_t file_size,
                              Error **errp)
{
    uint32_t version = ldl_be_p(buf + FIELD_VERSION);

    if (version != MAPPED_RAM_VERSION) {
        error_setg(errp, "RAM block '%s': the mapped-ram header at file "
                   "offset %" PRIu64 " has version %" PRIu32 ", and this QEMU "
                   "knows version %d only: the file is damaged or from a "
                   "newer QEMU",
                   block, header_offset, version, MAPPED_RAM_VERSION);
        return false;
    }
    if (!mapped_ram_layout_init(layout, block, header_offset, length,
                                page_size, errp) ||
        !check_field(block, "page size", buf, FIELD_PAGE_SIZE,
                     header_offset, layout->page_size, errp) ||
        !check_field(block, "bitmap offset", buf, FIELD_BITMAP_OFFSET,
                     header_offset, layout->bitmap_offset, errp) ||
        !check_field(block, "pages offset", buf, FIELD_PAGES_OFFSET,
                     header_offset, layout->pages_offset, errp)) {
        return false;
    }
    if (file_size && mapped_ram_layout_end(layout) > file_size) {
        error_setg(errp, "RAM block '%s': its pages end at file offset %"
                   PRIu64 ", but the file ends at %" PRIu64 ": it is "
                   "truncated, or was never completely written",
                   block, mapped_ram_layout_end(layout), file_size);
        return false;
    }
    return true;
}

bool mapped_ram_bitmap_check(const MappedRamLayout *layout, const char *block,
                             const unsigned long *bitmap, Error **errp)
{
    uint64_t pages = mapped_ram_layout_pages(layout);
    uint64_t bits = mapped_ram_layout_bitmap_size(layout) * BITS_PER_BYTE;
    uint64_t stray = find_next_bit(bitmap, bits, pages);

    if (stray < bits) {
        error_setg(errp, "RAM block '%s': the mapped-ram bitmap at file "
                   "offset %" PRIu64 " has page %" PRIu64 ", but the block "
                   "has only %" PRIu64 " pages: the file is damaged",
                   block, layout->bitmap_offset, stray, pages);
        return false;
    }
    return true;
}
