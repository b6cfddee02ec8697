/*
 * The URI of a migration file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "file-transport.h"
#include "qapi/error.h"
#include "qemu/cutils.h"

#define FILE_OFFSET_OPTION ",offset="

/* Paths may contain commas, and even ",offset=", so the last one counts */
int file_parse_offset(char *filespec, uint64_t *offsetp, Error **errp)
{
    char *option = g_strrstr(filespec, FILE_OFFSET_OPTION);
    const char *value;

    *offsetp = 0;
    if (!option) {
        return 0;
    }
    value = option + strlen(FILE_OFFSET_OPTION);
    if (qemu_strtosz(value, NULL, offsetp) < 0 || *offsetp > INT64_MAX) {
        error_setg(errp, "Parameter 'offset' of the file URI must be a "
                   "number of bytes below 8E, optionally with one of the "
                   "suffixes k, M, G, T; it is '%s'", value);
        return -1;
    }
    *option = 0;
    return 0;
}

void file_start_outgoing_uri(MigrationState *s, const char *spec,
                             Error **errp)
{
    g_autofree char *path = g_strdup(spec);
    FileMigrationArgs args = { .filename = path };

    if (file_parse_offset(path, &args.offset, errp) == 0) {
        file_start_outgoing_migration(s, &args, errp);
    }
}

void file_start_incoming_uri(const char *spec, Error **errp)
{
    g_autofree char *path = g_strdup(spec);
    FileMigrationArgs args = { .filename = path };

    if (file_parse_offset(path, &args.offset, errp) == 0) {
        file_start_incoming_migration(&args, errp);
    }
}
