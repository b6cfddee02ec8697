/*
 * Extents: moving guest RAM to and from a mapped-ram file, in large requests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A pool of workers, each a thread with a DirectQueue of its own, moves
 * extents: stretches of a RAM block that start and end on words of its
 * bitmap.  So no two workers ever touch the same word of a bitmap, or the
 * same page of the file, and they need neither atomics nor a lock for it.
 *
 * Saving: the migration thread takes dirty pages out of its dirty bitmap, an
 * extent at a time, and hands them to mapped_ram_pool_save().  A worker finds
 * the zero pages, records in the block's @present bitmap which pages are in the
 * file, and writes the others in as few requests as it can.
 *
 * Loading: mapped_ram_pool_load_block() lets the workers read the pages in
 * @present, and zero the rest of the block where it is not zero yet.
 *
 * The first error of any worker is kept.  From then on no page is moved, and
 * every call returns that error.
 *
 * Threads: one thread at a time hands over work and waits for it.  Functions
 * that other threads may call, too, say so.  mapped_ram_pool_free() must be the
 * last call.
 *
 * This file does not depend on RAMBlock, QEMUFile or a version of QEMU.
 */

#ifndef MIGRATION_MAPPED_RAM_POOL_H
#define MIGRATION_MAPPED_RAM_POOL_H

#include "io/direct-queue.h"
#include "migration/mapped-ram-layout.h"
#include "migration/mapped-ram-memory.h"
#include "qemu/bitmap.h"

/* The most pages in an extent; 4 MiB with pages of 4 KiB. */
#define MAPPED_RAM_EXTENT_PAGES 1024
QEMU_BUILD_BUG_ON(MAPPED_RAM_EXTENT_PAGES % BITS_PER_LONG);

/* Extents start at multiples of this many pages of their block. */
#define MAPPED_RAM_EXTENT_ALIGN_MAX BITS_PER_LONG

typedef struct MappedRamPool MappedRamPool;

/**
 * MappedRamBlock:
 * @name: name of the RAM block, for messages
 * @host: its memory, of @layout.length bytes
 * @layout: its layout in the file
 * @present: one bit per page, set when the page is in the file.  Written by the
 *           workers while saving, read by them while loading.
 * @written: one bit per page, set when a save has written the page, also if
 *           only because of its neighbors, and also if it was zero; never
 *           cleared.  For the workers, who share it out like @present.  Needed
 *           to save with O_DIRECT, otherwise unused and NULL.
 * @keep_absent: when loading, leave pages alone that are not in the file and
 *               may have no memory behind them; when saving, those that are not
 *               dirty.  For memory whose pages may be discarded and must not
 *               even be touched then.
 * @backing: the backing of the memory, to find pages without data
 *
 * A RAM block as the workers see it.  Owned by the caller, who must not change
 * or free it while a pool works on it: until mapped_ram_pool_drain() has
 * returned true, or mapped_ram_pool_load_block() or mapped_ram_pool_free() has
 * returned.
 */
typedef struct MappedRamBlock {
    const char *name;
    uint8_t *host;
    MappedRamLayout layout;
    unsigned long *present;
    unsigned long *written;
    bool keep_absent;
    MappedRamBacking backing;
} MappedRamBlock;

/**
 * MappedRamExtent:
 * @block: the block that contains the extent
 * @first: its first page, a multiple of BITS_PER_LONG
 * @pages: how many pages it spans, up to MAPPED_RAM_EXTENT_PAGES; a multiple of
 *         BITS_PER_LONG unless the block ends there
 * @dirty: which of its pages to save, counted from @first
 */
typedef struct MappedRamExtent {
    MappedRamBlock *block;
    unsigned long first;
    unsigned long pages;
    DECLARE_BITMAP(dirty, MAPPED_RAM_EXTENT_PAGES);
} MappedRamExtent;

