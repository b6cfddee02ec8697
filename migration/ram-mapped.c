/*
 * mapped-ram: RAM blocks and the migration stream
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See ram-mapped.h.
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
#include "ram-mapped.h"
#include "trace.h"

typedef struct RamMapped {
    bool load;
    RamExtentPool *pool;
    unsigned channels;
    uint32_t alignment;
    /* RAMBlock to RamExtentBlock; changed only in the setup of a save */
    GHashTable *blocks;
    /* what ram_mapped_save_news() has told already */
    RamExtentCounts told;
} RamMapped;

/*
 * Made and freed by the thread that migrates, or with the iothread lock when
 * there is no such thread.  The lock below is for those who cancel.
 */
static RamMapped *saving;
static RamMapped *loading;
static QemuMutex saving_lock;

/* What query-migrate shows after the channels are gone. */
typedef struct RamMappedRecord {
    bool valid;
    RamExtentCounts counts;
    const char *engine;
    unsigned channels;
    /* 0 if it was buffered */
    uint32_t alignment;
} RamMappedRecord;

static RamMappedRecord records[2];
static QemuMutex records_lock;

static void __attribute__((constructor)) ram_mapped_init(void)
{
    qemu_mutex_init(&saving_lock);
    qemu_mutex_init(&records_lock);
}

bool ram_mapped_wanted(QEMUFile *f)
{
    return migrate_mapped_ram() && qemu_file_is_seekable(f);
}

static void extent_block_free(void *opaque)
{
    RamExtentBlock *b = opaque;

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

/* Notes the figures of @m for ram_mapped_counts(). */
static void ram_mapped_record(RamMapped *m)
{
    RamMappedRecord *record = &records[m->load];

    QEMU_LOCK_GUARD(&records_lock);
    record->valid = true;
    record->engine = ram_extent_engine_name(m->pool);
    record->channels = m->channels;
    record->alignment = m->alignment;
    ram_extent_counts(m->pool, &record->counts);
}

static RamMapped *ram_mapped_new(QEMUFile *f, bool load, Error **errp)
{
    RamExtentConfig config = {
        .name = stream_name(f),
        .thread_name = load ? "mapped-load" : "mapped-save",
        .fd = stream_fd(f),
        .channels = migrate_multifd() ? migrate_multifd_channels() : 1,
        .engine = DIRECT_QUEUE_ENGINE_AUTO,
    };
    RamExtentPool *pool;
    RamMapped *m;

    config.direct_fd = file_direct_fd(&config.direct_limits);
    pool = ram_extent_pool_new(&config, errp);
    if (!pool) {
        return NULL;
    }
    m = g_new0(RamMapped, 1);
    m->load = load;
    m->pool = pool;
    m->channels = config.channels;
    m->alignment = config.direct_fd < 0 ? 0 :
                   config.direct_limits.offset_align;
    m->blocks = g_hash_table_new_full(NULL, NULL, NULL, extent_block_free);
    ram_mapped_record(m);
    return m;
}

static void ram_mapped_free(RamMapped *m)
{
    ram_mapped_record(m);
    ram_extent_pool_free(m->pool);
    g_hash_table_destroy(m->blocks);
    g_free(m);
}

static RamExtentBlock *extent_block_new(RAMBlock *rb,
                                        const MappedRamLayout *layout)
{
    RamExtentBlock *b = g_new0(RamExtentBlock, 1);

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

bool ram_mapped_save_begin(QEMUFile *f, Error **errp)
{
    RamMapped *m = ram_mapped_new(f, false, errp);

    assert(!saving);
    WITH_QEMU_LOCK_GUARD(&saving_lock) {
        saving = m;
    }
    return m != NULL;
}

bool ram_mapped_saving(void)
{
    return saving != NULL;
}

bool ram_mapped_save_block(QEMUFile *f, RAMBlock *rb, Error **errp)
{
    uint8_t header[MAPPED_RAM_HEADER_SIZE];
    MappedRamLayout layout;
    off_t offset = qemu_get_offset(f);

    if (!stream_ok(f, errp) ||
        !mapped_ram_layout_init(&layout, rb->idstr, offset, rb->used_length,
                                qemu_target_page_size(), errp)) {
        return false;
    }
    trace_ram_mapped_block(rb->idstr, layout.bitmap_offset,
                           layout.pages_offset, layout.length);
    mapped_ram_header_encode(&layout, header);
    qemu_put_buffer(f, header, sizeof(header));
    qemu_set_offset(f, mapped_ram_layout_end(&layout), SEEK_SET);
    g_hash_table_insert(saving->blocks, rb, extent_block_new(rb, &layout));
    return true;
}

bool ram_mapped_save_ready(QEMUFile *f, Error **errp)
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
    return file_transport_hold(errp);
}

bool ram_mapped_save_extent(RAMBlock *rb, RamExtent *extent, Error **errp)
{
    extent->block = g_hash_table_lookup(saving->blocks, rb);
    if (!extent->block) {
        error_setg(errp, "RAM block '%s' has come during the migration, and "
                   "has no place in the file", rb->idstr);
        return false;
    }
    return ram_extent_save(saving->pool, extent, errp);
}

bool ram_mapped_save_settle(Error **errp)
{
    return ram_extent_settle(saving->pool, errp);
}

bool ram_mapped_save_drain(Error **errp)
{
    bool ok = ram_extent_drain(saving->pool, errp);

    ram_mapped_record(saving);
    return ok;
}

void ram_mapped_save_news(RamExtentCounts *news)
{
    RamExtentCounts now, *told = &saving->told;

    ram_extent_counts(saving->pool, &now);
    news->normal = now.normal - told->normal;
    news->zero = now.zero - told->zero;
    news->direct_bytes = now.direct_bytes - told->direct_bytes;
    news->buffered_bytes = now.buffered_bytes - told->buffered_bytes;
    news->requests = now.requests - told->requests;
    *told = now;
    ram_mapped_record(saving);
}

bool ram_mapped_save_end(QEMUFile *f, Error **errp)
{
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, saving->blocks);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        RamExtentBlock *b = value;

        qemu_put_buffer_at(f, (uint8_t *)b->present,
                           mapped_ram_layout_bitmap_size(&b->layout),
                           b->layout.bitmap_offset);
    }
    return stream_ok(f, errp);
}

