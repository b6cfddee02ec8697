/*
 * Saving to a file: the guest in the last stage
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * In its last stage a save has stopped the guest and waits for the disk,
 * which may take long or for ever.  If the save fails or is cancelled then,
 * the guest does not wait: workers only read its RAM, so it runs while they
 * end and while the file is cut.  Until all of that is done the migration
 * counts as running, so that no other one can start.
 */

#ifndef QEMU_MIGRATION_FILE_LAST_STAGE_H
#define QEMU_MIGRATION_FILE_LAST_STAGE_H

#include "qemu-file.h"

/**
 * file_last_stage_begin: the migration thread has stopped the guest
 * @f: the main stream
 *
 * With mapped-ram, what is written to @f with the BQL held is kept in memory
 * from now on, see file-queue.h.  Does nothing if the migration does not go
 * to a file.  BQL held, and not released since the guest was stopped.
 */
void file_last_stage_begin(QEMUFile *f);

/**
 * file_last_stage_flush: write what was kept
 * @f: the main stream, which gets the error if there is one
 *
 * Migration thread, without the BQL.
 */
void file_last_stage_flush(QEMUFile *f);

/**
 * file_last_stage_take_guest: whoever asks first shall resume the guest
 *
 * For a save that has failed or was cancelled.  BQL held.
 *
 * Returns: true once after file_last_stage_begin(), then false
 */
bool file_last_stage_take_guest(void);

#endif /* QEMU_MIGRATION_FILE_LAST_STAGE_H */