/**
 * MappedRamPoolConfig:
 * @name: name of the file, for messages
 * @thread_name: name of the threads, up to 11 bytes; their number is appended
 * @fd: descriptor of the file without O_DIRECT
 * @direct_fd: descriptor of the same file with O_DIRECT, or -1 to move
 *             everything through @fd
 * @direct_limits: constraints on transfers through @direct_fd; no alignment may
 *                 be larger than MAPPED_RAM_EXTENT_ALIGN_MAX pages
 * @workers: number of threads, 1 or more
 * @engine: the engine of the queues
 * @depth: how many requests each queue keeps in flight, at most
 *         DIRECT_QUEUE_DEPTH_MAX, or 0 for the default.  The bytes in flight
 *         are also limited: to 512 KiB for each request, or by default to
 *         DIRECT_QUEUE_BYTES_DEFAULT for all workers together; but each may
 *         always have 4 MiB.
 * @keep_zeros: whether to save zero pages like others
 * @thread_started: called by each thread when it starts, with its name, which
 *                  lives as long as the pool; or NULL
 * @thread_ended: called by each thread before it ends, with the return value of
 *                @thread_started
 *
 * The caller owns the descriptors, which must live as long as the pool.
 */
typedef struct MappedRamPoolConfig {
    const char *name;
    const char *thread_name;
    int fd;
    int direct_fd;
    DirectIOLimits direct_limits;
    unsigned workers;
    DirectIoEngine engine;
    unsigned depth;
    bool keep_zeros;
    void *(*thread_started)(const char *name);
    void (*thread_ended)(void *thread);
} MappedRamPoolConfig;

/**
 * MappedRamCounts:
 * @queued: dirty pages that were handed over, to be saved
 * @normal: pages that were written to, or read from, the file
 * @zero: pages that were found to be zero
 * @direct_bytes: bytes handed to the queue of the O_DIRECT descriptor
 * @buffered_bytes: bytes handed to the queue of the other descriptor
 * @requests: number of contiguous ranges that made up these bytes
 * @counted: pages that mapped_ram_pool_count() has scanned
 * @counted_data: those of them that are not zero
 *
 * What the workers have scanned.  The reads and writes may still be in flight;
 * MappedRamStats counts those that are done.
 */
typedef struct MappedRamCounts {
    uint64_t queued;
    uint64_t normal;
    uint64_t zero;
    uint64_t direct_bytes;
    uint64_t buffered_bytes;
    uint64_t requests;
    uint64_t counted;
    uint64_t counted_data;
} MappedRamCounts;

/* How many pages were handed over that the workers have not scanned yet. */
static inline uint64_t mapped_ram_counts_unscanned(const MappedRamCounts *c)
{
    return c->queued - c->normal - c->zero;
}

/**
 * MappedRamStats:
 * @direct: sum of the queues on the O_DIRECT descriptor
 * @buffered: sum of the queues on the other descriptor
 *
 * What the queues of all workers did: sums, except for the slowest request of
 * all and for max_in_flight, which is that of the busiest queue.
 */
typedef struct MappedRamStats {
    DirectQueueStats direct;
    DirectQueueStats buffered;
} MappedRamStats;

/* Adds @stats to @sum. */
void mapped_ram_stats_add(MappedRamStats *sum, const MappedRamStats *stats);

/**
 * mapped_ram_pool_new:
 * @config: the file, and how to move RAM
 * @errp: pointer to a NULL-initialized error object
 *
 * Starts the workers.
 *
 * Returns: the pool, to be freed with mapped_ram_pool_free(), or NULL with
 *          @errp set when a queue can't be created.
 */
MappedRamPool *mapped_ram_pool_new(const MappedRamPoolConfig *config,
                                   Error **errp);

/**
 * mapped_ram_pool_save:
 * @pool: the pool
 * @extent: what to save; copied
 * @errp: pointer to a NULL-initialized error object
 *
 * Hands an extent to the workers, and sleeps while they have enough to do.
 * The same pages must not be handed over again before mapped_ram_pool_drain(),
 * so that no two writes to one page are ever in flight.
 *
 * Only one thread at a time may call this.
 *
 * Returns: true when the workers have accepted the extent, which is not in the
 *          file yet; or false with @errp set to the first error of any worker.
 */
bool mapped_ram_pool_save(MappedRamPool *pool, const MappedRamExtent *extent,
                          Error **errp);

/**
 * mapped_ram_pool_count:
 * @pool: the pool
 * @extent: the extent whose dirty pages to scan; copied
 * @errp: pointer to a NULL-initialized error object
 *
 * Like mapped_ram_pool_save(), but the workers only count which of the pages
 * are not zero, in MappedRamCounts.
 *
 * Returns: true, or false with @errp set to the first error.
 */
