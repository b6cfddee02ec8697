/*
 * Instant restore: the guest runs while its RAM is loaded from a file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Wanted by the capabilities mapped-ram and postcopy-ram of the destination.
 * Decides which RAM blocks can be loaded that way, and connects the loader
 * (include/migration/mapped-ram-lazy.h) with the machine: while RAM is loaded,
 * the descriptors and the lock of the file are kept, memory is not discarded,
 * and the machine is not saved; if the file cannot be read, the guest stops.
 *
 * There is at most one such load.  All functions are for the main thread, with
 * the BQL held, unless they say otherwise.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_INSTANT_H
#define QEMU_MIGRATION_MAPPED_RAM_INSTANT_H

#include "migration/mapped-ram-lazy.h"
#include "qapi/qapi-types-direct-io.h"
#include "qemu-file.h"

/**
 * mapped_ram_instant_add:
 * @f: the main stream
 * @rb: a RAM block
 * @b: the same as workers see it, with its bitmap
 *
 * Has the pages of @rb loaded when they are touched, and after
 * mapped_ram_instant_start() anyway.
 *
 * Returns: true; or false if they have to be loaded now, since this is not
 *          wanted, not worth while or not possible.  The reason is noted for
 *          mapped_ram_instant_fill_info().
 */
bool mapped_ram_instant_add(QEMUFile *f, RAMBlock *rb,
                            const MappedRamBlock *b);

/**
 * mapped_ram_instant_start:
 * @errp: pointer to a NULL-initialized error object
 *
 * The state of devices is loaded, and the guest may run.  Does nothing if no
 * block was added.
 *
 * Returns: true; or false with @errp set if pages that were touched could not
 *          be read.  Then the load has failed.
 */
bool mapped_ram_instant_start(Error **errp);

/*
 * Whether RAM is still being loaded, after mapped_ram_instant_start().  The
 * status of the migration is postcopy-active then, and this module sets it to
 * completed.
 */
bool mapped_ram_instant_active(void);

/* Ends a load that has failed before the guest ran. */
void mapped_ram_instant_abort(void);

/* Forgets the figures of the last load. */
void mapped_ram_instant_forget(void);

/**
 * mapped_ram_instant_fill_info:
 * @info: the figures of a load, to which this adds
 * @loaded: bytes of RAM that were loaded before the guest ran
 */
void mapped_ram_instant_fill_info(MigrationDirectIO *info, uint64_t loaded);

/* Adds the figures of the queues to @stats. */
void mapped_ram_instant_add_stats(MappedRamStats *stats);

#endif /* QEMU_MIGRATION_MAPPED_RAM_INSTANT_H */
