/*
 * Migration files by URI
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "file-transport.h"
#include "file-uri.h"

void file_start_outgoing_uri(MigrationState *s, const char *spec,
                             Error **errp)
{
    g_autofree char *path = g_strdup(spec);
    FileMigrationArgs args = { .filename = path };

    if (file_uri_parse_offset(path, &args.offset, errp) == 0) {
        file_transport_start_outgoing(s, &args, errp);
    }
}

void file_start_incoming_uri(const char *spec, Error **errp)
{
    g_autofree char *path = g_strdup(spec);
    FileMigrationArgs args = { .filename = path };

    if (file_uri_parse_offset(path, &args.offset, errp) == 0) {
        file_transport_start_incoming(&args, errp);
    }
}
