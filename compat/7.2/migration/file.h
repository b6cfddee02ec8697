/*
 * The URI of a migration file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Later versions take it apart in general code.
 */

#ifndef QEMU_MIGRATION_FILE_H
#define QEMU_MIGRATION_FILE_H

/**
 * FileMigrationArgs:
 * @filename: the file
 * @offset: where in it the image starts, in bytes
 */
typedef struct FileMigrationArgs {
    char *filename;
    uint64_t offset;
} FileMigrationArgs;

/**
 * file_parse_offset:
 * @filespec: PATH[,offset=N]; its option is cut off
 * @offsetp: where to put N, or 0 without the option
 * @errp: pointer to a NULL-initialized error object
 *
 * Returns: 0, or -1 with @errp set if N is no number of bytes
 */
int file_parse_offset(char *filespec, uint64_t *offsetp, Error **errp);

/**
 * file_start_outgoing_uri: file_start_outgoing_migration() by a URI
 * @s: the migration
 * @spec: PATH[,offset=N], the URI without its "file:"
 * @errp: pointer to a NULL-initialized error object
 */
void file_start_outgoing_uri(MigrationState *s, const char *spec,
                             Error **errp);

/* Likewise file_start_incoming_migration() */
void file_start_incoming_uri(const char *spec, Error **errp);

#endif
