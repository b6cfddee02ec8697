/*
 * Migration to and from a file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The transport of the URIs file:PATH and file:PATH,offset=N, which
 * file_uri_parse_offset() parses. A process has at most one such migration at a
 * time, outgoing or incoming, and the functions below apply to it. It lasts
 * from a successful file_transport_start_*() or file_transport_adopt() to
 * file_transport_cleanup().
 */

#ifndef QEMU_MIGRATION_FILE_TRANSPORT_H
#define QEMU_MIGRATION_FILE_TRANSPORT_H

#include "file.h"
#include "io/channel.h"
#include "qemu/direct-io.h"
#include "qapi/qapi-types-direct-io.h"

/**
 * file_transport_start_outgoing: open a file and connect @s to it
 * @s: the migration
 * @file_args: the file and the offset in it
 * @errp: where to put errors
 *
 * Every error that can be detected now is reported in @errp. The contents of
 * the file are not touched before file_transport_begin(). Main thread.
 */
void file_transport_start_outgoing(MigrationState *s,
                                   FileMigrationArgs *file_args, Error **errp);

/**
 * file_transport_start_incoming: open a file and load from it
 * @file_args: the file and the offset in it
 * @errp: where to put errors
 *
 * Loading starts from the main loop. Main thread.
 */
void file_transport_start_incoming(FileMigrationArgs *file_args, Error **errp);

/**
 * file_transport_adopt: take a file that was passed by fd:
 * @ioc: the channel of the descriptor, a file channel at its offset
 * @fdname: the name of the descriptor
 * @outgoing: whether to save to it
 * @errp: where to put errors
 *
 * Applies the checks, lock and sync of the file: transport to a mapped-ram
 * migration to or from fd:. All checks come before any change. The file is
 * not truncated, because the data behind the image may belong to another user.
 * Main thread.
 *
 * Returns: true on success
 */
bool file_transport_adopt(QIOChannel *ioc, const char *fdname, bool outgoing,
                          Error **errp);

/**
 * file_transport_check_end: warn about a file whose very end is missing
 * @f: the main stream, from which all of the guest's state has been loaded
 *
 * The description of the device state comes last. QEMU reads and discards it,
 * and does not notice if it is missing, but then the file is truncated. Does
 * nothing when the migration does not come from a file. Main thread.
 */
void file_transport_check_end(QEMUFile *f);

/**
 * file_transport_load_error: say why a load has failed
 * @f: the main stream
 * @ret: the negative errno value that the load returned
 * @errp: points to the caller's error or to NULL; set to the whole message
 *
 * An error of @f replaces the caller's, which is only its consequence. Reports
 * which file it was, if the migration comes from one. Main thread.
 */
void file_transport_load_error(QEMUFile *f, int ret, Error **errp);

/**
 * file_transport_begin: make room for the new image
 * @errp: where to put errors
 *
 * To be called once, before anything is written: truncates a regular file to
 * the offset of the image, so that the previous image is lost. Does nothing if
 * the migration is not to a file. Migration thread, BQL not held.
 *
 * Returns: true on success. On failure the file is as it was.
 */
bool file_transport_begin(Error **errp);

/**
 * file_transport_invalidate: invalidate the image until it is complete
 * @errp: where to put errors
 *
 * To be called once the beginning of the stream is in the file. Overwrites
 * the magic number, which file_transport_sync() writes back when everything
 * else is on stable storage. Pages and stream are written through different
 * descriptors, so a crash of the host may keep one and lose the other, and a
 * block device still contains an earlier image. Such a mixture must never be
 * restored. Does nothing if the migration is not to a file. Migration thread,
 * BQL not held.
 *
 * Returns: true on success
 */
bool file_transport_invalidate(Error **errp);

/**
 * file_transport_sync_early: sync what has been written so far
 * @errp: where to put errors
 *
 * For a save that continues; the image stays invalid.  Waits for the disk.
 * Migration thread, without the BQL.
 *
 * Returns: true on success
 */
