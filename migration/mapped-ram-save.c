/*
 * mapped-ram: RAM blocks and the migration stream
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram.h.
 */

#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "exec/target_page.h"
#include "file-direct.h"
#include "file-transport.h"
#include "io/channel-file.h"
#include "migration.h"
#include "options.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "ram.h"
#include "mapped-ram.h"
#include "mapped-ram-space.h"
#include "trace.h"

typedef struct MappedRam {
    bool load;
    MappedRamPool *pool;
    unsigned workers;
    unsigned depth;
    uint32_t alignment;
    /* RAMBlock to MappedRamBlock; changed only in the setup of a save */
    GHashTable *blocks;
    MappedRamSpaceCheck space;
    bool space_checked;
    /* what mapped_ram_save_delta() has reported already */
    MappedRamCounts reported;
} MappedRam;

/*
 * Made and freed by the thread that migrates, or with the iothread lock when
 * there is no such thread.  The lock below is for those who cancel or ask.
 */
static MappedRam *saving;
static MappedRam *loading;
static QemuMutex running_lock;

/* What query-migrate shows, also after the workers are gone. */
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
} MappedRamRecord;

/* Of the last save and of the last load; with the iothread lock. */
static MappedRamRecord records[2];

static void __attribute__((constructor)) mapped_ram_init(void)
{
    qemu_mutex_init(&running_lock);
}

bool mapped_ram_wanted(QEMUFile *f)
{
    return migrate_mapped_ram() && qemu_file_is_seekable(f);
}

static void extent_block_free(void *opaque)
{
    MappedRamBlock *b = opaque;

    g_free(b->present);
    g_free(b);
}

/* What to call @f in messages; the file transport names the file. */
static const char *stream_name(QEMUFile *f)
{
    return qemu_file_get_ioc(f)->name ?: "the migration file";
}

/* The descriptor behind @f, which is seekable and so a file channel. */
static int stream_fd(QEMUFile *f)
{
    return QIO_CHANNEL_FILE(qemu_file_get_ioc(f))->fd;
}

/* Notes the figures of @m for mapped_ram_info().  With running_lock. */
static void mapped_ram_record(MappedRam *m)
{
    MappedRamRecord *record = &records[m->load];

    record->valid = true;
    record->engine = mapped_ram_pool_engine_name(m->pool);
    g_free(record->engine_reason);
    record->engine_reason = g_strdup(mapped_ram_pool_engine_reason(m->pool));
    record->workers = m->workers;
    record->depth = m->depth;
    record->alignment = m->alignment;
    mapped_ram_pool_counts(m->pool, &record->counts);
    mapped_ram_pool_stats(m->pool, &record->stats);
}

void mapped_ram_forget(bool of_load)
{
    QEMU_LOCK_GUARD(&running_lock);
    g_free(records[of_load].engine_reason);
    records[of_load] = (MappedRamRecord) {};
}

static MappedRam *mapped_ram_new(QEMUFile *f, bool load, Error **errp)
{
    MappedRamPoolConfig config = {
        .name = stream_name(f),
        .thread_name = load ? "mapped-load" : "mapped-save",
        .fd = stream_fd(f),
        .workers = migrate_multifd() ? migrate_multifd_channels() : 1,
        .engine = file_direct_engine(),
    };
    MappedRamPool *pool;
    MappedRam *m;

    config.depth = file_direct_depth(config.workers);
    config.direct_fd = file_direct_fd(&config.direct_limits);
    pool = mapped_ram_pool_new(&config, errp);
    if (!pool) {
        return NULL;
    }
    m = g_new0(MappedRam, 1);
    m->load = load;
    m->pool = pool;
    m->workers = config.workers;
    m->depth = config.direct_fd < 0 ? 1 : config.depth;
    m->alignment = config.direct_fd < 0 ? 0 :
                   config.direct_limits.offset_align;
    m->blocks = g_hash_table_new_full(NULL, NULL, NULL, extent_block_free);
    m->space = (MappedRamSpaceCheck) {
        .fd = config.fd, .name = config.name, .blocks = m->blocks,
    };
    return m;
}

