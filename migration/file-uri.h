/*
 * The URI of a migration file: file:PATH[,offset=N]
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_FILE_URI_H
#define QEMU_MIGRATION_FILE_URI_H

/**
 * file_uri_parse_offset:
 * @filespec: PATH[,offset=N]; its option is cut off
 * @offsetp: where to put N, or 0 without the option
 * @errp: pointer to a NULL-initialized error object
 *
 * Paths may contain commas, and even ",offset=", so the last one counts.
 *
 * Returns: 0, or -1 with @errp set if N is not a valid number of bytes
 */
int file_uri_parse_offset(char *filespec, uint64_t *offsetp, Error **errp);

#endif
