/*
 * mapped-ram: what is known of guest memory without reading it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MAPPED_RAM_MEMORY_H
#define MIGRATION_MAPPED_RAM_MEMORY_H

/**
 * MappedRamBacking:
 * @fd: the file behind the memory, or -1 for anonymous memory
 * @fd_offset: the offset in @fd of the first byte of memory
 * @is_private: whether the mapping is private, so that pages may differ from
 *              the file's
 * @fd_has_holes: whether the file's holes are known at any time, those of
 *                pages included that are dirty in memory only
 * @fd_is_empty: whether the file has no data at all but what the caller puts
 *               there
 *
 * What is behind the memory of a RAM block.
 */
typedef struct MappedRamBacking {
    int fd;
    uint64_t fd_offset;
    bool is_private;
    bool fd_has_holes;
    bool fd_is_empty;
} MappedRamBacking;

/**
 * mapped_ram_memory_backing:
 * @fd: the file behind the memory, or -1
 * @fd_offset: the offset in @fd of the first byte of memory
 * @is_private: whether the mapping is private
 * @loading: whether only the caller writes to the memory from now on
 *
 * Of file systems, only tmpfs and memfd are trusted to know their holes: others
 * may not know of pages that are dirty in memory.  hugetlbfs reports no holes,
 * but when a load begins its file may be known to be empty.  Any thread.
 *
 * Returns: the backing
 */
MappedRamBacking mapped_ram_memory_backing(int fd, uint64_t fd_offset,
                                           bool is_private, bool loading);

/**
 * MappedRamMemory:
 *
 * One thread's view of memory: the descriptor of the kernel's page map, or -1,
 * and where a file is known to have had data.  For one thread at a time.
 */
typedef struct MappedRamMemory {
    int map;
    int fd;
    off_t data, hole;
} MappedRamMemory;

/**
 * mapped_ram_memory_open:
 * @m: filled in, to be passed to mapped_ram_memory_close()
 *
 * Opens what the kernel tells of this process's page tables
 * (/proc/self/pagemap).  If it does not tell, no private memory is known to be
 * untouched.
 */
void mapped_ram_memory_open(MappedRamMemory *m);

/**
 * mapped_ram_memory_close:
 * @m: from mapped_ram_memory_open()
 */
void mapped_ram_memory_close(MappedRamMemory *m);

/**
 * mapped_ram_memory_untouched:
 * @m: from mapped_ram_memory_open()
 * @backing: what is behind the memory
 * @base: start of the memory of the RAM block
 * @first: first page of the range
 * @pages: number of pages in the range
 * @untouched: set for each page that is zero because nobody has touched it
 *
 * Asks the kernel which pages have no memory behind them.  These are zero.
 * Reading one to see that would map it, and allocate it if it is in a file or
 * a huge page.  Pages are the host's.  A page may be missing from @untouched.
 */
void mapped_ram_memory_untouched(MappedRamMemory *m,
                                 const MappedRamBacking *backing,
                                 const uint8_t *base, uint64_t first,
                                 uint64_t pages, unsigned long *untouched);

#endif /* MIGRATION_MAPPED_RAM_MEMORY_H */
