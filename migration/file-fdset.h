/*
 * Which descriptor of an fdset a migration file is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_FILE_FDSET_H
#define QEMU_MIGRATION_FILE_FDSET_H

/**
 * file_fdset_open:
 * @path: "/dev/fdset/N"
 * @access: O_RDONLY or O_WRONLY; a descriptor that is O_RDWR will do, too
 * @direct: whether to take the descriptor with O_DIRECT, or the one without
 * @errp: pointer to a NULL-initialized error object
 *
 * Takes just that descriptor out of a set, and changes no flag of it, which
 * qemu_open() would do: flags belong to the descriptor that was passed, too.
 *
 * Returns: a new descriptor for qemu_close(), or -1 with @errp set to what was
 *          wanted and what the set has.
 */
int file_fdset_open(const char *path, int access, bool direct, Error **errp);

#endif
