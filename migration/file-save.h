/*
 * Saving to a file: what the migration thread does about the file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The order in which the file is cut, synced and published, and the guest goes
 * on.  All functions do nothing, successfully, when the migration goes
 * elsewhere; what they have to say goes to query-migrate.
 */

#ifndef QEMU_MIGRATION_FILE_SAVE_H
#define QEMU_MIGRATION_FILE_SAVE_H

#include "migration.h"

/**
 * FileSaveRam: what writes RAM to the file past the main stream
 * @prepare: get ready, while the previous image is still there, as part of
 *           file_save_begin(); false with @errp set if RAM cannot be saved
 * @cleanup: stop, as part of file_save_abort(); more calls do nothing
 */
typedef struct FileSaveRam {
    bool (*prepare)(QEMUFile *f, Error **errp);
    void (*cleanup)(void);
} FileSaveRam;

/* Has all saves from now on use @ram.  Main thread, while none is active. */
void file_save_set_ram(const FileSaveRam *ram);

/**
 * file_save_begin: the migration thread begins
 * @s: the migration, in setup
 *
 * From here on the previous image is lost, unless the save was cancelled
 * already.  Migration thread, without the BQL.
 *
 * Returns: whether the thread may write; else it has to end, and the migration
 *          has failed or was cancelled
 */
bool file_save_begin(MigrationState *s);

/**
 * file_save_sync_early: sync while the guest runs
 * @s: the migration
 * @written: bytes written since it began
 * @pending: bytes still to be written
 *
 * Brings what a live save has written to stable storage, so that the guest
 * stops only for the rest.  Migration thread, without the BQL.
 *
 * Returns: whether the last stage has to wait
 */
bool file_save_sync_early(MigrationState *s, uint64_t written,
                          uint64_t pending);

/**
 * file_save_sync: all has been written
 * @s: the migration
 *
 * Waits for the disk.  Migration thread, without the BQL.
 *
 * Returns: whether it is on stable storage; else the save has to fail
 */
bool file_save_sync(MigrationState *s);

/**
 * file_save_publish: report that the save is completed
 * @s: the migration, whose times are known
 *
 * Whoever sees that finds the file unlocked, the final figures, and a guest
 * that can be continued at once.  A save that was cancelled meanwhile is not
 * completed.  Migration thread, with the BQL.
 */
void file_save_publish(MigrationState *s);

/**
 * file_save_abort: take back what has been written
 * @s: the migration, which has failed or was cancelled
 *
 * To be called before this outcome is published, since a new migration, or
 * another user of the file, may follow at once.  More calls do nothing.
 * Migration thread, without the BQL.
 */
void file_save_abort(MigrationState *s);

/**
 * file_save_fail: report that the save has failed
 * @s: the migration
 *
 * The guest goes on first, and does not wait for the disk.  Whoever sees the
 * failure finds the guest as it was, and may save it again at once.  A save
 * that was cancelled has not failed.  Migration thread, without the BQL.
 */
void file_save_fail(MigrationState *s);

/* Lets the user know the error of the main stream, if it has an Error. */
void file_save_keep_error(MigrationState *s);

#endif /* QEMU_MIGRATION_FILE_SAVE_H */
