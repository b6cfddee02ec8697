/*
 * The second descriptor of a migration file, with O_DIRECT
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A migration file is opened without O_DIRECT for the main stream, whose small
 * writes can't be aligned.  If the parameter direct-io is on, and the
 * capabilities mapped-ram and multifd are too, the file is opened a second time
 * with O_DIRECT, for guest RAM.
 *
 * All functions must be called with the BQL held, or by the thread that
 * migrates.
 */

#ifndef QEMU_MIGRATION_FILE_DIRECT_H
#define QEMU_MIGRATION_FILE_DIRECT_H

#include "io/direct-queue.h"

/* The second descriptor of a file, if it has one */
typedef struct FileDirect {
    /* -1 if there is none */
    int fd;
    /* A duplicate, to be closed when all of RAM is written, or -1 */
    int close_fd;
    /* why there is none, if not for settings; a constant string, or NULL */
    const char *reason;
    /* constraints on transfers through @fd */
    DirectIOLimits limits;
} FileDirect;

#define FILE_DIRECT_NONE { .fd = -1, .close_fd = -1 }

/* Like qemu_dup(), which QEMU does not have on Windows. */
static inline int file_direct_dup(int fd)
{
#ifdef _WIN32
    return dup(fd);
#else
    return qemu_dup(fd);
#endif
}

/**
 * file_direct_open:
 * @d: the second descriptor, not open yet
 * @path: the name of the file, as the user gave it
 * @fd: the descriptor of the main stream
 * @access: O_RDONLY or O_WRONLY, what the migration needs
 * @errp: pointer to a NULL-initialized error object
 *
 * Opens the second descriptor if one is wanted: for /dev/fdset/N it takes the
 * one there that has O_DIRECT, otherwise it opens @fd again.  Warns if the
 * parameter direct-io is on but cannot take effect, also because no descriptor
 * of the set has O_DIRECT.
 *
 * Does not write to the file or touch the guest: problems are found here,
 * before the migration begins.
 *
 * Returns: true, also if no second descriptor is wanted; false with @errp set
 *          if one is wanted but cannot be opened.
 */
bool file_direct_open(FileDirect *d, const char *path, int fd, int access,
                      Error **errp);

/**
 * file_direct_reason:
 *
 * Returns: a constant string that says why the settings rule out a second
 *          descriptor; or NULL
 */
const char *file_direct_reason(void);

/*
 * How many requests each of @workers workers may have in flight: its share of
 * the parameter x-direct-io-depth, but at least two, unless the parameter is
 * one.
 */
unsigned file_direct_depth(unsigned workers);

/**
 * file_direct_check_close:
 * @d: the second descriptor, which need not be open
 * @path: the file's name for messages
 * @errp: pointer to a NULL-initialized error object
 *
 * Closes a duplicate of the second descriptor, because some file systems report
 * errors only on close.  Works once.  To be called when all of RAM is written.
 * Migration thread, BQL not held.
 *
 * Returns: false with @errp set if there was such an error
 */
bool file_direct_check_close(FileDirect *d, const char *path, Error **errp);

/* Closes the second descriptor, if there is one. */
void file_direct_close(FileDirect *d);

#endif
