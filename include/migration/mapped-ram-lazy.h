/*
 * Instant restore: loading guest RAM while the guest runs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The memory of a RAM block is registered with userfaultfd.  A thread that
 * touches a page that is not loaded waits.  A fault thread reads the page and
 * its neighbors before everything else, places it, and so wakes the waiting
 * thread.  Background threads load the rest meanwhile, 2 MiB at a time and
 * several at once, continuing from where the last fault was.
 *
 *     l = mapped_ram_lazy_new(&config, errp);
 *     for each block:
 *         mapped_ram_lazy_check(l, block, page_size, errp)
 *         empty its memory
 *         mapped_ram_lazy_add(l, block, page_size, errp)
 *                                           faults are served from here on
 *     mapped_ram_lazy_start(l, errp)        the background load begins
 *     ...                                   config.ended() is called
 *     mapped_ram_lazy_free(l)
 *
 * Pages are read into a buffer and placed by a copy in the kernel, which gives
 * a page memory and content at once, and leaves a page alone that already has
 * memory.  So two threads may load the same page, and nothing that the guest
 * wrote is ever overwritten.  Memory of a block must not be discarded while it
 * is loaded: if it is, pages that were loaded before become zero, as they
 * should, but others are loaded all the same.
 *
 * A copy creates small pages.  So 2 MiB that are loaded as a whole are moved
 * instead, if the kernel supports that and it costs no more than a copy: the
 * buffer's huge page becomes the block's.
 *
 * Errors: a page that cannot be read stays missing, and threads that touch it
 * wait.  Before mapped_ram_lazy_start() this would block the load itself, so
 * zeros are placed instead, and mapped_ram_lazy_start() fails.  After it,
 * config.changed() is called and the background load stops; pages that threads
 * wait for are retried each second, and all pages by mapped_ram_lazy_retry().
 *
 * The threads take only the object's own lock, and never the BQL.  The two
 * callbacks are called without any lock.
 *
 * Functions that any thread may call say so; the others are for one thread at a
 * time.
 *
 * This file does not depend on RAMBlock, QEMUFile or a version of QEMU.
 */

#ifndef MIGRATION_MAPPED_RAM_LAZY_H
#define MIGRATION_MAPPED_RAM_LAZY_H

#include "migration/mapped-ram-pool.h"

/* Size of one background read; also the largest page of the host. */
#define MAPPED_RAM_LAZY_EXTENT (2 * 1024 * 1024)

typedef struct MappedRamLazy MappedRamLazy;

/**
 * MappedRamLazyConfig:
 * @file: the file, and how to read it.  Each of @workers, up to 4, consists of
 *        up to four background threads, or one without O_DIRECT, each with one
 *        read of MAPPED_RAM_LAZY_EXTENT in flight; they share @depth requests.
 *        Two of the four read only while no page faults.  Reads for faults come
 *        on top.
 *        @thread_name and @keep_zeros are not used.  The caller owns the
 *        descriptors and what pointers refer to, which must live as long as the
 *        object.
 * @changed: called by one of the threads when a page could not be read, once
 *           until mapped_ram_lazy_retry(), and when a page that a thread was
 *           waiting for (see mapped_ram_lazy_waits()) has been read after all
 * @ended: called by the last of the threads, when all pages are loaded and no
 *         read is in flight; not after mapped_ram_lazy_free() has been called
 * @opaque: passed to both
 */
typedef struct MappedRamLazyConfig {
    MappedRamPoolConfig file;
    void (*changed)(void *opaque);
    void (*ended)(void *opaque);
    void *opaque;
} MappedRamLazyConfig;

/**
 * MappedRamLazyInfo:
 * @workers: how many workers load in the background
 * @length: bytes of the blocks
 * @total: bytes of the blocks that are in the file
 * @missing: bytes of these that are not loaded yet
 * @fault_bytes: bytes that were loaded because of a fault
 * @background_bytes: bytes that were loaded in the background
 * @moved_bytes: bytes that were moved to the RAM block, not copied
 * @faults: how many faults were served by reading the file
 * @zero_faults: how many faults were on a page that is not in the file
 * @median_us: the median time of a fault, from when a fault thread receives it
 *             until the page is there, in microseconds, with an error below
 *             13 %; after a failed read, from the last attempt on
 * @p99_us: the time that 99 % of faults did not exceed, likewise
 * @slowest_us: the longest time
 * @slowest_offset: the file offset of that page
 * @stats: the queues' figures
 */
