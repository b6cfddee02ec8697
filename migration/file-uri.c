/*
 * The URI of a migration file: file:PATH[,offset=N]
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "file-uri.h"
#include "qapi/error.h"
#include "qemu/cutils.h"

#define FILE_OFFSET_OPTION ",offset="

int file_uri_parse_offset(char *filespec, uint64_t *offsetp, Error **errp)
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