/* Takes the save or load out of sight, to be freed; NULL if there is none. */
static MappedRam *mapped_ram_take(MappedRam **running)
{
    MappedRam *m;

    QEMU_LOCK_GUARD(&running_lock);
    m = *running;
    *running = NULL;
    if (m) {
        mapped_ram_record(m);
    }
    return m;
}

/* Waits for requests in flight. */
static void mapped_ram_free(MappedRam *m)
{
    mapped_ram_pool_free(m->pool);
    g_hash_table_destroy(m->blocks);
    g_free(m);
}

static MappedRamBlock *extent_block_new(RAMBlock *rb,
                                        const MappedRamLayout *layout)
{
    MappedRamBlock *b = g_new0(MappedRamBlock, 1);

    b->name = rb->idstr;
    b->host = rb->host;
    b->layout = *layout;
    b->present = g_malloc0(mapped_ram_layout_bitmap_size(layout));
    /* Reading unplugged memory, to see if it is zero, would populate it. */
    b->keep_absent = memory_region_has_ram_discard_manager(rb->mr);
    b->shared_fd = qemu_ram_is_shared(rb) && !rb->fd_offset ? rb->fd : -1;
    return b;
}

/* Passes an error of the stream on. */
static bool stream_ok(QEMUFile *f, Error **errp)
{
    Error *err = NULL;

    if (!qemu_file_get_error_obj(f, &err)) {
        return true;
    }
    if (!err) {
        error_setg(&err, "%s: the stream has failed", stream_name(f));
    }
    error_propagate(errp, err);
    return false;
}

bool mapped_ram_save_begin(QEMUFile *f, Error **errp)
{
    MappedRam *m = mapped_ram_new(f, false, errp);

    assert(!saving);
    WITH_QEMU_LOCK_GUARD(&running_lock) {
        saving = m;
    }
    return m != NULL;
}

bool mapped_ram_saving(void)
{
    return saving != NULL;
}

bool mapped_ram_save_block(QEMUFile *f, RAMBlock *rb, Error **errp)
{
    uint8_t header[MAPPED_RAM_HEADER_SIZE];
    MappedRamLayout layout;
    off_t offset = qemu_get_offset(f);

    if (!stream_ok(f, errp) ||
        !mapped_ram_layout_init(&layout, rb->idstr, offset, rb->used_length,
                                qemu_target_page_size(), errp)) {
        return false;
    }
    trace_mapped_ram_block(rb->idstr, layout.bitmap_offset,
                           layout.pages_offset, layout.length);
    mapped_ram_header_encode(&layout, header);
    qemu_put_buffer(f, header, sizeof(header));
    qemu_set_offset(f, mapped_ram_layout_end(&layout), SEEK_SET);
    g_hash_table_insert(saving->blocks, rb, extent_block_new(rb, &layout));
    return true;
}

bool mapped_ram_save_ready(QEMUFile *f, Error **errp)
{
    off_t end = qemu_get_offset(f);
    struct stat st;

    if (!stream_ok(f, errp)) {
        return false;
    }
    if (fstat(stream_fd(f), &st) == 0 && S_ISREG(st.st_mode) &&
        st.st_size < end && ftruncate(stream_fd(f), end) < 0) {
        error_setg_errno(errp, errno, "%s: the file can't be %" PRId64
                         " bytes large, which RAM needs",
                         stream_name(f), (int64_t)end);
        return false;
    }
    if (!file_transport_hold(errp)) {
        return false;
    }
    file_transport_set_phase(MIGRATION_FILE_PHASE_RAM);
    return true;
}

bool mapped_ram_save_extent(RAMBlock *rb, MappedRamExtent *extent, Error **errp)
{
    extent->block = g_hash_table_lookup(saving->blocks, rb);
    if (!extent->block) {
        error_setg(errp, "RAM block '%s' has come during the migration, and "
                   "has no place in the file", rb->idstr);
        return false;
    }
    if (!saving->space_checked && !mapped_ram_save_check_space(errp)) {
        return false;
    }
    return mapped_ram_pool_save(saving->pool, extent, errp);
}

bool mapped_ram_save_check_space(Error **errp)
{
    saving->space_checked = true;
    return mapped_ram_space_check(&saving->space, errp);
}

bool mapped_ram_save_wait_scanned(Error **errp)
{
    return mapped_ram_pool_wait_scanned(saving->pool, errp);
}