void ram_mapped_save_cancel(void)
{
    QEMU_LOCK_GUARD(&saving_lock);
    if (saving) {
        ram_extent_cancel(saving->pool);
    }
}

void ram_mapped_save_cleanup(void)
{
    RamMapped *m;

    WITH_QEMU_LOCK_GUARD(&saving_lock) {
        m = saving;
        saving = NULL;
    }
    if (m) {
        ram_mapped_free(m);
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
    trace_ram_mapped_block(rb->idstr, layout->bitmap_offset,
                           layout->pages_offset, layout->length);
    return true;
}

/*
 * Loads the pages of a block.  The main loop goes on meanwhile, and somebody
 * there may wait for all readers of RCU, of which our caller is one.
 */
static bool load_pages(RAMBlock *rb, RamExtentBlock *b, Error **errp)
{
    bool ok;

    memory_region_ref(rb->mr);
    rcu_read_unlock();
    ok = ram_extent_load_block(loading->pool, b, errp);
    rcu_read_lock();
    memory_region_unref(rb->mr);
    return ok;
}

bool ram_mapped_load_block(QEMUFile *f, RAMBlock *rb, Error **errp)
{
    MappedRamLayout layout;
    RamExtentBlock *b;
    size_t size;

    if (!loading) {
        loading = ram_mapped_new(f, true, errp);
        if (!loading) {
            return false;
        }
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
    ram_mapped_record(loading);
    qemu_set_offset(f, mapped_ram_layout_end(&layout), SEEK_SET);
    return true;
}

void ram_mapped_load_cleanup(void)
{
    g_clear_pointer(&loading, ram_mapped_free);
}

MigrationDirectIO *ram_mapped_info(bool of_load)
{
    RamMappedRecord *record = &records[of_load];
    const char *reason = file_direct_reason();
    MigrationDirectIO *info;

    if (!migrate_mapped_ram() && !migrate_direct_io()) {
        return NULL;
    }
    QEMU_LOCK_GUARD(&records_lock);
    info = g_new0(MigrationDirectIO, 1);
    info->active = !reason && (!record->valid || record->alignment);
    if (!info->active) {
        info->reason = g_strdup(reason ?:
                                "the settings were changed after the start");
    }
    info->has_channels = record->valid;
    if (record->valid) {
        info->engine = g_strdup(record->engine);
        info->channels = record->channels;
    }
    info->has_alignment = info->active && record->valid;
    info->alignment = record->alignment;
    info->direct_bytes = record->counts.direct_bytes;
    info->buffered_bytes = record->counts.buffered_bytes;
    info->requests = record->counts.requests;
    return info;
}
