/*
 * Instant restore: the guest runs while its RAM is loaded from a file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Enabled by the capabilities mapped-ram and postcopy-ram of the destination.
 * Decides which RAM blocks can be loaded that way, and connects the loader
 * (include/migration/mapped-ram-lazy.h) to the machine: while RAM is loaded,
 * the descriptors and the lock of the file are kept, memory is not discarded,
 * and the machine is not saved; if the file cannot be read, the guest stops.
 *
 * There is at most one such load.  All functions must be called by the main
 * thread with the BQL held, unless they say otherwise.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_INSTANT_H
#define QEMU_MIGRATION_MAPPED_RAM_INSTANT_H

#include "migration/instant-restore.h"
#include "migration/mapped-ram-lazy.h"
#include "qapi/qapi-types-direct-io.h"
#include "qemu-file.h"

/**
 * mapped_ram_instant_add:
 * @f: the main stream
 * @rb: a RAM block
 * @b: the same block as workers see it, with its bitmap
 *
 * Arranges for the pages of @rb to be loaded when they are touched, and in the
 * background after mapped_ram_instant_start().
 *
 * Returns: true; or false if the caller has to load the pages now, because
 *          instant restore is not wanted, not worthwhile or not possible.  The
 *          reason is kept for mapped_ram_instant_fill_info().
 */
bool mapped_ram_instant_add(QEMUFile *f, RAMBlock *rb,
                            const MappedRamBlock *b);

/* Returns whether mapped_ram_instant_add() has taken @rb.  Main thread. */
bool mapped_ram_instant_has(RAMBlock *rb);

/**
 * mapped_ram_instant_start:
 * @errp: pointer to a NULL-initialized error object
 *
 * To be called when the state of devices is loaded and the guest may run.
 * Does nothing if no block was added.
 *
 * Returns: true; or false with @errp set if saving the machine cannot be
 *          blocked, or pages that were touched could not be read, in which case
 *          the load has failed
 */
bool mapped_ram_instant_start(Error **errp);

/* Ends a load that failed before the guest ran. */
void mapped_ram_instant_abort(void);

/* Forgets the figures of the last load. */
void mapped_ram_instant_forget(void);

/**
 * mapped_ram_instant_fill_info:
 * @info: the figures of a load, which this completes
 * @loaded: bytes of RAM that were loaded before the guest ran
 */
void mapped_ram_instant_fill_info(MigrationDirectIO *info, uint64_t loaded);

/* Adds the figures of the queues to @stats. */
void mapped_ram_instant_add_stats(MappedRamStats *stats);

#endif /* QEMU_MIGRATION_MAPPED_RAM_INSTANT_H */