bool file_transport_sync_early(Error **errp);

/**
 * file_transport_sync: sync the file and commit the image
 * @errp: where to put errors
 *
 * To be called when everything has been written, and before the migration is
 * reported as completed. Brings the file to stable storage, which may take
 * long, unless it is a regular file and the parameter file-sync is off, and
 * checks each descriptor that was written to for late errors. Does nothing if
 * the migration is not to a file. Migration thread, BQL not held.
 *
 * Returns: true on success. On failure the image must not be trusted.
 */
bool file_transport_sync(Error **errp);

/*
 * Returns: whether the image is valid or about to be, so that it is too late to
 *          cancel.  BQL held, or the migration thread.
 */
bool file_transport_committed(void);

/**
 * file_transport_unlock: let other processes use the file
 *
 * To be called right before the migration is reported as completed, when it
 * can no longer be cancelled: a client that sees this may use the file at once.
 * BQL held.
 */
void file_transport_unlock(void);

/**
 * file_transport_take_lock: keep the lock when the transport is freed
 *
 * For a load that continues after file_transport_cleanup(). The lock belongs to
 * the open file description, and so to every duplicate of the main stream's
 * descriptor. Main thread.
 *
 * Returns: true if the file is locked; the caller must then unlock all of it
 * with qemu_unlock_fd()
 */
bool file_transport_take_lock(void);

/**
 * file_transport_discard: undo a save that has failed or was cancelled
 *
 * Truncates the file to the offset of the image (or, on a block device, on a
 * file passed by fd:, or if that fails, overwrites the first bytes of the
 * image), so that its space is free and the rest cannot be mistaken for an
 * image; warns if it cannot. Then releases the lock. If file_transport_begin()
 * has not succeeded, only removes the file if this migration created it. Does
 * nothing if called again.
 *
 * Syncs block devices, and images that were committed, so it may wait for the
 * disk. All writers must have stopped. Migration thread, or main thread when
 * the migration thread has ended.
 */
void file_transport_discard(void);

/**
 * file_transport_cleanup: close and forget the file
 *
 * Releases the lock on the file and its descriptors, and removes a file that
 * was created for a save that never began. May be called again, and when there
 * is no migration to or from a file. Main thread; all other users must have
 * stopped.
 */
void file_transport_cleanup(void);

/**
 * file_transport_set_phase: set the phase of the migration
 * @phase: for file_transport_phase()
 *
 * Does nothing if the migration is not to or from a file. The transport sets
 * MIGRATION_FILE_PHASE_SETUP and _SYNC itself, and all phases of a migration
 * without mapped-ram.
 */
void file_transport_set_phase(MigrationFilePhase phase);

/**
 * file_transport_phase: get the phase of the migration
 * @phase: set to the phase
 *
 * Does not wait for the disk. BQL held, or the migration thread.
 *
 * Returns: true if a migration to or from a file is running
 */
bool file_transport_phase(MigrationFilePhase *phase);

/*
 * The following functions may be called from any thread that the migration
 * waits for before it calls file_transport_cleanup().
 */

/**
 * file_transport_active: whether there is a migration to or from a file
 */
bool file_transport_active(void);

/**
 * file_transport_name: get the file's name for messages
 *
 * Returns: the path as the user gave it, or "fd:NAME", owned by the transport;
 * or NULL when not active
 */
const char *file_transport_name(void);

/**
 * file_transport_offset: where in the file the image starts, in bytes
 */
uint64_t file_transport_offset(void);

/**
 * file_transport_direct_fd: the descriptor for guest RAM
 * @limits: set to the constraints on its transfers, if there is one
 *
 * Returns: a descriptor with O_DIRECT, owned by the transport; or -1
 */
int file_transport_direct_fd(DirectIOLimits *limits);

/*
 * Returns: a constant string that says why there is no such descriptor; or NULL
 */
const char *file_transport_direct_reason(void);

#endif
