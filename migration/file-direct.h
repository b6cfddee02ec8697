/*
 * The second descriptor of a migration file, with O_DIRECT
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A migration file is open once without O_DIRECT, for the main stream, whose
 * small writes can't be aligned.  If the parameter direct-io asks for it, and
 * the capabilities mapped-ram and multifd let it, the file is open a second
 * time with O_DIRECT, for guest RAM.
 *
 * All functions are to be called with the BQL held, or by the thread that
 * migrates.
 */

#ifndef QEMU_MIGRATION_FILE_DIRECT_H
#define QEMU_MIGRATION_FILE_DIRECT_H

#include "io/direct-queue.h"

/* The second descriptor of a file, if it has one */
typedef struct FileDirect {
    /* or -1 */
    int fd;
    /* A duplicate, to be closed when all of RAM is written, or -1 */
    int close_fd;
    /* what transfers on it must obey */
    DirectIOLimits limits;
} FileDirect;

#define FILE_DIRECT_NONE { .fd = -1, .close_fd = -1 }

/**
 * file_direct_open:
 * @d: what has none yet
 * @path: the name of the file, as the user gave it
 * @fd: the descriptor of the main stream
 * @access: O_RDONLY or O_WRONLY, what the migration needs
 * @errp: pointer to a NULL-initialized error object
 *
 * Gets the second descriptor, if it is wanted: for a /dev/fdset/N it is the
 * one there that has O_DIRECT, else @fd is opened again.  If direct-io is on
 * and can't have an effect, warns.
 *
 * Nothing is written to the file, and the guest is not touched: whatever is
 * wrong is found here, before the migration begins.
 *
 * Returns: true also when no second descriptor is wanted; false with @errp
 *          set when it is and can't be had.
 */
bool file_direct_open(FileDirect *d, const char *path, int fd, int access,
                      Error **errp);

/**
 * file_direct_reason:
 *
 * Returns: why there is no second descriptor, a constant string; or NULL if
 *          there is one or could be one.
 */
const char *file_direct_reason(void);

/*
 * How many requests each of @channels workers may have in flight: its share
 * of what the parameter x-direct-io-depth says, but at least two, unless that
 * says one.
 */
unsigned file_direct_depth(unsigned channels);

/**
 * file_direct_check_close:
 * @d: the second descriptor, or none
 * @path: the file's name for messages
 * @errp: pointer to a NULL-initialized error object
 *
 * Asks for errors that a file system reports only when a descriptor is
 * closed, by closing a duplicate of the second one.  Works once.  To be
 * called when all of RAM is written.  Migration thread, BQL not held.
 *
 * Returns: false with @errp set if there was such an error
 */
bool file_direct_check_close(FileDirect *d, const char *path, Error **errp);

/* Closes the second descriptor, if there is one. */
void file_direct_close(FileDirect *d);

#endif
