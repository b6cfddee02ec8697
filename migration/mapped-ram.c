/*
 * mapped-ram: the running save or load
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Creation, ownership and locking; see mapped-ram-int.h.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "file-direct.h"
#include "file-transport.h"
#include "io/channel-file.h"
#include "mapped-ram-compat.h"
#include "mapped-ram-int.h"
#include "migration.h"
#include "options.h"
#include "qapi/error.h"
#include "qemu/bitmap.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "ram.h"

QemuMutex mapped_ram_lock;
/* The running save and load; the owner changes them under mapped_ram_lock. */
static MappedRam *running[2];

static void __attribute__((constructor)) mapped_ram_init(void)
{
    qemu_mutex_init(&mapped_ram_lock);
}

bool mapped_ram_wanted(QEMUFile *f)
{
    /* The channel of a snapshot may be seekable, too, but is no file */
    return migrate_mapped_ram() &&
           object_dynamic_cast(OBJECT(qemu_file_get_ioc(f)),
                               TYPE_QIO_CHANNEL_FILE);
}

bool mapped_ram_postcopy_by_stream(void)
{
    return migrate_postcopy_ram() && !migrate_mapped_ram();
}

const char *mapped_ram_stream_name(QEMUFile *f)
{
    return qemu_file_get_ioc(f)->name ?: "the migration file";
}

int mapped_ram_stream_fd(QEMUFile *f)
{
    return QIO_CHANNEL_FILE(qemu_file_get_ioc(f))->fd;
}

bool mapped_ram_stream_ok(QEMUFile *f, Error **errp)
{
    Error *err = NULL;

    if (!qemu_file_get_error_obj(f, &err)) {
        return true;
    }
    if (!err) {
        error_setg(&err, "%s: the stream has failed",
                   mapped_ram_stream_name(f));
    }
    error_propagate(errp, err);
    return false;
}

static void block_free(void *opaque)
{
    MappedRamBlock *b = opaque;

    g_free(b->present);
    g_free(b->written);
    g_free(b);
}

/* Returns how many CPUs this thread, and so the workers, may run on. */
static unsigned usable_cpus(void)
{
    g_autofree unsigned long *cpus = NULL;
    unsigned long nbits;
    QemuThread self;

    qemu_thread_get_self(&self);
    if (qemu_thread_get_affinity(&self, &cpus, &nbits)) {
        return g_get_num_processors();
    }
    return MAX(bitmap_count_one(cpus, nbits), 1);
}

/* More workers do not make memory faster. */
#define WORKERS_MAX 8

/*
 * In the destination, the kernel clears untouched pages in the thread that
 * submits the read; in the source, workers look for zero pages.  Both need all
 * CPUs, regardless of the number of channels.  Restoring 2 GiB into fresh
 * memory on 2 CPUs took one worker 3.9 s, and two 2.3 s; populating the memory
 * of a read (MADV_POPULATE_WRITE) before submitting it made no difference.
 */
unsigned mapped_ram_workers(void)
{
    unsigned cpus = MIN(usable_cpus(), WORKERS_MAX);

    return migrate_multifd() ? MAX(migrate_multifd_channels(), cpus) : 1;
}

MappedRam *mapped_ram_new(QEMUFile *f, bool load, Error **errp)
{
    MappedRamPoolConfig config = {
        .name = mapped_ram_stream_name(f),
        .thread_name = load ? "mapped-load" : "mapped-save",
        .fd = mapped_ram_stream_fd(f),
        .workers = mapped_ram_workers(),
        .engine = migrate_direct_io_engine(),
        .keep_zeros = mapped_ram_compat_keep_zeros(),
        .thread_started = mapped_ram_compat_thread_started,
        .thread_ended = mapped_ram_compat_thread_ended,
    };
    MappedRamPool *pool;
    MappedRam *m;

    assert(!running[load]);
    if (!qemu_file_is_seekable(f)) {
        error_setg(errp, "%s: the file is not seekable; capability "
                   "'mapped-ram' needs a file that is", config.name);
        return NULL;
    }
    config.depth = file_direct_depth(config.workers);
    config.direct_fd = file_transport_direct_fd(&config.direct_limits);
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
    m->buffered_reason = file_transport_direct_reason();
    m->blocks = g_hash_table_new_full(NULL, NULL, NULL, block_free);
    m->regions = g_ptr_array_new_with_free_func(
        (GDestroyNotify)memory_region_unref);
    m->space = (MappedRamSpaceCheck) {
        .fd = config.fd,
        .name = config.name,
        .kept = load ? 0 : mapped_ram_space_kept(config.fd,
                                                 file_transport_offset()),
        .blocks = m->blocks,
        .pool = pool,
        .keep_zeros = config.keep_zeros,
    };
    WITH_QEMU_LOCK_GUARD(&mapped_ram_lock) {
        running[load] = m;
    }
    return m;
}

MappedRam *mapped_ram_running(bool load)
{
    return running[load];
}

/* To drop a reference takes the BQL. */
static void unref_regions(void *opaque)
{
    g_ptr_array_free(opaque, true);
}

void mapped_ram_end(bool load)
{
    MappedRam *m;

    WITH_QEMU_LOCK_GUARD(&mapped_ram_lock) {
        m = running[load];
        running[load] = NULL;
        if (m) {
            mapped_ram_record(m);
        }
    }
    if (m) {
        file_transport_set_phase(MIGRATION_FILE_PHASE_STREAM);
        mapped_ram_pool_free(m->pool);
        g_hash_table_destroy(m->blocks);
        aio_bh_schedule_oneshot(qemu_get_aio_context(), unref_regions,
                                m->regions);
        g_free(m);
    }
}

MappedRamBlock *mapped_ram_add_block(MappedRam *m, RAMBlock *rb,
                                     const MappedRamLayout *layout)
{
    MappedRamBlock *b = g_new0(MappedRamBlock, 1);
    size_t bitmap_size = mapped_ram_layout_bitmap_size(layout);

    b->name = rb->idstr;
    b->host = rb->host;
    b->layout = *layout;
    b->present = g_malloc0(bitmap_size);
    if (!m->load && m->alignment) {
        b->written = g_malloc0(bitmap_size);
    }
    /* Reading unplugged memory to check for zeros would populate it. */
    b->keep_absent = memory_region_has_ram_discard_manager(rb->mr);
    b->backing = mapped_ram_memory_backing(rb->fd, rb->fd_offset,
                                           !qemu_ram_is_shared(rb), m->load);
    g_hash_table_insert(m->blocks, rb, b);
    return b;
}
