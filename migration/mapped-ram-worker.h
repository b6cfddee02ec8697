/*
 * Extents: what the pool and the workers share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Private to migration/mapped-ram-{pool,worker}.c.
 * See include/migration/mapped-ram-pool.h.
 */

#ifndef MIGRATION_MAPPED_RAM_WORKER_H
#define MIGRATION_MAPPED_RAM_WORKER_H

#include "migration/mapped-ram-pool.h"

/**
 * MappedRamWorker:
 * @direct: queue on the descriptor with O_DIRECT, or NULL
 * @buffered: queue on the other one; always there
 * @limits: what @direct needs
 * @keep_zeros: whether zero pages are saved like others
 * @memory: what it knows of memory without reading it
 * @read_through: extents (struct ReadThrough) with absent pages that a request
 *                reads through; zeroed when the reads have ended
 *
 * One worker's way to the file.  Only the thread of the worker may use it,
 * but for mapped_ram_worker_cancel().
 */
typedef struct MappedRamWorker {
    DirectQueue *direct;
    DirectQueue *buffered;
    DirectIOLimits limits;
    bool keep_zeros;
    MappedRamMemory memory;
    GArray *read_through;
} MappedRamWorker;

/* Makes the queues.  False with @errp set on failure. */
bool mapped_ram_worker_init(MappedRamWorker *c,
                            const MappedRamPoolConfig *config, Error **errp);

/*
 * How many bytes a worker of @workers may have in flight, when each may have
 * @depth requests; 0 for the default.
 */
uint64_t mapped_ram_worker_bytes(unsigned depth, unsigned workers);

/* Frees the queues after their requests in flight.  Fine on a zeroed @c. */
void mapped_ram_worker_destroy(MappedRamWorker *c);

/* Name of the engine that moves the bulk; a constant string. */
const char *mapped_ram_worker_engine(MappedRamWorker *c);

/* Why it is none that would be better, or NULL; lives as long as @c. */
const char *mapped_ram_worker_engine_reason(MappedRamWorker *c);

/* Adds what the queues did to @sum.  May be called from any thread. */
void mapped_ram_worker_stats(MappedRamWorker *c, MappedRamStats *sum);

/*
 * Saves @extent: updates the block's present bitmap and starts the writes.
 * Adds to @counts.  False with @errp set on the first error.
 */
bool mapped_ram_worker_save(MappedRamWorker *c, const MappedRamExtent *extent,
                            MappedRamCounts *counts, Error **errp);

/* Counts which of the dirty pages of @extent are other than zero. */
void mapped_ram_worker_count(MappedRamWorker *c, const MappedRamExtent *extent,
                             MappedRamCounts *counts);

/*
 * Loads @extent likewise; its @dirty has no meaning here.  Pages that are not
 * in the file may have to wait for the drain to become zero.
 */
bool mapped_ram_worker_load(MappedRamWorker *c, const MappedRamExtent *extent,
                            MappedRamCounts *counts, Error **errp);

/* Whether it has requests in flight. */
bool mapped_ram_worker_busy(const MappedRamWorker *c);

/*
 * Waits until one of these or more is through.  False with @errp set if one
 * has failed.
 */
bool mapped_ram_worker_wait(MappedRamWorker *c, Error **errp);

/* Waits until all that was started is done, and finishes what was loaded. */
bool mapped_ram_worker_drain(MappedRamWorker *c, Error **errp);

/* Makes the queues refuse what comes.  May be called from any thread. */
void mapped_ram_worker_cancel(MappedRamWorker *c);

/**
 * mapped_ram_plan_extent:
 * @plan: pages to move in the end, of MAPPED_RAM_EXTENT_PAGES bits
 * @wanted: pages that must be moved
 * @allowed: pages that may be moved as well
 * @pages: how many pages the extent spans
 * @gap: holes of up to this many pages are bridged where @allowed lets us,
 *       because one large request costs less than two small ones
 * @align: requests must start and end at a multiple of this many pages; this
 *         rounds them out to it whatever @allowed says, because the device
 *         can't do less; a power of two
 *
 * Decides which pages of an extent are moved.
 */
void mapped_ram_plan_extent(unsigned long *plan, const unsigned long *wanted,
                            const unsigned long *allowed, unsigned long pages,
                            unsigned long gap, unsigned long align);

#endif /* MIGRATION_MAPPED_RAM_WORKER_H */
