/*
 * Extents: what the pool and the channels share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Private to migration/ram-extent*.c.  See include/migration/ram-extent.h.
 */

#ifndef MIGRATION_RAM_EXTENT_INT_H
#define MIGRATION_RAM_EXTENT_INT_H

#include "migration/ram-extent.h"

/**
 * RamExtentChannel:
 * @direct: queue on the descriptor with O_DIRECT, or NULL
 * @buffered: queue on the other one; always there
 * @limits: what @direct needs
 * @overread: extents (struct Overread) with pages that are not in the file,
 *            but were read over; to be zeroed when the reads have ended
 *
 * One channel's way to the file.  Only the thread of the channel may use it,
 * but for ram_extent_channel_cancel().
 */
typedef struct RamExtentChannel {
    DirectQueue *direct;
    DirectQueue *buffered;
    DirectIOLimits limits;
    GArray *overread;
} RamExtentChannel;

/* Makes the queues.  False with @errp set on failure. */
bool ram_extent_channel_init(RamExtentChannel *c,
                             const RamExtentConfig *config, Error **errp);

/* Frees the queues after their requests in flight.  Fine on a zeroed @c. */
void ram_extent_channel_destroy(RamExtentChannel *c);

/* Name of the engine that moves the bulk; a constant string. */
const char *ram_extent_channel_engine(RamExtentChannel *c);

/* Why it is none that would be better, or NULL; lives as long as @c. */
const char *ram_extent_channel_engine_reason(RamExtentChannel *c);

/* Adds what the queues did to @sum.  May be called from any thread. */
void ram_extent_channel_stats(RamExtentChannel *c, RamExtentStats *sum);

/*
 * Saves @extent: updates the block's present bitmap and starts the writes.
 * Adds to @counts.  False with @errp set on the first error.
 */
bool ram_extent_channel_save(RamExtentChannel *c, const RamExtent *extent,
                             RamExtentCounts *counts, Error **errp);

/*
 * Loads @extent likewise; its @dirty has no meaning here.  Pages that are not
 * in the file may have to wait for the drain to become zero.
 */
bool ram_extent_channel_load(RamExtentChannel *c, const RamExtent *extent,
                             RamExtentCounts *counts, Error **errp);

/* Whether it has requests in flight. */
bool ram_extent_channel_busy(const RamExtentChannel *c);

/*
 * Waits until one of these or more is through.  False with @errp set if one
 * has failed.
 */
bool ram_extent_channel_wait(RamExtentChannel *c, Error **errp);

/* Waits until all that was started is done, and finishes what was loaded. */
bool ram_extent_channel_drain(RamExtentChannel *c, Error **errp);

/* Makes the queues refuse what comes.  May be called from any thread. */
void ram_extent_channel_cancel(RamExtentChannel *c);

/**
 * ram_extent_plan:
 * @plan: pages to move in the end, of RAM_EXTENT_PAGES bits
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
void ram_extent_plan(unsigned long *plan, const unsigned long *wanted,
                     const unsigned long *allowed, unsigned long pages,
                     unsigned long gap, unsigned long align);

#endif /* MIGRATION_RAM_EXTENT_INT_H */
