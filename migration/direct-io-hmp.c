/*
 * HMP: the direct-io section of info migrate
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/direct-io-hmp.h"

static void print_how(Monitor *mon, const MigrationDirectIO *info)
{
    monitor_printf(mon, "direct-io: %s", info->active ? "active" : "inactive");
    if (info->reason) {
        monitor_printf(mon, ", because %s", info->reason);
    }
    if (info->has_alignment) {
        monitor_printf(mon, ", alignment %" PRIu32 " bytes", info->alignment);
    }
    if (info->has_phase) {
        monitor_printf(mon, ", phase %s", MigrationFilePhase_str(info->phase));
    }
    monitor_printf(mon, "\n");

    if (info->engine) {
        monitor_printf(mon, "direct-io engine: %s, %" PRIu32 " workers, "
                       "depth %" PRIu32 ", reached %" PRIu32 "\n",
                       info->engine, info->channels, info->depth,
                       info->depth_reached);
    }
    if (info->engine_reason) {
        monitor_printf(mon, "direct-io engine reason: %s\n",
                       info->engine_reason);
    }
}

static void print_latency(Monitor *mon, const DirectIoLatencyList *latency)
{
    const char *separator = "direct-io latency:";

    for (; latency; latency = latency->next) {
        const DirectIoLatency *range = latency->value;

        monitor_printf(mon, "%s %" PRIu64 "-", separator, range->from);
        if (range->has_below) {
            monitor_printf(mon, "%" PRIu64, range->below);
        }
        monitor_printf(mon, " us: %" PRIu64, range->count);
        separator = ",";
    }
    if (*separator == ',') {
        monitor_printf(mon, "\n");
    }
}

static void print_instant(Monitor *mon, const MigrationInstantRestore *info)
{
    monitor_printf(mon, "instant restore: %s\n",
                   info->active ? "active" : "inactive");
    if (info->reason) {
        /* This can be so for some RAM blocks, while others are not loaded. */
        monitor_printf(mon, "instant restore: eager in part or whole, because "
                       "%s\n", info->reason);
    }
    if (!info->total) {
        return;
    }
    monitor_printf(mon, "instant restore ram: %" PRIu64 " kbytes, %" PRIu64
                   " by faults, %" PRIu64 " in the background, %" PRIu64
                   " of these moved\n", info->total >> 10,
                   info->fault_bytes >> 10, info->background_bytes >> 10,
                   info->moved_bytes >> 10);
    monitor_printf(mon, "instant restore faults: %" PRIu64 ", median %" PRIu64
                   " us, p99 %" PRIu64 " us, slowest %" PRIu64
                   " us at offset %" PRIu64 "; %" PRIu64 " on pages that are "
                   "zero\n", info->faults, info->fault_median,
                   info->fault_p99, info->fault_slowest,
                   info->fault_slowest_offset, info->zero_faults);
}

void hmp_info_direct_io(Monitor *mon, const MigrationInfo *migration)
{
    const MigrationDirectIO *info = migration->direct_io;

    if (!info) {
        return;
    }
    print_how(mon, info);
    monitor_printf(mon, "direct-io ram: %" PRIu64 " kbytes direct, %" PRIu64
                   " kbytes buffered, %" PRIu64 " requests, %" PRIu64
                   " short, %" PRIu64 " retries\n", info->direct_bytes >> 10,
                   info->buffered_bytes >> 10, info->requests,
                   info->short_transfers, info->retries);
    if (info->slowest) {
        monitor_printf(mon, "direct-io slowest request: %" PRIu64 " us at "
                       "offset %" PRIu64 "\n", info->slowest,
                       info->slowest_offset);
    }
    print_latency(mon, info->latency);
    if (info->has_load_total) {
        monitor_printf(mon, "direct-io loaded: %" PRIu64 " of %" PRIu64
                       " kbytes\n", info->load_done >> 10,
                       info->load_total >> 10);
    }
    if (info->instant) {
        print_instant(mon, info->instant);
        if (info->instant->active && migration->error_desc) {
            monitor_printf(mon, "instant restore error: %s\n",
                           migration->error_desc);
        }
    }
}
