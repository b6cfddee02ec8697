/*
 * Extents: definitions shared by the pool and the workers
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
 * @buffered: queue on the descriptor without O_DIRECT; always exists
 * @limits: constraints on transfers through @direct
 * @keep_zeros: whether zero pages are saved like others
 * @memory: the worker's view of untouched memory
 * @read_through: extents (struct ReadThrough) with absent pages that a request
 *                reads through; zeroed when the reads have ended
 *
 * A worker's access to the file.  Only the worker's thread may use it, unless a
 * function below says otherwise.
 */
typedef struct MappedRamWorker {
    DirectQueue *direct;
    DirectQueue *buffered;
    DirectIOLimits limits;
    bool keep_zeros;
    /* Gaps between pages of up to this many bytes are read through */
    uint64_t read_gap;
    MappedRamMemory memory;
    GArray *read_through;
} MappedRamWorker;

/* Creates the queues.  Returns false with @errp set on failure. */
bool mapped_ram_worker_init(MappedRamWorker *w,
                            const MappedRamPoolConfig *config, Error **errp);

/*
 * Returns how many bytes each of @workers workers may have in flight if it may
 * have @depth requests; 0 stands for the default.
 */
uint64_t mapped_ram_worker_bytes(unsigned depth, unsigned workers);

/* Drains and frees the queues.  @w may be zeroed. */
void mapped_ram_worker_destroy(MappedRamWorker *w);

/* Name of the engine that moves the bulk of RAM; a constant string. */
const char *mapped_ram_worker_engine(MappedRamWorker *w);

/* Why no preferred engine is in use, or NULL; lives as long as @w. */
const char *mapped_ram_worker_engine_reason(MappedRamWorker *w);

/* Adds what the queues did to @sum.  May be called from any thread. */
void mapped_ram_worker_stats(MappedRamWorker *w, MappedRamStats *sum);

/*
 * Saves @extent: updates the block's bitmaps and starts the writes.
 * Adds to @counts.  Returns false with @errp set on the first error.
 */
bool mapped_ram_worker_save(MappedRamWorker *w, const MappedRamExtent *extent,
                            MappedRamCounts *counts, Error **errp);

/* Counts which of the dirty pages of @extent are not zero. */
void mapped_ram_worker_count(MappedRamWorker *w, const MappedRamExtent *extent,
                             MappedRamCounts *counts);

/*
 * Loads @extent likewise, ignoring its @dirty.  Pages that are not in the file
 * may only become zero in the drain.
 */
bool mapped_ram_worker_load(MappedRamWorker *w, const MappedRamExtent *extent,
                            MappedRamCounts *counts, Error **errp);

/* Returns whether requests are in flight. */
bool mapped_ram_worker_busy(const MappedRamWorker *w);

/*
 * Waits until at least one of these requests is done.  Returns false with @errp
 * set if one has failed.
 */
bool mapped_ram_worker_wait(MappedRamWorker *w, Error **errp);

/* Waits until all requests are done, and completes what was loaded. */
bool mapped_ram_worker_drain(MappedRamWorker *w, Error **errp);

/* Makes the queues refuse further requests.  May be called from any thread. */
void mapped_ram_worker_cancel(MappedRamWorker *w);

/**
 * mapped_ram_plan_extent:
 * @plan: set to the pages to move, MAPPED_RAM_EXTENT_PAGES bits
 * @wanted: pages that must be moved
 * @allowed: pages that may be moved as well
 * @pages: how many pages the extent spans
 * @gap: holes of up to this many pages are bridged where @allowed permits,
 *       because one large request costs less than two small ones
 * @align: requests must start and end at a multiple of this many pages, a power
 *         of two; requests are rounded out regardless of @allowed, because the
 *         device requires it
 *
 * Decides which pages of an extent are moved.
 */
void mapped_ram_plan_extent(unsigned long *plan, const unsigned long *wanted,
                            const unsigned long *allowed, unsigned long pages,
                            unsigned long gap, unsigned long align);

#endif /* MIGRATION_MAPPED_RAM_WORKER_H */
