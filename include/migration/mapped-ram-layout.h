/*
 * mapped-ram: the layout of guest RAM in a migration file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * With the mapped-ram capability every page of guest RAM has a fixed offset
 * in the migration file.  In the RAM setup section of the stream, the name and
 * the length of each RAM block are followed by a header of
 * MAPPED_RAM_HEADER_SIZE bytes, then by the block's bitmap, and then, from the
 * next multiple of MAPPED_RAM_PAGES_ALIGN on, by the pages:
 *
 *   ... name, length | header | bitmap | (unused) | pages | next block ...
 *                    ^        ^                   ^       ^
 *                    |        bitmap_offset       |       end
 *                    header_offset                pages_offset
 *
 * The stream continues at the end of the pages.  All offsets count from byte 0
 * of the file, even if the migration itself starts at a later offset.
 *
 * A set bit in the bitmap means that the page is in the file.  A clear bit
 * means that the page is zero, whatever the file contains at its offset.
 *
 * The functions here are arithmetic on buffers.  They do no I/O, keep no state
 * and take no lock, so each may be called from any thread.
 *
 * Source: format version 1 of QEMU's mapped-ram, as written by every QEMU since
 * 9.0 (docs/devel/migration/mapped-ram.rst there).
 */

#ifndef MIGRATION_MAPPED_RAM_LAYOUT_H
#define MIGRATION_MAPPED_RAM_LAYOUT_H

#include "qemu/units.h"

/* The only version of the header that exists. */
#define MAPPED_RAM_VERSION 1

/*
 * Size of the header in the file, in bytes.  All fields are big-endian and
 * there is no padding: version (32 bits), page size, bitmap offset, pages
 * offset (64 bits each).
 */
#define MAPPED_RAM_HEADER_SIZE 28

/*
 * The pages of a block start at a multiple of this many bytes, which is more
 * than any block device requires for O_DIRECT.
 */
#define MAPPED_RAM_PAGES_ALIGN (1 * MiB)

/*
 * The largest length of a block and the largest offset of a header, in bytes.
 * This is far above what any guest needs, and keeps sums of offsets and lengths
 * from overflowing.
 */
#define MAPPED_RAM_MAX (1ULL << 60)

/**
 * MappedRamLayout:
 * @header_offset: file offset of the header
 * @bitmap_offset: file offset of the bitmap; always right behind the header
 * @pages_offset: file offset of the first page; a multiple of
 *                MAPPED_RAM_PAGES_ALIGN
 * @length: length of the RAM block; a multiple of @page_size
 * @page_size: size of the pages that the bits stand for; a power of two
 *
 * The layout of one RAM block in a migration file.  All in bytes.
 */
typedef struct MappedRamLayout {
    uint64_t header_offset;
    uint64_t bitmap_offset;
    uint64_t pages_offset;
    uint64_t length;
    uint64_t page_size;
} MappedRamLayout;

/**
 * mapped_ram_layout_init:
 * @layout: the layout to fill in
 * @block: name of the RAM block, for messages
 * @header_offset: file offset of the header
 * @length: length of the RAM block in bytes
 * @page_size: page size of the target in bytes
 * @errp: pointer to a NULL-initialized error object
 *
 * Lays out one RAM block for writing.
 *
 * Returns: true, or false with @errp set when @length is not a multiple of
 *          @page_size, @page_size is not a power of two, or a size is beyond
 *          MAPPED_RAM_MAX.
 */
bool mapped_ram_layout_init(MappedRamLayout *layout, const char *block,
                            uint64_t header_offset, uint64_t length,
                            uint64_t page_size, Error **errp);

/**
 * mapped_ram_layout_pages:
 * @layout: a valid layout
 *
 * Returns: the number of pages in the block, and of bits in its bitmap.
 */
static inline uint64_t mapped_ram_layout_pages(const MappedRamLayout *layout)
{
    return layout->length / layout->page_size;
}

/**
 * mapped_ram_layout_bitmap_size:
 * @layout: a valid layout
 *
 * Returns: the size of the bitmap in bytes, in memory and in the file: whole
 *          words of the host's unsigned long, in the host's byte order.
 */
uint64_t mapped_ram_layout_bitmap_size(const MappedRamLayout *layout);

/**
 * mapped_ram_layout_end:
 * @layout: a valid layout
 *
 * Returns: the offset of the first byte behind the block's pages, where the
 *          stream continues.
 */
static inline uint64_t mapped_ram_layout_end(const MappedRamLayout *layout)
{
    return layout->pages_offset + layout->length;
}

/**
 * mapped_ram_header_encode:
 * @layout: a valid layout
 * @buf: where to put the header
 *
 * Encodes the header in its file format.
 */
void mapped_ram_header_encode(const MappedRamLayout *layout,
                              uint8_t buf[MAPPED_RAM_HEADER_SIZE]);

/**
 * mapped_ram_header_encode_left_out:
 * @page_size: bytes of a page
 * @buf: where to put the header
 *
 * Encodes the header of a RAM block whose RAM is not in the file, because the
 * capability x-ignore-shared leaves it in its shared memory: both offsets are
 * 0, and the stream continues right behind the header.
 */
void mapped_ram_header_encode_left_out(uint64_t page_size,
                                       uint8_t buf[MAPPED_RAM_HEADER_SIZE]);

/**
 * mapped_ram_header_left_out:
 * @buf: the header
 * @page_size: bytes of a page
 *
 * Returns: whether this is the header of a RAM block that is not in the file
 */
bool mapped_ram_header_left_out(const uint8_t buf[MAPPED_RAM_HEADER_SIZE],
                                uint64_t page_size);

/**
 * mapped_ram_header_decode:
 * @layout: the layout to fill in
 * @block: name of the RAM block, for messages
 * @buf: the header as read from the file; not trusted
 * @header_offset: the file offset from which it was read
 * @length: length of this QEMU's RAM block in bytes; trusted
 * @page_size: page size of this QEMU's target in bytes; trusted
 * @file_size: size of the file in bytes, or 0 to skip the check against it
 * @errp: pointer to a NULL-initialized error object
 *
 * Decodes the header and checks each field.  Version 1 leaves the writer no
 * choice in any of them, so if a field differs from what
 * mapped_ram_layout_init() computes, the file is damaged and is refused:
 * otherwise wrong pages would end up in the guest.
 *
 * Returns: true with @layout filled in, or false with @errp set to an error
 *          that names the block, the field, its offset in the file, its value
 *          and the expected value.
 */
bool mapped_ram_header_decode(MappedRamLayout *layout, const char *block,
                              const uint8_t buf[MAPPED_RAM_HEADER_SIZE],
                              uint64_t header_offset, uint64_t length,
                              uint64_t page_size, uint64_t file_size,
                              Error **errp);

/**
 * mapped_ram_bitmap_check:
 * @layout: a valid layout
 * @block: name of the RAM block, for messages
 * @bitmap: the bitmap as read from the file, of
 *          mapped_ram_layout_bitmap_size() bytes; not trusted
 * @errp: pointer to a NULL-initialized error object
 *
 * Checks that no bit is set for a page behind the end of the block.
 *
 * Returns: true, or false with @errp set.
 */
bool mapped_ram_bitmap_check(const MappedRamLayout *layout, const char *block,
                             const unsigned long *bitmap, Error **errp);

#endif /* MIGRATION_MAPPED_RAM_LAYOUT_H */
