/*
 * mapped-ram: the save loop
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Decides when dirty pages are claimed, when the bandwidth is used up, when
 * the dirty bitmap is synchronized, and how the last stage proceeds.  It does
 * not depend on the version of QEMU: the base is reached through
 * MappedRamLoopOps, implemented by mapped-ram-ram.c.inc and by a mock in the
 * unit test.
 *
 * The rule behind all of this: between two synchronizations of the
 * dirty bitmap each page is handed to the workers at most once, and before a
 * synchronization all workers are drained.  So no two writes to one page are
 * ever in flight.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_LOOP_H
#define QEMU_MIGRATION_MAPPED_RAM_LOOP_H

#include "migration/mapped-ram-pool.h"

/* The most times that the last stage releases the BQL. */
#define MAPPED_RAM_UNLOCKED_PASSES 3

/*
 * With this many dirty pages or more, the last stage makes another such pass
 * only if the previous one left fewer than the one before it: a pass takes
 * long, and a device may report every page as dirty each time.
 */
#define MAPPED_RAM_MANY_PAGES 1024

/**
 * MappedRamLoopOps:
 *
 * What the save loop needs from the base.  All functions are called by the
 * migration thread with the loop's @opaque, without the BQL unless said
 * otherwise.
 */
typedef struct MappedRamLoopOps {
    /**
     * claim:
     * @extent: filled in with the pages that were claimed, and their block
     * @max_pages: the most pages to span, a multiple of BITS_PER_LONG
     *
     * Removes the next dirty pages from the dirty bitmap: all of those in one
     * stretch of a block that starts and ends on words of the bitmap.
     *
     * Returns: how many pages were dirty; 0 if no page is dirty any more;
     *          -1 with @errp set if the block has no pages region, or the
     *          workers have failed
     */
    int64_t (*claim)(void *opaque, MappedRamExtent *extent,
                     unsigned long max_pages, Error **errp);

    /* Adds @delta to the statistics and to the used bandwidth. */
    void (*account)(void *opaque, const MappedRamCounts *delta);

    /**
     * rate_exceeded:
     * @claimed: bytes that were claimed but not accounted yet
     *
     * Returns: whether the bandwidth of this period is used up
     */
    bool (*rate_exceeded)(void *opaque, uint64_t claimed);

    /* Returns: the bytes per period, or UINT64_MAX for no limit */
    uint64_t (*rate_limit)(void *opaque);

    /* Returns: whether the main stream has failed */
    bool (*failed)(void *opaque);

    /**
     * synchronize:
     * @last: whether the guest is stopped for good
     *
     * Synchronizes the dirty bitmap.  Called with the BQL held.
     */
    void (*synchronize)(void *opaque, bool last);

    /* Returns: how many pages are dirty */
    uint64_t (*dirty_pages)(void *opaque);

    /* Checks that the dirty pages fit into the file.  Waits for the disk. */
    bool (*check_space)(void *opaque, Error **errp);

    /* Writes the bitmaps of all blocks; may be called again. */
    bool (*write_bitmaps)(void *opaque, Error **errp);

    void (*lock_bql)(void);
    void (*unlock_bql)(void);
} MappedRamLoopOps;

/**
 * MappedRamLoop:
 * @ops: the base
 * @opaque: passed to @ops
 * @pool: the workers
 * @page_size: bytes of a page
 * @space_checked: whether all of RAM is known to fit
 * @dirty: how many pages were dirty after the last synchronization, or are at
 *         the beginning; more than possible if the guest ran at that time
 *
 * The fields above are set by the owner, the migration thread; the others
 * are for mapped-ram-loop.c and start as zero.  No other thread may use it.
 */
typedef struct MappedRamLoop {
    const MappedRamLoopOps *ops;
    void *opaque;
    MappedRamPool *pool;
    uint64_t page_size;
    bool space_checked;
    uint64_t dirty;

    /* what has been accounted so far */
    MappedRamCounts reported;
    /* whether writing the pages of a stopped guest leaves no fewer of them */
    bool futile;
} MappedRamLoop;

/**
 * mapped_ram_loop_pass:
 * @loop: the loop
 * @limit_ms: how long to go on at most, also observing the bandwidth limit; or
 *            0 for neither limit
 * @errp: pointer to a NULL-initialized error object
 *
 * Hands dirty pages to the workers.
 *
 * Returns: 1 when no page is dirty any more; 0 when the bandwidth or the time
 *          is used up, or the stream has failed; -1 with @errp set
 */
int mapped_ram_loop_pass(MappedRamLoop *loop, unsigned limit_ms, Error **errp);

/**
 * mapped_ram_loop_synchronize:
 * @loop: the loop
 * @stopped: whether the guest is stopped
 * @errp: pointer to a NULL-initialized error object
 *
 * Drains the workers, synchronizes the dirty bitmap, and checks that there
 * is room for what is dirty.  Takes the BQL for the synchronization.
 *
 * Returns: true, or false with @errp set
 */
bool mapped_ram_loop_synchronize(MappedRamLoop *loop, bool stopped,
                                 Error **errp);

/**
 * mapped_ram_loop_remaining:
 * @loop: the loop
 * @stopped: whether the guest is stopped
 * @threshold: below this the base enters the last stage
 *
 * If the guest is stopped already, all of its RAM is written before the last
 * stage: the guest loses nothing, and this is easier to interrupt.  But a
 * device, for example one of VFIO whose accesses cannot be tracked, may make
 * pages dirty as fast as they are written.  Then only the last stage, which
 * writes them a limited number of times, can end the save.
 *
 * Returns: how many bytes to report as dirty
 */
uint64_t mapped_ram_loop_remaining(const MappedRamLoop *loop, bool stopped,
                                   uint64_t threshold);

/**
 * mapped_ram_loop_finish:
 * @loop: the loop
 * @errp: pointer to a NULL-initialized error object
 *
 * The last stage: writes the remaining dirty pages, and the bitmaps.  The guest
 * is stopped.  Called with the BQL held; releases it while waiting for the
 * disk, and holds it again on return.
 *
 * Returns: true when all pages and bitmaps are written, or false with @errp
 *          set
 */
bool mapped_ram_loop_finish(MappedRamLoop *loop, Error **errp);

#endif /* QEMU_MIGRATION_MAPPED_RAM_LOOP_H */