typedef struct MappedRamLazyInfo {
    unsigned workers;
    uint64_t length;
    uint64_t total;
    uint64_t missing;
    uint64_t fault_bytes;
    uint64_t background_bytes;
    uint64_t moved_bytes;
    uint64_t faults;
    uint64_t zero_faults;
    uint64_t median_us;
    uint64_t p99_us;
    uint64_t slowest_us;
    uint64_t slowest_offset;
    MappedRamStats stats;
} MappedRamLazyInfo;

/**
 * mapped_ram_lazy_new:
 * @config: copied
 * @errp: pointer to a NULL-initialized error object
 *
 * Returns: the object for mapped_ram_lazy_free(); or NULL with @errp set if
 *          userfaultfd or a queue is not available.  RAM can then still be
 *          loaded before the guest runs.
 */
MappedRamLazy *mapped_ram_lazy_new(const MappedRamLazyConfig *config,
                                   Error **errp);

/**
 * mapped_ram_lazy_check:
 * @l: the object
 * @block: a block; what its memory has does not matter
 * @page_size: size of the pages of this memory, in bytes
 * @errp: pointer to a NULL-initialized error object
 *
 * To be called before the memory is emptied for mapped_ram_lazy_add().
 *
 * Returns: true; or false with @errp set if this kind of memory does not
 *          support it
 */
bool mapped_ram_lazy_check(MappedRamLazy *l, const MappedRamBlock *block,
                           size_t page_size, Error **errp);

/**
 * mapped_ram_lazy_add:
 * @l: the object
 * @block: a block whose memory is empty: no page has memory behind it
 * @page_size: size of the pages of this memory, in bytes
 * @errp: pointer to a NULL-initialized error object
 *
 * Registers @block, so that its pages that are in the file are loaded when they
 * are touched.  Copies what it needs of @block.  Must not be called after
 * mapped_ram_lazy_start().
 *
 * Returns: true; or false with @errp set if this kind of memory does not
 *          support it.  The memory is then as before.
 */
bool mapped_ram_lazy_add(MappedRamLazy *l, const MappedRamBlock *block,
                         size_t page_size, Error **errp);

/**
 * mapped_ram_lazy_start:
 * @l: the object
 * @errp: pointer to a NULL-initialized error object
 *
 * Starts the background load.  config.ended() may be called before this
 * returns.
 *
 * Returns: true; or false with @errp set if a page could not be read so far.
 *          The contents of the blocks are then undefined.
 */
bool mapped_ram_lazy_start(MappedRamLazy *l, Error **errp);

/**
 * mapped_ram_lazy_retry:
 * @l: the object
 *
 * After a failure, tries again to load what could not be read.  Any thread.
 */
void mapped_ram_lazy_retry(MappedRamLazy *l);

/**
 * mapped_ram_lazy_error:
 * @l: the object
 *
 * Any thread.
 *
 * Returns: a copy of the error, for error_free(), which names the block, the
 *          page and, if reading has failed, the file and the offset; or NULL if
 *          nothing has failed since mapped_ram_lazy_retry()
 */
Error *mapped_ram_lazy_error(MappedRamLazy *l);

/**
 * mapped_ram_lazy_waits:
 * @l: the object
 * @thread: the kernel's ID of a thread
 *
 * Any thread.
 *
 * Returns: whether @thread waits for a page that could not be read, or whose
 *          read has taken more than a second
 */
bool mapped_ram_lazy_waits(MappedRamLazy *l, uint64_t thread);

/**
 * mapped_ram_lazy_others_wait:
 * @l: the object
 * @leave_out: returns whether a thread, with the kernel's ID @thread, is not to
 *             be counted; must not call functions of this file
 *
 * Any thread.
 *
 * Returns: whether another thread of this process waits for a page that could
 *          not be read, or that is being read because it was touched.  Threads
 *          that the kernel does not identify are not counted.
 */
bool mapped_ram_lazy_others_wait(MappedRamLazy *l,
                                 bool (*leave_out)(uint64_t thread));

/* Fills in @info.  Any thread. */
void mapped_ram_lazy_info(MappedRamLazy *l, MappedRamLazyInfo *info);

/**
 * mapped_ram_lazy_free:
 * @l: the object or NULL
 *
 * Ends the threads, waiting for their reads, and unregisters the memory.
 * Pages that are not loaded then read as zero, so before config.ended() was
 * called this is only for a load that has failed, with no guest.  Must not be
 * called by one of the two callbacks.
 */
void mapped_ram_lazy_free(MappedRamLazy *l);

#endif /* MIGRATION_MAPPED_RAM_LAZY_H */
