/*
 * Saving to a file: the guest in the last stage
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "file-last-stage.h"
#include "file-queue.h"
#include "file-transport.h"
#include "options.h"
#include "qapi/error.h"
#include "trace.h"

/* Whether the save has the guest, stopped; protected by the BQL */
static bool has_guest;

void file_last_stage_begin(QEMUFile *f)
{
    has_guest = file_transport_active();
    if (has_guest && migrate_mapped_ram()) {
        file_queue_begin(qemu_file_get_ioc(f));
    }
}

void file_last_stage_flush(QEMUFile *f)
{
    Error *err = NULL;

    if (qemu_file_get_error(f)) {
        file_queue_drop();
    } else if (!file_queue_flush(&err)) {
        qemu_file_set_error_obj(f, -EIO, err);
    }
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
    file_queue_drop();
}
