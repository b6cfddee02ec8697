/*
 * Saving to a file: the guest in the last stage
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * In the last stage of a save, in CPR modes from its start, the guest is
 * stopped while the save waits for the disk, which may take long or forever.
 * If the save then fails or is cancelled, the guest need not wait: workers only
 * read its RAM, so it runs while they finish and the file is truncated.  Until
 * then the migration counts as running, so that no other one can start.
 */

#ifndef QEMU_MIGRATION_FILE_LAST_STAGE_H
#define QEMU_MIGRATION_FILE_LAST_STAGE_H

#include "qapi/qapi-types-run-state.h"
#include "qemu-file.h"

/**
 * file_last_stage_stop_guest: note that the migration will stop the guest now
 *
 * Stopping the guest drops the BQL.  file_last_stage_guest_stopped() must
 * follow.  Does nothing if the migration is not to a file.  BQL held.
 */
void file_last_stage_stop_guest(void);

/**
 * file_last_stage_guest_stopped: note that the migration has stopped the guest
 *
 * Does nothing if the migration is not to a file.  BQL held.
 */
void file_last_stage_guest_stopped(void);

/**
 * file_last_stage_begin: begin the last stage, in which the guest is stopped
 * @f: the main stream
 *
 * With mapped-ram, data written to @f with the BQL held is kept in memory from
 * now on, see file-queue.h.  Does nothing if the migration is not to a file.
 * Migration thread, with the BQL.
 */
void file_last_stage_begin(QEMUFile *f);

/**
 * file_last_stage_check_jobs: check that no job writes to inactive disks
 * @guest_stopped: whether the guest is stopped, so that a job which has nothing
 *                 left to copy stays so; waits for the requests of jobs
 * @errp: where to report a job
 *
 * A job that mirrors a disk lets its target be inactivated, as the guest writes
 * no more.  But it may have data left, and writes it when the BQL is released;
 * QEMU would abort.  While the guest runs, only jobs that are not ready yet are
 * reported.  BQL held, before disks are inactivated.
 *
 * Returns: false if there is such a job
 */
bool file_last_stage_check_jobs(bool guest_stopped, Error **errp);

/**
 * file_last_stage_flush: write the data that was kept in memory
 * @f: the main stream, which gets the error if there is one
 *
 * Migration thread, without the BQL.
 */
void file_last_stage_flush(QEMUFile *f);

/**
 * file_last_stage_take_guest: decide who resumes the guest
 *
 * For a save that has failed or was cancelled.  BQL held.
 *
 * Returns: true for the first caller after file_last_stage_guest_stopped(),
 *          who must resume the guest; then false
 */
bool file_last_stage_take_guest(void);

/**
 * file_last_stage_has_guest: whether a save has stopped the guest, or does so
 *
 * Nobody else may start it then, as a debugger could.  BQL held.
 */
bool file_last_stage_has_guest(void);

/**
 * file_last_stage_end: leave the guest stopped
 *
 * For a save that is completed: the guest may be continued.  BQL held.
 */
void file_last_stage_end(void);

/**
 * file_last_stage_stop: note that the guest is to stay stopped
 * @state: why: the state that it gets if the save fails or is cancelled
 *
 * For a `stop`, or an I/O error of a disk, while file_last_stage_has_guest().
 * Does nothing at other times.  BQL held.
 */
void file_last_stage_stop(RunState state);

#endif /* QEMU_MIGRATION_FILE_LAST_STAGE_H */
