/*
 * Saving to a file: the guest in the last stage
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "file-last-stage.h"
#include "file-transport.h"
#include "trace.h"

/* Whether the save has the guest, stopped; protected by the BQL */
static bool has_guest;

void file_last_stage_begin(void)
{
    has_guest = file_transport_active();
}

bool file_last_stage_take_guest(void)
{
    bool taken = has_guest;

    has_guest = false;
    if (taken) {
        trace_migration_file_resume(file_transport_name());
    }
    return taken;
}

void file_last_stage_end(void)
{
    has_guest = false;
}