bool mapped_ram_pool_count(MappedRamPool *pool, const MappedRamExtent *extent,
                           Error **errp);

/**
 * mapped_ram_pool_wait_scanned:
 * @pool: the pool
 * @errp: pointer to a NULL-initialized error object
 *
 * Sleeps until the workers have scanned all extents, so that the counts and
 * the bitmaps are exact, or until there is an error.  Writes may still be in
 * flight.
 *
 * Returns: true, or false with @errp set to the first error.
 */
bool mapped_ram_pool_wait_scanned(MappedRamPool *pool, Error **errp);

/**
 * mapped_ram_pool_drain:
 * @pool: the pool
 * @errp: pointer to a NULL-initialized error object
 *
 * Sleeps until everything that was handed over is written.  Returns early after
 * an error or mapped_ram_pool_cancel(): workers may then continue to read RAM
 * and write to the file until mapped_ram_pool_free() has returned.
 *
 * Returns: true, or false with @errp set to the first error, in which case the
 *          contents of the file are undefined.
 */
bool mapped_ram_pool_drain(MappedRamPool *pool, Error **errp);

/**
 * mapped_ram_pool_drained:
 * @pool: the pool
 *
 * May be called from any thread.
 *
 * Returns: whether all workers have been drained since the last extent was
 *          handed over to be saved or loaded; extents that are only counted do
 *          not matter.  After an error this may stay false.
 */
bool mapped_ram_pool_drained(MappedRamPool *pool);

/**
 * mapped_ram_pool_load_block:
 * @pool: the pool
 * @block: the block to load, with @present filled in and checked
 * @errp: pointer to a NULL-initialized error object
 *
 * Loads one block and returns when it is complete.  Waits by yielding if called
 * in a coroutine, otherwise by sleeping.  Also after an error, the workers no
 * longer use @block when this returns.
 *
 * Returns: true, or false with @errp set to the first error, in which case
 *          part of the block's memory may have been overwritten.
 */
bool mapped_ram_pool_load_block(MappedRamPool *pool, MappedRamBlock *block,
                                Error **errp);

/**
 * mapped_ram_pool_counts:
 * @pool: the pool
 * @counts: set to the sums since the pool was created
 *
 * May be called from any thread.
 */
void mapped_ram_pool_counts(MappedRamPool *pool, MappedRamCounts *counts);

/**
 * mapped_ram_pool_stats:
 * @pool: the pool
 * @stats: set to what was done since the pool was created
 *
 * May be called from any thread, and does not wait for the disk.  After
 * mapped_ram_pool_drain() the figures are exact.
 */
void mapped_ram_pool_stats(MappedRamPool *pool, MappedRamStats *stats);

/**
 * mapped_ram_pool_engine_name:
 * @pool: the pool
 *
 * May be called from any thread.
 *
 * Returns: name of the engine that does the I/O; a constant string.  If the
 *          workers have different engines, because a resource ran out, the
 *          least preferred one.
 */
const char *mapped_ram_pool_engine_name(MappedRamPool *pool);

/**
 * mapped_ram_pool_engine_reason:
 * @pool: the pool
 *
 * May be called from any thread.
 *
 * Returns: why no preferred engine is in use, see direct_queue_engine_reason();
 *          or NULL.  The string lives as long as the pool.
 */
const char *mapped_ram_pool_engine_reason(MappedRamPool *pool);

/**
 * mapped_ram_pool_cancel:
 * @pool: the pool
 *
 * Makes the pool fail: the workers drop what they have not started, and callers
 * that wait for them get an error.  Returns at once, without waiting for
 * requests in flight.  May be called from any thread.
 */
void mapped_ram_pool_cancel(MappedRamPool *pool);

/**
 * mapped_ram_pool_free:
 * @pool: the pool, or NULL
 *
 * Stops the workers after their requests in flight, and frees the pool.  Waits
 * for these, so the main loop's thread may call it only if there are none, as
 * after mapped_ram_pool_load_block().
 */
void mapped_ram_pool_free(MappedRamPool *pool);

#endif /* MIGRATION_MAPPED_RAM_POOL_H */
