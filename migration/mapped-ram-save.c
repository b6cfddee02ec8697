/*
 * mapped-ram: saving RAM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram.h.
 */

#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "exec/target_page.h"
#include "file-save.h"
#include "file-save-compat.h"
#include "file-transport.h"
#include "mapped-ram-compat.h"
#include "mapped-ram-int.h"
#include "ram.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/rcu.h"
#include "trace.h"

/* Returns the running save; for its owner only. */
static MappedRam *saving(void)
{
    return mapped_ram_running(false);
}

/*
 * Takes a reference to each block, and gives it a provisional layout for the
 * check of space; mapped_ram_save_block() sets the one in the file.  Returns
 * where the blocks end.  Called with the BQL held: blocks go away while QEMU
 * exits.  Of those that are left out of the file, names are still written.
 */
static int64_t prepare_blocks(MappedRam *m, int64_t offset, Error **errp)
{
    MappedRamLayout layout;
    RAMBlock *rb;

    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH_MIGRATABLE(rb) {
        memory_region_ref(rb->mr);
        g_ptr_array_add(m->regions, rb->mr);
        if (mapped_ram_compat_is_ignored(rb)) {
            continue;
        }
        if (!mapped_ram_layout_init(&layout, rb->idstr, offset,
                                    rb->used_length, qemu_target_page_size(),
                                    errp)) {
            return -1;
        }
        mapped_ram_add_block(m, rb, &layout);
        offset = mapped_ram_layout_end(&layout);
    }
    return offset;
}

/*
 * Extends a regular file to @end bytes if it is smaller.  @old: set to its size
 * before, or to -1 if it was left alone.
 */
static bool grow_file(QEMUFile *f, int64_t end, int64_t *old, Error **errp)
{
    int fd = mapped_ram_stream_fd(f);
    struct stat st;

    *old = -1;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size >= end) {
        return true;
    }
    if (ftruncate(fd, end) < 0) {
        error_setg_errno(errp, errno, "%s: the file can't grow to %" PRId64
                         " bytes, the size that the image needs",
                         mapped_ram_stream_name(f), end);
        return false;
    }
    *old = st.st_size;
    return true;
}

/*
 * Checks that a block device has more than @end bytes, as the state of devices
 * needs some; keeps the position.
 */
static bool check_device_size(QEMUFile *f, int64_t end, Error **errp)
{
    int fd = mapped_ram_stream_fd(f);
    off_t pos = lseek(fd, 0, SEEK_CUR);
    off_t size = lseek(fd, 0, SEEK_END);

    if (pos < 0 || size < 0 || lseek(fd, pos, SEEK_SET) < 0) {
        error_setg_errno(errp, errno, "%s: unable to seek",
                         mapped_ram_stream_name(f));
        return false;
    }
    if (size <= end) {
        error_setg(errp, "%s: the device has %" PRId64 " bytes, but the image "
                   "needs more than %" PRId64 "; use a larger device",
                   mapped_ram_stream_name(f), (int64_t)size, end);
        return false;
    }
    return true;
}

/* Checks that the file has room for RAM up to @end; keeps its size. */
static bool check_size(QEMUFile *f, int64_t end, Error **errp)
{
    struct stat st;
    int64_t old;

    if (fstat(mapped_ram_stream_fd(f), &st) == 0 && !S_ISREG(st.st_mode)) {
        return check_device_size(f, end, errp);
    }
    if (!grow_file(f, end + MAPPED_RAM_DEVICE_STATE, &old, errp)) {
        return false;
    }
    if (old >= 0 && ftruncate(mapped_ram_stream_fd(f), old) < 0) {
        error_setg_errno(errp, errno, "%s: unable to set the size back to %"
                         PRId64 " bytes", mapped_ram_stream_name(f), old);
        return false;
    }
    return true;
}

/*
 * Does everything in a save that can be refused: starts the workers with their
 * queues, and checks that the file may be as large as RAM needs and that the
 * file system has room for it.  Leaves the contents and size of the file alone.
 */
static bool mapped_ram_save_prepare(QEMUFile *f, Error **errp)
{
    MappedRam *m;
    int64_t end;

    if (!mapped_ram_wanted(f)) {
        return true;
    }
    m = mapped_ram_new(f, false, errp);
    if (!m) {
        return false;
    }
    file_save_compat_lock_bql();
    end = prepare_blocks(m, file_transport_offset(), errp);
    file_save_compat_unlock_bql();
    return end >= 0 && check_size(f, end, errp) &&
           mapped_ram_space_check(&m->space, errp);
}

bool mapped_ram_save_begin(QEMUFile *f, const MappedRamLoopOps *ops,
                           void *opaque, Error **errp)
{
    bool prepared = saving() != NULL;
    MappedRam *m = prepared ? saving() : mapped_ram_new(f, false, errp);

    if (!m) {
        return false;
    }
    /*
     * Forget the provisional layouts: a block that is unplugged from now on is
     * not in the file, and must not have its bitmap written there.
     */
    g_hash_table_remove_all(m->blocks);
    m->stream = f;
    m->loop = (MappedRamLoop) {
        .ops = ops,
        .opaque = opaque,
        .pool = m->pool,
        .page_size = qemu_target_page_size(),
        .space_checked = prepared,
        .dirty = ops->dirty_pages(opaque),
    };
    return true;
}

