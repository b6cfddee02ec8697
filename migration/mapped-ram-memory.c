/*
 * mapped-ram: what is known of guest memory without reading it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram-memory.h.
 */

#include "qemu/osdep.h"
#include "migration/mapped-ram-memory.h"
#include "qemu/bitmap.h"

MappedRamBacking mapped_ram_memory_backing(int fd, uint64_t fd_offset,
                                           bool is_private)
{
    MappedRamBacking backing = {
        .fd = fd,
        .fd_offset = fd_offset,
        .is_private = is_private,
    };
#ifndef _WIN32
    struct stat st;

    backing.fd_is_empty = fd >= 0 && fstat(fd, &st) == 0 &&
                          S_ISREG(st.st_mode) && !st.st_blocks;
#endif
    return backing;
}

#ifdef CONFIG_LINUX
#include <sys/mman.h>

/* Of an entry of /proc/self/pagemap; see admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_SWAPPED (1ULL << 62)

/* So many entries are read at once. */
#define ENTRIES 512

int mapped_ram_memory_open_map(void)
{
    return open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
}

/* Clears the pages in @untouched that the process has in its page tables. */
static bool clear_mapped(int map, uint64_t first, uint64_t pages,
                         unsigned long *untouched)
{
    uint64_t entries[ENTRIES];

    for (uint64_t done = 0; done < pages; ) {
        size_t count = MIN(pages - done, ENTRIES);
        ssize_t size = count * sizeof(entries[0]);

        if (pread(map, entries, size, (first + done) * sizeof(entries[0])) !=
            size) {
            return false;
        }
        for (size_t i = 0; i < count; i++) {
            if (entries[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) {
                clear_bit(done + i, untouched);
            }
        }
        done += count;
    }
    return true;
}

/* Clears the pages in @untouched that the file has data for. */
static bool clear_data(const MappedRamBacking *backing, uint64_t first,
                       uint64_t pages, unsigned long *untouched)
{
    uint64_t size = qemu_real_host_page_size();
    off_t start = backing->fd_offset + first * size;
    off_t end = start + pages * size;

    if (backing->fd_is_empty) {
        return true;
    }
    for (off_t hole, data = start; data < end; data = hole) {
        uint64_t from, to;

        data = lseek(backing->fd, data, SEEK_DATA);
        if (data < 0) {
            /* No data from there on, or the file can't tell. */
            return errno == ENXIO;
        }
        if (data >= end) {
            return true;
        }
        hole = lseek(backing->fd, data, SEEK_HOLE);
        if (hole < 0) {
            return false;
        }
        from = (data - start) / size;
        to = DIV_ROUND_UP(MIN(hole, end) - start, size);
        bitmap_clear(untouched, from, to - from);
    }
    return true;
}

void mapped_ram_memory_untouched(int map, const MappedRamBacking *backing,
                                 const uint8_t *base, uint64_t first,
                                 uint64_t pages, unsigned long *untouched)
{
    uint64_t page = (uintptr_t)base / qemu_real_host_page_size() + first;

    bitmap_fill(untouched, pages);
    /* In a shared mapping pages of the file need not be mapped here. */
    if ((backing->is_private && !clear_mapped(map, page, pages, untouched)) ||
        (backing->fd >= 0 && !clear_data(backing, first, pages, untouched)) ||
        (backing->fd < 0 && !backing->is_private)) {
        bitmap_zero(untouched, pages);
    }
}

#else

int mapped_ram_memory_open_map(void)
{
    return -1;
}

void mapped_ram_memory_untouched(int map, const MappedRamBacking *backing,
                                 const uint8_t *base, uint64_t first,
                                 uint64_t pages, unsigned long *untouched)
{
    bitmap_zero(untouched, pages);
}

#endif
