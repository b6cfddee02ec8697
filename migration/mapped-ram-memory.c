/*
 * mapped-ram: finding untouched guest memory without reading it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram-memory.h.
 */

#include "qemu/osdep.h"
#include "migration/mapped-ram-memory.h"
#include "qemu/bitmap.h"
#include "qemu/direct-io.h"

#ifdef CONFIG_LINUX
static bool has_blocks(int fd)
{
    struct stat st;

    return fstat(fd, &st) < 0 || st.st_blocks;
}
#else
static bool has_blocks(int fd)
{
    return true;
}
#endif

static void find_file_system(MappedRamBacking *backing, bool loading)
{
    g_autofree char *fs = NULL;
    struct stat st;

    /* Nodes of devices are on a tmpfs, too, which knows no holes of devices. */
    if (fstat(backing->fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        return;
    }
    fs = direct_io_fs_name(backing->fd);
    backing->fd_has_holes = g_str_equal(fs, "tmpfs");
    backing->fd_is_empty = g_str_equal(fs, "hugetlbfs") && loading &&
                           !has_blocks(backing->fd);
}

MappedRamBacking mapped_ram_memory_backing(int fd, uint64_t fd_offset,
                                           bool is_private, bool loading)
{
    MappedRamBacking backing = {
        .fd = fd,
        .fd_offset = fd_offset,
        .is_private = is_private,
    };

    if (fd >= 0) {
        find_file_system(&backing, loading);
    }
    return backing;
}

void mapped_ram_memory_close(MappedRamMemory *m)
{
    if (m->map >= 0) {
        close(m->map);
    }
}

#ifdef CONFIG_LINUX

/* Bits of an entry of /proc/self/pagemap; see admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_SWAPPED (1ULL << 62)

/* How many entries to read at once */
#define ENTRIES 512

void mapped_ram_memory_open(MappedRamMemory *m)
{
    *m = (MappedRamMemory) {
        .map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
        .fd = -1,
    };
}

/* Clears the pages in @untouched that are in the process's page tables. */
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

/*
 * Finds the first data of the file at or behind @start, up to the next hole.
 * Keeps the last result, because the kernel has to walk all of the data to find
 * its end.  Returns false if there is none; if @errno is not ENXIO, the file
 * system can't tell.
 */
static bool next_data(MappedRamMemory *m, int fd, off_t start)
{
    if (m->fd == fd && m->data <= start && start < m->hole) {
        return true;
    }
    m->fd = -1;
    m->data = lseek(fd, start, SEEK_DATA);
    if (m->data < 0) {
        return false;
    }
    m->hole = lseek(fd, m->data, SEEK_HOLE);
    if (m->hole <= start) {
        errno = EINVAL;
        return false;
    }
    m->fd = fd;
    return true;
}

/* Clears the pages in @untouched that the file has data for. */
static bool clear_data(MappedRamMemory *m, const MappedRamBacking *backing,
                       uint64_t first, uint64_t pages,
                       unsigned long *untouched)
{
    uint64_t size = qemu_real_host_page_size();
    off_t start = backing->fd_offset + first * size;
    off_t end = start + pages * size;

    if (backing->fd_is_empty) {
        return true;
    }
    if (!backing->fd_has_holes) {
        return false;
    }
    for (off_t at = start; at < end; at = m->hole) {
        off_t data;

        if (!next_data(m, backing->fd, at)) {
            return errno == ENXIO;
        }
        data = MAX(m->data, at);
        if (data >= end) {
            return true;
        }
        bitmap_clear(untouched, (data - start) / size,
                     DIV_ROUND_UP(MIN(m->hole, end) - start, size) -
                     (data - start) / size);
    }
    return true;
}

bool mapped_ram_memory_untouched(MappedRamMemory *m,
                                 const MappedRamBacking *backing,
                                 const uint8_t *base, uint64_t first,
                                 uint64_t pages, unsigned long *untouched)
{
    uint64_t page = (uintptr_t)base / qemu_real_host_page_size() + first;

    bitmap_fill(untouched, pages);
    /* Pages of the file need not be mapped here if the mapping is shared. */
    if ((backing->is_private &&
         !clear_mapped(m->map, page, pages, untouched)) ||
        (backing->fd >= 0 &&
         !clear_data(m, backing, first, pages, untouched)) ||
        (backing->fd < 0 && !backing->is_private)) {
        bitmap_zero(untouched, pages);
        return false;
    }
    return true;
}

#else

void mapped_ram_memory_open(MappedRamMemory *m)
{
    *m = (MappedRamMemory) { .map = -1, .fd = -1 };
}

bool mapped_ram_memory_untouched(MappedRamMemory *m,
                                 const MappedRamBacking *backing,
                                 const uint8_t *base, uint64_t first,
                                 uint64_t pages, unsigned long *untouched)
{
    bitmap_zero(untouched, pages);
    return false;
}

#endif
