/*
 * Saving to a file: stable storage before the guest is stopped
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "file-early-sync.h"
#include "file-transport.h"
#include "qemu/timer.h"
#include "trace.h"

/* The time that a sync of @bytes takes at the rate of the last sync */
static double sync_ms(const FileEarlySync *e, uint64_t bytes)
{
    return (double)bytes * e->us / MAX(e->bytes, 1) / 1000;
}

bool file_early_sync_wanted(const FileEarlySync *e, uint64_t written,
                            uint64_t pending, uint64_t threshold,
                            uint64_t downtime_ms)
{
    double ms;

    if (written <= e->synced || e->waits >= FILE_EARLY_SYNC_MAX) {
        return false;
    }
    if (!e->waits) {
        return true;
    }
    ms = sync_ms(e, written - e->synced + pending);
    if (threshold) {
        ms += (double)pending * downtime_ms / threshold;
    }
    return ms > downtime_ms;
}

bool file_early_sync(FileEarlySync *e, uint64_t written, uint64_t pending,
                     uint64_t threshold, uint64_t downtime_ms, Error **errp)
{
    int64_t start = qemu_clock_get_us(QEMU_CLOCK_REALTIME);
    bool ok;

    if (!file_early_sync_wanted(e, written, pending, threshold, downtime_ms)) {
        return false;
    }
    ok = file_transport_sync_early(errp);
    e->us = qemu_clock_get_us(QEMU_CLOCK_REALTIME) - start;
    e->bytes = written - e->synced;
    e->synced = written;
    e->waits++;
    trace_migration_file_early_sync(file_transport_name(), e->bytes,
                                    e->us, ok);
    return true;
}
