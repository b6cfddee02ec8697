/*
 * mapped-ram: loading RAM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram.h.
 */

#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "exec/target_page.h"
#include "file-transport.h"
#include "mapped-ram-compat.h"
#include "mapped-ram-instant.h"
#include "mapped-ram-int.h"
#include "qapi/error.h"
#include "trace.h"

/* Checks that @got, what a read returned, is all of @size bytes. */
static bool read_exactly(QEMUFile *f, const char *block, const char *what,
                         size_t got, size_t size, Error **errp)
{
    if (got == size) {
        return true;
    }
    if (!qemu_file_get_error_obj(f, errp) || (errp && !*errp)) {
        error_setg(errp, "%s: the file ended early", mapped_ram_stream_name(f));
    }
    error_prepend(errp, "RAM block '%s': reading its mapped-ram %s: ", block,
                  what);
    return false;
}

/* Sets @left_out, not @layout, if the block's RAM is not in the file. */
static bool load_layout(QEMUFile *f, RAMBlock *rb, MappedRamLayout *layout,
                        bool *left_out, Error **errp)
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
    *left_out = mapped_ram_header_left_out(header, qemu_target_page_size());
    if (*left_out && !mapped_ram_compat_is_ignored(rb)) {
        error_setg(errp, "%s: RAM block '%s' is not in the file: it was left "
                   "in shared memory by the save, but here its memory is not "
                   "shared, or capability 'x-ignore-shared' is off",
                   mapped_ram_stream_name(f), rb->idstr);
        return false;
    }
    if (*left_out) {
        return true;
    }
    if (fstat(mapped_ram_stream_fd(f), &st) == 0 && S_ISREG(st.st_mode)) {
        file_size = st.st_size;
    }
    if (!mapped_ram_header_decode(layout, rb->idstr, header, header_offset,
                                  rb->used_length, qemu_target_page_size(),
                                  file_size, errp)) {
        error_prepend(errp, "%s: ", mapped_ram_stream_name(f));
        return false;
    }
    trace_mapped_ram_block(rb->idstr, layout->bitmap_offset,
                           layout->pages_offset, layout->length);
    return true;
}

/* Like mapped_ram_load_block(), but without the RCU read lock. */
static bool load_block(QEMUFile *f, RAMBlock *rb, Error **errp)
{
    MappedRam *m = mapped_ram_running(true);
    MappedRamLayout layout;
    MappedRamBlock *b;
    bool left_out;
    size_t size;

    if (!m) {
        m = mapped_ram_new(f, true, errp);
        if (!m) {
            return false;
        }
        file_transport_set_phase(MIGRATION_FILE_PHASE_RAM);
    }
    if (g_hash_table_contains(m->blocks, rb) || mapped_ram_instant_has(rb)) {
        error_setg(errp, "%s: RAM block '%s' is in the file twice: the file is "
                   "damaged", mapped_ram_stream_name(f), rb->idstr);
        return false;
    }
    if (!load_layout(f, rb, &layout, &left_out, errp)) {
        return false;
    }
    if (left_out) {
        return true;
    }
    b = mapped_ram_add_block(m, rb, &layout);
    size = mapped_ram_layout_bitmap_size(&layout);
    if (!read_exactly(f, rb->idstr, "bitmap",
                      qemu_get_buffer_at(f, (uint8_t *)b->present, size,
                                         layout.bitmap_offset),
                      size, errp)) {
        return false;
    }
    if (!mapped_ram_bitmap_check(&layout, rb->idstr, b->present, errp)) {
        error_prepend(errp, "%s: ", mapped_ram_stream_name(f));
        return false;
    }
    if (!mapped_ram_instant_add(f, rb, b) &&
        !mapped_ram_pool_load_block(m->pool, b, errp)) {
        error_prepend(errp, "RAM block '%s': ", rb->idstr);
        return false;
    }
    qemu_set_offset(f, mapped_ram_layout_end(&layout), SEEK_SET);
    return true;
}

/*
 * The main loop runs while this waits for the disk, and may wait for all RCU
 * readers to finish; our caller is one of them, so leave the critical section.
 */
bool mapped_ram_load_block(QEMUFile *f, RAMBlock *rb, Error **errp)
{
    bool ok;

    memory_region_ref(rb->mr);
    rcu_read_unlock();
    ok = load_block(f, rb, errp);
    /* Also read the next block's description, or the end, without that lock */
    if (ok) {
        qemu_peek_byte(f, 0);
    }
    rcu_read_lock();
    memory_region_unref(rb->mr);
    return ok;
}

void mapped_ram_load_cleanup(void)
{
    mapped_ram_end(true);
}