bool mapped_ram_save_drain(Error **errp)
{
    return mapped_ram_pool_drain(saving->pool, errp);
}

void mapped_ram_save_delta(MappedRamCounts *delta)
{
    MappedRamCounts now, *reported = &saving->reported;

    mapped_ram_pool_counts(saving->pool, &now);
    delta->normal = now.normal - reported->normal;
    delta->zero = now.zero - reported->zero;
    delta->direct_bytes = now.direct_bytes - reported->direct_bytes;
    delta->buffered_bytes = now.buffered_bytes - reported->buffered_bytes;
    delta->requests = now.requests - reported->requests;
    *reported = now;
}

/*
 * Bytes that the workers have been given and that are in flight.  Extents
 * that a worker is at are not counted yet while their requests may be done.
 */
static uint64_t bytes_in_flight(const MappedRamCounts *counts,
                                const MappedRamStats *stats)
{
    uint64_t given = counts->direct_bytes + counts->buffered_bytes;
    uint64_t done = stats->direct.bytes_read + stats->direct.bytes_written +
                    stats->buffered.bytes_read + stats->buffered.bytes_written;

    return given > done ? given - done : 0;
}

uint64_t mapped_ram_save_pending(void)
{
    MappedRamCounts counts;
    MappedRamStats stats;

    QEMU_LOCK_GUARD(&running_lock);
    if (!saving) {
        return 0;
    }
    /* In this order: what is done has been counted before, or will be. */
    mapped_ram_pool_counts(saving->pool, &counts);
    mapped_ram_pool_stats(saving->pool, &stats);
    return (counts.queued - counts.normal - counts.zero) *
           qemu_target_page_size() + bytes_in_flight(&counts, &stats);
}

bool mapped_ram_save_end(QEMUFile *f, Error **errp)
{
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, saving->blocks);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        MappedRamBlock *b = value;

        qemu_put_buffer_at(f, (uint8_t *)b->present,
                           mapped_ram_layout_bitmap_size(&b->layout),
                           b->layout.bitmap_offset);
    }
    return stream_ok(f, errp);
}

void mapped_ram_save_cancel(void)
{
    QEMU_LOCK_GUARD(&running_lock);
    if (saving) {
        qatomic_set(&saving->space.stop, true);
        mapped_ram_pool_cancel(saving->pool);
    }
}

void mapped_ram_save_cleanup(void)
{
    MappedRam *m = mapped_ram_take(&saving);

    if (m) {
        file_transport_set_phase(MIGRATION_FILE_PHASE_STREAM);
        mapped_ram_free(m);
    }
}

/* Reads @size bytes that must be there. */
static bool read_exactly(QEMUFile *f, const char *block, const char *what,
                         size_t got, size_t size, Error **errp)
{
    if (got == size) {
        return true;
    }
    if (!qemu_file_get_error_obj(f, errp) || (errp && !*errp)) {
        error_setg(errp, "%s: the file ended early", stream_name(f));
    }
    error_prepend(errp, "RAM block '%s': reading its mapped-ram %s: ", block,
                  what);
    return false;
}

static bool load_layout(QEMUFile *f, RAMBlock *rb, MappedRamLayout *layout,
                        Error **errp)
{
    uint8_t header[MAPPED_RAM_HEADER_SIZE];
    uint64_t header_offset = qemu_get_offset(f);
    struct stat st;
    uint64_t file_size = 0;

    if (!read_exactly(f, rb->idstr, "header",
                      qemu_get_buffer(f, header, sizeof(header)),
                      sizeof(header), errp)) {
        return false;
    }
    if (fstat(stream_fd(f), &st) == 0 && S_ISREG(st.st_mode)) {
        file_size = st.st_size;
    }
    if (!mapped_ram_header_decode(layout, rb->idstr, header, header_offset,
                                  rb->used_length, qemu_target_page_size(),
                                  file_size, errp)) {
        error_prepend(errp, "%s: ", stream_name(f));
        return false;
    }
    trace_mapped_ram_block(rb->idstr, layout->bitmap_offset,
                           layout->pages_offset, layout->length);
    return true;
}

/*
 * Loads the pages of a block.  The main loop goes on meanwhile, and somebody
 * there may wait for all readers of RCU, of which our caller is one.
 */
