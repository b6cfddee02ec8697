/*
 * mapped-ram: what is known of guest memory without reading it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram-memory.h.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "mapped-ram-memory.h"

#ifdef CONFIG_LINUX

/* Of an entry of /proc/self/pagemap; see admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_SWAPPED (1ULL << 62)

/* So many entries are read at once. */
#define ENTRIES 512

static bool read_pagemap(int fd, uint64_t first, size_t pages,
                         unsigned long *touched)
{
    uint64_t entries[ENTRIES];

    for (size_t done = 0; done < pages; ) {
        size_t count = MIN(pages - done, ENTRIES);
        ssize_t size = count * sizeof(entries[0]);

        if (pread(fd, entries, size, (first + done) * sizeof(entries[0])) !=
            size) {
            return false;
        }
        for (size_t i = 0; i < count; i++) {
            if (entries[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) {
                set_bit(done + i, touched);
            } else {
                clear_bit(done + i, touched);
            }
        }
        done += count;
    }
    return true;
}

bool mapped_ram_memory_touched(const void *host, size_t pages,
                               unsigned long *touched)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    bool ok;

    if (fd < 0) {
        return false;
    }
    ok = read_pagemap(fd, (uintptr_t)host / qemu_real_host_page_size(), pages,
                      touched);
    close(fd);
    return ok;
}

#else

bool mapped_ram_memory_touched(const void *host, size_t pages,
                               unsigned long *touched)
{
    return false;
}

#endif