bool mapped_ram_saving(void)
{
    QEMU_LOCK_GUARD(&mapped_ram_lock);
    return saving() != NULL;
}

bool mapped_ram_save_block(QEMUFile *f, RAMBlock *rb, Error **errp)
{
    uint8_t header[MAPPED_RAM_HEADER_SIZE];
    MappedRamLayout layout;
    off_t offset = qemu_get_offset(f);

    if (!mapped_ram_stream_ok(f, errp) ||
        !mapped_ram_layout_init(&layout, rb->idstr, offset, rb->used_length,
                                qemu_target_page_size(), errp)) {
        return false;
    }
    trace_mapped_ram_block(rb->idstr, layout.bitmap_offset,
                           layout.pages_offset, layout.length);
    mapped_ram_header_encode(&layout, header);
    qemu_put_buffer(f, header, sizeof(header));
    qemu_set_offset(f, mapped_ram_layout_end(&layout), SEEK_SET);
    mapped_ram_add_block(saving(), rb, &layout);
    return true;
}

bool mapped_ram_save_left_out(QEMUFile *f, Error **errp)
{
    uint8_t header[MAPPED_RAM_HEADER_SIZE];

    mapped_ram_header_encode_left_out(qemu_target_page_size(), header);
    qemu_put_buffer(f, header, sizeof(header));
    return mapped_ram_stream_ok(f, errp);
}

bool mapped_ram_save_ready(QEMUFile *f, Error **errp)
{
    off_t end = qemu_get_offset(f);
    int64_t old;

    if (!mapped_ram_stream_ok(f, errp) || !grow_file(f, end, &old, errp) ||
        !file_transport_invalidate(errp)) {
        return false;
    }
    file_transport_set_phase(MIGRATION_FILE_PHASE_RAM);
    return true;
}

MappedRamLoop *mapped_ram_save_loop(void)
{
    return &saving()->loop;
}

QEMUFile *mapped_ram_save_stream(void)
{
    return saving()->stream;
}

MappedRamBlock *mapped_ram_save_find(RAMBlock *rb, Error **errp)
{
    MappedRamBlock *b = g_hash_table_lookup(saving()->blocks, rb);

    if (!b) {
        error_setg(errp, "RAM block '%s' was added during the migration, and "
                   "has no pages region in the file; save again", rb->idstr);
    }
    return b;
}

bool mapped_ram_save_check_space(void *opaque, Error **errp)
{
    return mapped_ram_space_check(&saving()->space, errp);
}

bool mapped_ram_save_drained(void)
{
    MappedRam *m;

    QEMU_LOCK_GUARD(&mapped_ram_lock);
    m = mapped_ram_running(false);
    return !m || mapped_ram_pool_drained(m->pool);
}

uint64_t mapped_ram_save_pending(void)
{
    MappedRamCounts counts;
    MappedRamStats stats;
    MappedRam *m;

    QEMU_LOCK_GUARD(&mapped_ram_lock);
    m = mapped_ram_running(false);
    if (!m) {
        return 0;
    }
    /* In this order, so that whatever is done has been counted before. */
    mapped_ram_pool_counts(m->pool, &counts);
    mapped_ram_pool_stats(m->pool, &stats);
    return mapped_ram_counts_unscanned(&counts) * qemu_target_page_size() +
           mapped_ram_bytes_in_flight(&counts, &stats);
}

bool mapped_ram_save_bitmaps(void *opaque, Error **errp)
{
    QEMUFile *f = saving()->stream;
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, saving()->blocks);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        MappedRamBlock *b = value;

        qemu_put_buffer_at(f, (uint8_t *)b->present,
                           mapped_ram_layout_bitmap_size(&b->layout),
                           b->layout.bitmap_offset);
    }
    return mapped_ram_stream_ok(f, errp);
}

void mapped_ram_save_cancel(void)
{
    MappedRam *m;

    QEMU_LOCK_GUARD(&mapped_ram_lock);
    m = mapped_ram_running(false);
    if (m) {
        mapped_ram_pool_cancel(m->pool);
    }
}

void mapped_ram_save_cleanup(void)
{
    mapped_ram_end(false);
}

static bool mapped_ram_save_is_clean(void)
{
    MappedRamLoop *loop;

    if (!saving()) {
        return false;
    }
    loop = &saving()->loop;
    return loop->futile || loop->ops->dirty_pages(loop->opaque) == 0;
}

void mapped_ram_save_init(void)
{
    static const FileSaveRam ram = {
        .prepare = mapped_ram_save_prepare,
        .cleanup = mapped_ram_save_cleanup,
        .is_clean = mapped_ram_save_is_clean,
    };

    mapped_ram_forget(false);
    file_save_set_ram(&ram);
}
