/*
 * Migration files by URI
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Later versions parse the URI in general code.
 */

#ifndef QEMU_MIGRATION_FILE_H
#define QEMU_MIGRATION_FILE_H

/**
 * FileMigrationArgs:
 * @filename: the file
 * @offset: offset in bytes at which the image starts
 */
typedef struct FileMigrationArgs {
    char *filename;
    uint64_t offset;
} FileMigrationArgs;

/**
 * file_start_outgoing_uri: file_transport_start_outgoing() with a URI
 * @s: the migration
 * @spec: PATH[,offset=N], the URI without its "file:"
 * @errp: pointer to a NULL-initialized error object
 */
void file_start_outgoing_uri(MigrationState *s, const char *spec,
                             Error **errp);

/* Likewise for file_transport_start_incoming() */
void file_start_incoming_uri(const char *spec, Error **errp);

#endif