static bool load_pages(RAMBlock *rb, MappedRamBlock *b, Error **errp)
{
    bool ok;

    memory_region_ref(rb->mr);
    rcu_read_unlock();
    ok = mapped_ram_pool_load_block(loading->pool, b, errp);
    rcu_read_lock();
    memory_region_unref(rb->mr);
    return ok;
}

bool mapped_ram_load_block(QEMUFile *f, RAMBlock *rb, Error **errp)
{
    MappedRamLayout layout;
    MappedRamBlock *b;
    size_t size;

    if (!loading) {
        MappedRam *m = mapped_ram_new(f, true, errp);

        if (!m) {
            return false;
        }
        WITH_QEMU_LOCK_GUARD(&running_lock) {
            loading = m;
        }
        file_transport_set_phase(MIGRATION_FILE_PHASE_RAM);
    }
    if (!load_layout(f, rb, &layout, errp)) {
        return false;
    }
    b = extent_block_new(rb, &layout);
    /* The table owns it; a second header for this block would replace it. */
    g_hash_table_insert(loading->blocks, rb, b);
    size = mapped_ram_layout_bitmap_size(&layout);
    if (!read_exactly(f, rb->idstr, "bitmap",
                      qemu_get_buffer_at(f, (uint8_t *)b->present, size,
                                         layout.bitmap_offset),
                      size, errp)) {
        return false;
    }
    if (!mapped_ram_bitmap_check(&layout, rb->idstr, b->present, errp)) {
        error_prepend(errp, "%s: ", stream_name(f));
        return false;
    }
    if (!load_pages(rb, b, errp)) {
        error_prepend(errp, "RAM block '%s': ", rb->idstr);
        return false;
    }
    qemu_set_offset(f, mapped_ram_layout_end(&layout), SEEK_SET);
    return true;
}

void mapped_ram_load_cleanup(void)
{
    MappedRam *m = mapped_ram_take(&loading);

    if (m) {
        file_transport_set_phase(MIGRATION_FILE_PHASE_STREAM);
        mapped_ram_free(m);
    }
}

/* The ranges that @direct or @buffered has requests in. */
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

/* What the queues did. */
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

/* How the workers work or worked. */
static void fill_workers(MigrationDirectIO *info,
                         const MappedRamRecord *record)
{
    info->engine = g_strdup(record->engine);
    info->engine_reason = g_strdup(record->engine_reason);
    info->has_channels = info->has_depth = info->has_depth_reached = true;
    info->channels = record->workers;
    info->depth = record->depth;
    info->depth_reached = MAX(record->stats.direct.max_in_flight,
                              record->stats.buffered.max_in_flight);
    info->has_alignment = info->active;
    info->alignment = record->alignment;
}

static void fill_progress(MigrationDirectIO *info,
                          const MappedRamRecord *record)
{
    uint64_t bytes = (record->counts.normal + record->counts.zero) *
                     qemu_target_page_size();

    info->has_load_total = info->has_load_done = true;
    info->load_total = ram_bytes_total();
    info->load_done = bytes - bytes_in_flight(&record->counts, &record->stats);
}

MigrationDirectIO *mapped_ram_info(bool of_load)
{
    MappedRamRecord *record = &records[of_load];
    const char *reason = file_direct_reason();
    MappedRam *running;
    MigrationDirectIO *info;
    MigrationFilePhase phase;
    bool has_phase = file_transport_phase(&phase);

    if (!migrate_mapped_ram() && !migrate_direct_io() && !has_phase) {
        return NULL;
    }
    QEMU_LOCK_GUARD(&running_lock);
    running = of_load ? loading : saving;
    if (running) {
        mapped_ram_record(running);
    }
    info = g_new0(MigrationDirectIO, 1);
    info->has_phase = has_phase;
    info->phase = has_phase ? phase : 0;
    info->active = !reason && (!record->valid || record->alignment);
    if (!info->active) {
        info->reason = g_strdup(reason ?:
                                "the settings were changed after the start");
    }
    if (record->valid) {
        fill_workers(info, record);
    }
    fill_stats(info, &record->stats);
    if (of_load && record->valid) {
        fill_progress(info, record);
    }
    return info;
}
