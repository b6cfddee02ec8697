/*
 * mapped-ram: RAM blocks and the migration stream
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The layer between ram.c, which knows which pages are dirty, and the extents
 * (include/migration/mapped-ram-pool.h), which move pages.  Writes a header for
 * each RAM block into the stream, and owns the workers of the running save or
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
 * Returns: whether RAM is at fixed offsets of @f, and to be moved by
 *          mapped-ram-*.c: the mapped-ram capability is set, and @f is a file.
 *          A snapshot (savevm, loadvm) is not, and keeps its format.
 */
bool mapped_ram_wanted(QEMUFile *f);

/*
 * Returns whether postcopy is on and uses the stream.  With mapped-ram it never
 * does: there, the capability asks for instant restore.  Any thread.
 */
bool mapped_ram_postcopy_by_stream(void);

/*
 * To be called when a migration begins that may become a save.  Forgets the
 * figures of the last save, and arranges for the workers to start before the
 * old image is lost, see file_save_begin().  Main thread.
 */
void mapped_ram_save_init(void);

/**
 * mapped_ram_save_begin:
 * @f: the main stream
 * @ops: what the save loop needs of the base
 * @opaque: passed to @ops
 * @errp: pointer to a NULL-initialized error object
 *
 * Starts the workers, unless file_save_begin() has done so.  Called by the
 * migration thread before any block.
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
 * @f: the main stream, behind the name, length and address of the block
 * @errp: pointer to a NULL-initialized error object
 *
 * Writes a header without pages.  Called instead of mapped_ram_save_block() for
 * a RAM block that stays in its shared memory.
 *
 * Returns: true, or false with @errp set
 */
bool mapped_ram_save_left_out(QEMUFile *f, Error **errp);

/**
 * mapped_ram_save_ready:
 * @f: the main stream, behind the last block
 * @errp: pointer to a NULL-initialized error object
 *
 * Extends a regular file to the size that it needs for all of RAM, so that no
 * write of RAM has to extend it.  Then invalidates the image until it is
 * complete; see file_transport_invalidate().
 *
 * Returns: true; or false with @errp set, for example if the file can't be that
 *          large
 */
bool mapped_ram_save_ready(QEMUFile *f, Error **errp);

/*
 * Returns whether a save has workers: from file_save_begin() on, or from
 * mapped_ram_save_begin() if that has not started them, until
 * mapped_ram_save_cleanup().  May be called from any thread.
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
 * Returns: the block as the workers see it, owned by the running save; or NULL
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
 *          mapped-ram is running, or its workers have nothing to do.
 *          Otherwise a page could be handed to a second worker while the first
 *          one still writes it.
 */
bool mapped_ram_save_drained(void);

/**
 * mapped_ram_save_pending:
 *
 * May be called from any thread.
 *
 * Returns: how many bytes of RAM have been handed to the workers of the
 *          running save and are not in the file yet
 */
uint64_t mapped_ram_save_pending(void);

/*
 * Makes the workers of a running save fail at once, without waiting for
 * them.  May be called from any thread.
 */
void mapped_ram_save_cancel(void);

/*
 * Stops the workers, waiting for their requests in flight, and frees
 * everything.  Does nothing when no save is running.  The dirty bitmaps and the
 * descriptors must live until this has returned.
 */
void mapped_ram_save_cleanup(void);

/**
 * mapped_ram_load_block:
 * @f: the main stream, behind the name and length of @rb
 * @rb: a RAM block, already resized to the length in the stream
 * @errp: pointer to a NULL-initialized error object
 *
 * Reads the block's header and bitmap, checks them, loads the block's pages,
 * and moves @f to behind them.  Called under the RCU read lock, which is
 * released while pages are loaded.
 *
 * Returns: true, or false with @errp set.
 */
bool mapped_ram_load_block(QEMUFile *f, RAMBlock *rb, Error **errp);

/* Stops the workers of a load, if there are any. */
void mapped_ram_load_cleanup(void);

/* Forgets the figures of the last save or load when a new one begins. */
void mapped_ram_forget(bool of_load);

/**
 * mapped_ram_info:
 * @of_load: whether to report on the load, or on the save
 *
 * Reports on the running or last save or load of this process, for
 * query-migrate.  Called with the BQL held.
 *
 * Returns: the figures, for the caller to free; or NULL if neither mapped-ram
 *          nor direct-io is set, and no migration to or from a file is
 *          running.
 */
MigrationDirectIO *mapped_ram_info(bool of_load);

#endif
