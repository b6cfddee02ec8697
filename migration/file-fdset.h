/*
 * Finding the descriptor of a migration file in an fdset
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_FILE_FDSET_H
#define QEMU_MIGRATION_FILE_FDSET_H

/**
 * file_fdset_open:
 * @path: "/dev/fdset/N"
 * @access: O_RDONLY or O_WRONLY; a descriptor that is O_RDWR will do, too
 * @direct: whether to take the descriptor with O_DIRECT or the one without
 * @errp: pointer to a NULL-initialized error object
 *
 * Duplicates that descriptor of the set.  Unlike qemu_open() this changes no
 * flags, because the duplicate shares them with the original.
 *
 * Returns: a new descriptor for qemu_close(), or -1 with @errp set to what was
 *          wanted and what the set has.
 */
int file_fdset_open(const char *path, int access, bool direct, Error **errp);

/**
 * file_fdset_lacks_direct:
 * @path: name of a file
 *
 * Returns: whether it is "/dev/fdset/N", and none of that set's descriptors has
 *          O_DIRECT
 */
bool file_fdset_lacks_direct(const char *path);

#endif
