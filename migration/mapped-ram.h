/*
 * mapped-ram: RAM blocks and the migration stream
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Between ram.c, which knows which pages are dirty, and the extents
 * (include/migration/mapped-ram-pool.h), which move pages.  Puts a header for
 * each RAM block into the stream, and keeps the workers of the running save or
 * load.  There is at most one of each.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_H
#define QEMU_MIGRATION_MAPPED_RAM_H

#include "exec/cpu-common.h"
#include "mapped-ram-loop.h"
#include "migration/mapped-ram-pool.h"
#include "qapi/qapi-types-direct-io.h"
#include "qemu-file.h"

typedef struct MappedRam MappedRam;

/**
 * mapped_ram_wanted:
 * @f: the main stream
 *
 * Returns: whether RAM goes to or comes from fixed places of @f: the
 *          mapped-ram capability is set, and @f is seekable.  A snapshot
 *          (savevm, loadvm) is not, and stays as it was.
 */
bool mapped_ram_wanted(QEMUFile *f);

/*
 * A migration begins that may become a save.  Forgets the figures of the last
 * one, and has the workers start before the old image is lost, see
 * file_save_begin().  Main thread.
 */
void mapped_ram_save_init(void);

/**
 * mapped_ram_save_begin:
 * @f: the main stream
 * @ops: what the save loop needs of the base
 * @opaque: passed to @ops
 * @errp: pointer to a NULL-initialized error object
 *
 * Starts the workers, unless file_save_begin() has done so.  Called
 * by the migration thread before any block.
 *
 * Returns: true, or false with @errp set.
 */
bool mapped_ram_save_begin(QEMUFile *f, const MappedRamLoopOps *ops,
                           void *opaque, Error **errp);

/**
 * mapped_ram_save_block:
 * @f: the main stream, behind the name and length of @rb
 * @rb: a RAM block
 * @errp: pointer to a NULL-initialized error object
 *
 * Writes the block's header, and moves @f to behind the block's pages.
 *
 * Returns: true, or false with @errp set.
 */
bool mapped_ram_save_block(QEMUFile *f, RAMBlock *rb, Error **errp);

/**
 * mapped_ram_save_left_out:
 * @f: the main stream
 * @errp: pointer to a NULL-initialized error object
 *
 * In place of mapped_ram_save_block(), for a RAM block that stays in its
 * shared memory.
 *
 * Returns: true, or false with @errp set
 */
bool mapped_ram_save_left_out(QEMUFile *f, Error **errp);

/**
 * mapped_ram_save_ready:
 * @f: the main stream, behind the last block
 * @errp: pointer to a NULL-initialized error object
 *
 * Gives a regular file the size that it needs for all of RAM, so that no
 * write of RAM has to extend it.  And makes sure that the file is no image
 * until it is complete; see file_transport_invalidate().
 *
 * Returns: true, or false with @errp set, when the file can't be that large.
 */
bool mapped_ram_save_ready(QEMUFile *f, Error **errp);

/*
 * Whether a save is between mapped_ram_save_begin() and _cleanup().  May be
 * called from any thread.
 */
bool mapped_ram_saving(void);

/* The save loop of the running save.  For the migration thread. */
MappedRamLoop *mapped_ram_save_loop(void);

/* The main stream of the running save.  For the migration thread. */
QEMUFile *mapped_ram_save_stream(void);

/**
 * mapped_ram_save_find:
 * @rb: a RAM block
 * @errp: pointer to a NULL-initialized error object
 *
 * For the migration thread.
 *
 * Returns: what the workers know @rb by, owned by the running save; or NULL
 *          with @errp set if mapped_ram_save_block() was not called for it
 */
MappedRamBlock *mapped_ram_save_find(RAMBlock *rb, Error **errp);

/* MappedRamLoopOps.check_space; see mapped_ram_space_check(). */
bool mapped_ram_save_check_space(void *opaque, Error **errp);

/* MappedRamLoopOps.write_bitmaps. */
bool mapped_ram_save_bitmaps(void *opaque, Error **errp);

/**
 * mapped_ram_save_drained:
 *
 * May be called from any thread.
 *
 * Returns: whether the dirty bitmap may be synchronized: no save with
 *          mapped-ram is running, or its workers have nothing to do.  Else
 *          a page could be handed to a second worker while the first one
 *          still writes it.
 */
bool mapped_ram_save_drained(void);

/**
 * mapped_ram_save_pending:
 *
 * May be called from any thread.
 *
 * Returns: how many bytes of RAM have been handed to the workers of the
 *          running save, and are not in the file yet
 */
uint64_t mapped_ram_save_pending(void);

/*
 * Makes the workers of a running save fail at once, without waiting for
 * them.  May be called from any thread.
 */
void mapped_ram_save_cancel(void);

/*
 * Stops the workers, waiting for their requests in flight, and frees all.
 * Does nothing when no save is running.  The dirty bitmaps and the
 * descriptors must live until this has returned.
 */
void mapped_ram_save_cleanup(void);

/**
 * mapped_ram_load_block:
 * @f: the main stream, behind the name and length of @rb
 * @rb: a RAM block, already of the length that the stream says
 * @errp: pointer to a NULL-initialized error object
 *
 * Reads the block's header and bitmap, checks them, loads the block's pages,
 * and moves @f to behind them.  Called by a reader of RCU, which it is not
 * while pages are loaded.
 *
 * Returns: true, or false with @errp set.
 */
bool mapped_ram_load_block(QEMUFile *f, RAMBlock *rb, Error **errp);

/* Stops the workers of a load, if there are any. */
void mapped_ram_load_cleanup(void);

/* Forgets the figures of the last save, or load, since a new one begins. */
void mapped_ram_forget(bool of_load);

/**
 * mapped_ram_info:
 * @of_load: of the load, or of the save
 *
 * The figures of the last or running save or load of this process, for
 * query-migrate.  Called with the BQL held.
 *
 * Returns: the figures, for the caller to free; or NULL if neither mapped-ram
 *          nor direct-io is set, and no migration to or from a file is
 *          running.
 */
MigrationDirectIO *mapped_ram_info(bool of_load);

#endif
