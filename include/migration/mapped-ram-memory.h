/*
 * mapped-ram: finding untouched guest memory without reading it
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
 * @fd_has_holes: whether the file reports its holes correctly at any time, even
 *                with pages that are dirty in memory only
 * @fd_is_empty: whether the file has no data except for what the caller writes
 *               to it
 *
 * The backing of a RAM block's memory.
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
 * Only tmpfs and memfd are trusted to report their holes: other file systems
 * may not know about pages that are dirty in memory.  hugetlbfs reports no
 * holes, but when a load begins its file may be known to be empty.  Any thread.
 *
 * Returns: the backing
 */
MappedRamBacking mapped_ram_memory_backing(int fd, uint64_t fd_offset,
                                           bool is_private, bool loading);

/**
 * MappedRamMemory:
 *
 * One thread's view of memory: the descriptor of the kernel's page map, or -1,
 * and the range of data that was found last in a file.  For one thread at a
 * time.
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
 * Opens the kernel's map of this process's page tables (/proc/self/pagemap).
 * If that is not possible, no private memory is known to be untouched.
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
 * @backing: the backing of the memory
 * @base: start of the memory of the RAM block
 * @first: first page of the range
 * @pages: number of pages in the range
 * @untouched: bitmap of @pages bits, counted from @first; set to the pages that
 *             are zero because they were never touched
 *
 * Asks the kernel which pages have no memory behind them.  These are zero;
 * reading one to find out would map it, and allocate it if it is in a file or
 * a huge page.  Pages are those of the host.
 *
 * Returns: true if all other pages have memory behind them; false if the kernel
 *          does not tell, and @untouched has no pages
 */
bool mapped_ram_memory_untouched(MappedRamMemory *m,
                                 const MappedRamBacking *backing,
                                 const uint8_t *base, uint64_t first,
                                 uint64_t pages, unsigned long *untouched);

#endif /* MIGRATION_MAPPED_RAM_MEMORY_H */
