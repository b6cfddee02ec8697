/*
 * mapped-ram: what is known of guest memory without reading it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_MEMORY_H
#define QEMU_MIGRATION_MAPPED_RAM_MEMORY_H

/**
 * mapped_ram_memory_touched:
 * @host: start of a range of private anonymous memory, aligned to the host's
 *        page size
 * @pages: how many of the host's pages it has
 * @touched: filled in on success, one bit a page: whether it may be other
 *           than zero
 *
 * Asks the kernel (/proc/self/pagemap) which pages have ever been touched.
 * All others are zero; reading one, to see that, would map it, and with
 * huge pages allocate it.  Makes sense for private anonymous memory only:
 * elsewhere a page that is not mapped may have data in a file.  Any thread.
 *
 * Returns: false if the kernel does not tell
 */
bool mapped_ram_memory_touched(const void *host, size_t pages,
                               unsigned long *touched);

#endif /* QEMU_MIGRATION_MAPPED_RAM_MEMORY_H */
