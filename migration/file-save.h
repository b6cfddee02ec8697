/*
 * Saving to a file: what the migration thread does with the file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The order in which the file is truncated, synced and published, and the guest
 * is resumed.  If the migration is not to a file, all functions do nothing and
 * succeed, except file_save_publish() and file_save_fail(), which must not be
 * called then.  Errors are reported through query-migrate.
 */

#ifndef QEMU_MIGRATION_FILE_SAVE_H
#define QEMU_MIGRATION_FILE_SAVE_H

#include "migration.h"

/**
 * FileSaveRam: how RAM is written to the file, outside of the main stream
 * @prepare: called by file_save_begin() while the previous image still exists;
 *           returns false with @errp set if RAM cannot be saved
 * @cleanup: called by file_save_abort() to stop; more calls do nothing
 * @is_clean: returns whether RAM is saved this way and there is nothing useful
 *            left to write: at the last look no page was dirty, or a pass did
 *            not reduce their number.  Migration thread.
 */
typedef struct FileSaveRam {
    bool (*prepare)(QEMUFile *f, Error **errp);
    void (*cleanup)(void);
    bool (*is_clean)(void);
} FileSaveRam;

/* Sets @ram for all saves from now on.  Main thread, while none is active. */
void file_save_set_ram(const FileSaveRam *ram);

/**
 * file_save_begin: prepare RAM and the file for a save
 * @s: the migration, in setup
 *
 * Migration thread, without the BQL.
 *
 * Returns: true if the migration thread may write; the previous image is then
 *          lost.  False if it must end, because the migration has failed or
 *          was cancelled; the previous image is then kept.
 */
bool file_save_begin(MigrationState *s);

/**
 * file_save_pending: what is to be saved before the last stage
 * @pending: bytes that are still to be saved, of all devices
 *
 * For a guest that is stopped already, the downtime does not matter.  Some data
 * can be saved in the last stage only, such as dirty bitmaps of disks.  If such
 * data takes longer than the limit, the last stage would never begin.
 *
 * Migration thread, once or twice for each iteration.
 *
 * Returns: 0 if the guest is stopped, its RAM is saved, and @pending has not
 *          become less since the last call; otherwise @pending
 */
uint64_t file_save_pending(uint64_t pending);

/**
 * file_save_sync_early: sync while the guest runs
 * @s: the migration
 * @written: bytes written since the migration began
 * @pending: bytes still to be written
 *
 * Syncs what a live save has written so far, so that the guest stops only for
 * the rest.  Migration thread, without the BQL.
 *
 * Returns: whether the last stage must be delayed
 */
bool file_save_sync_early(MigrationState *s, uint64_t written,
                          uint64_t pending);

/**
 * file_save_sync: sync the file after everything has been written
 * @s: the migration
 *
 * Waits for the disk.  Migration thread, without the BQL.
 *
 * Returns: true if it is on stable storage; otherwise the save must fail
 */
bool file_save_sync(MigrationState *s);

/**
 * file_save_forget_error: forget the error that query-migrate shows
 *
 * Otherwise the load of a snapshot takes it for its own and fails, when the
 * disks have been reverted already.  Main thread, while nothing is saved.
 */
void file_save_forget_error(void);

/**
 * file_save_check_idle: refuse what does not go together with a save
 * @errp: pointer to a NULL-initialized error object
 *
 * The last stage does not hold the BQL all the time, so commands may be called
 * that otherwise would have to wait for its end, such as those that save or
 * load snapshots.  BQL held.
 *
 * Returns: true; or false with @errp set while the machine is saved to a file
 */
bool file_save_check_idle(Error **errp);

/**
 * file_save_check_postcopy: refuse to start postcopy in a save
 * @errp: pointer to a NULL-initialized error object
 *
 * After that a save that fails could not resume the guest.  With capability
 * dirty-bitmaps, which does not need postcopy in a file, QEMU would start it.
 * BQL held.
 *
 * Returns: true; or false with @errp set while the machine is saved to a file
 */
bool file_save_check_postcopy(Error **errp);

/**
 * file_save_publish: report that the save is completed
 * @s: the migration, whose times are known
 *
 * A client that sees this status finds the file unlocked, the final figures,
 * and a guest that can be continued at once.  A save that was cancelled
 * meanwhile is not completed.  Migration thread, with the BQL.
 */
void file_save_publish(MigrationState *s);

/**
 * file_save_release_guest: let the guest run as before the save
 * @s: the migration, which has failed or was cancelled
 *
 * Resumes the guest if the save has stopped it, and ends its throttling, so
 * that it need not wait until the save has ended.  More calls do nothing.  BQL
 * held.
 */
void file_save_release_guest(MigrationState *s);

/**
 * file_save_abort: undo what has been written
 * @s: the migration, which has failed or was cancelled
 *
 * First ends the write protection of a background snapshot, and releases the
 * guest, unless the image is committed: the guest must not run while its image
 * is valid.  Then waits for the disk.
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
 * Calls file_save_abort(), and then releases the guest if that has not done so.
 * A client that sees the failure finds the guest as it was, and may save it
 * again at once.  A save that was cancelled is not reported as failed.
 * Migration thread, without the BQL.
 */
void file_save_fail(MigrationState *s);

/* Reports the error of the main stream to the user, if it has an Error. */
void file_save_keep_error(MigrationState *s);

#endif /* QEMU_MIGRATION_FILE_SAVE_H */
