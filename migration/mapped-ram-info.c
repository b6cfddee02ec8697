/*
 * mapped-ram: what query-migrate reports
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram.h.
 */

#include "qemu/osdep.h"
#include "exec/target_page.h"
#include "file-direct.h"
#include "file-transport.h"
#include "mapped-ram-instant.h"
#include "mapped-ram-int.h"
#include "migration.h"
#include "options.h"
#include "qemu/lockable.h"
#include "ram.h"

/* What query-migrate reports, also after the workers are gone. */
typedef struct MappedRamRecord {
    bool valid;
    MappedRamCounts counts;
    MappedRamStats stats;
    const char *engine;
    char *engine_reason;
    unsigned workers;
    unsigned depth;
    /* 0 if it was buffered */
    uint32_t alignment;
    /* why it was; a constant string, or NULL */
    const char *buffered_reason;
} MappedRamRecord;

/* The records of the last save and the last load; under mapped_ram_lock. */
static MappedRamRecord records[2];

void mapped_ram_record(MappedRam *m)
{
    MappedRamRecord *record = &records[m->load];

    record->valid = true;
    record->engine = mapped_ram_pool_engine_name(m->pool);
    g_free(record->engine_reason);
    record->engine_reason = g_strdup(mapped_ram_pool_engine_reason(m->pool));
    record->workers = m->workers;
    record->depth = m->depth;
    record->alignment = m->alignment;
    record->buffered_reason = m->buffered_reason;
    mapped_ram_pool_counts(m->pool, &record->counts);
    mapped_ram_pool_stats(m->pool, &record->stats);
}

void mapped_ram_forget(bool of_load)
{
    QEMU_LOCK_GUARD(&mapped_ram_lock);
    g_free(records[of_load].engine_reason);
    records[of_load] = (MappedRamRecord) {};
    if (of_load) {
        mapped_ram_instant_forget();
    }
}

uint64_t mapped_ram_bytes_in_flight(const MappedRamCounts *counts,
                                    const MappedRamStats *stats)
{
    uint64_t given = counts->direct_bytes + counts->buffered_bytes;
    uint64_t done = stats->direct.bytes_read + stats->direct.bytes_written +
                    stats->buffered.bytes_read + stats->buffered.bytes_written;

    return given > done ? given - done : 0;
}

/* The latency ranges in which @direct or @buffered has requests. */
static DirectIoLatencyList *latency_list(const DirectQueueStats *direct,
                                         const DirectQueueStats *buffered)
{
    DirectIoLatencyList *list = NULL, **tail = &list;

    for (unsigned i = 0; i < DIRECT_QUEUE_LATENCY_BUCKETS; i++) {
        uint64_t count = direct->latency[i] + buffered->latency[i];
        DirectIoLatency *range;

        if (count) {
            range = g_new0(DirectIoLatency, 1);
            range->from = i ? 1ULL << i : 0;
            range->has_below = i < DIRECT_QUEUE_LATENCY_BUCKETS - 1;
            range->below = range->has_below ? 2ULL << i : 0;
            range->count = count;
            QAPI_LIST_APPEND(tail, range);
        }
    }
    return list;
}

/* Fills in what the queues did. */
static void fill_stats(MigrationDirectIO *info, const MappedRamStats *stats)
{
    const DirectQueueStats *direct = &stats->direct;
    const DirectQueueStats *buffered = &stats->buffered;
    const DirectQueueStats *slow =
        direct->slowest_us >= buffered->slowest_us ? direct : buffered;

    info->direct_bytes = direct->bytes_read + direct->bytes_written;
    info->buffered_bytes = buffered->bytes_read + buffered->bytes_written;
    info->requests = direct->requests + buffered->requests;
    info->short_transfers = direct->short_transfers +
                            buffered->short_transfers;
    info->retries = direct->retries + buffered->retries;
    info->slowest = slow->slowest_us;
    info->slowest_offset = slow->slowest_offset;
    info->latency = latency_list(direct, buffered);
}

/* Fills in how the workers work or worked. */
static void fill_workers(MigrationDirectIO *info,
                         const MappedRamRecord *record,
                         const MappedRamStats *stats)
{
    info->engine = g_strdup(record->engine);
    info->engine_reason = g_strdup(record->engine_reason);
    info->has_channels = info->has_depth = info->has_depth_reached = true;
    info->channels = record->workers;
    info->depth = record->depth;
    info->depth_reached = MAX(stats->direct.max_in_flight,
                              stats->buffered.max_in_flight);
    info->has_alignment = info->active;
    info->alignment = record->alignment;
}

static void fill_progress(MigrationDirectIO *info,
                          const MappedRamRecord *record)
{
    uint64_t bytes = (record->counts.normal + record->counts.zero) *
                     qemu_target_page_size();
    uint64_t in_flight = mapped_ram_bytes_in_flight(&record->counts,
                                                    &record->stats);

    info->has_load_total = info->has_load_done = true;
    info->load_total = ram_bytes_total();
    /* After an error, pages that were read through remain in flight */
    info->load_done = bytes - MIN(bytes, in_flight);
    mapped_ram_instant_fill_info(info, info->load_done);
}

MigrationDirectIO *mapped_ram_info(bool of_load)
{
    MappedRamRecord *record = &records[of_load];
    MappedRam *running;
    MigrationDirectIO *info;
    MigrationFilePhase phase;
    MappedRamStats stats;
    bool has_phase = file_transport_phase(&phase);

    QEMU_LOCK_GUARD(&mapped_ram_lock);
    running = mapped_ram_running(of_load);
    if (running) {
        mapped_ram_record(running);
    }
    if (!record->valid && !migrate_mapped_ram() && !migrate_direct_io() &&
        !has_phase) {
        return NULL;
    }
    info = g_new0(MigrationDirectIO, 1);
    info->has_phase = has_phase;
    info->phase = has_phase ? phase : 0;
    /* Settings that are changed meanwhile apply to the next migration only */
    info->reason = g_strdup(record->valid ? record->buffered_reason :
                            file_direct_reason());
    info->active = record->valid ? record->alignment : !info->reason;
    stats = record->stats;
    if (of_load) {
        mapped_ram_instant_add_stats(&stats);
    }
    if (record->valid) {
        fill_workers(info, record, &stats);
    }
    fill_stats(info, &stats);
    if (of_load && record->valid) {
        fill_progress(info, record);
    }
    return info;
}
