/*
 * Checking that the file system has room for the RAM to be saved
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram-space.h.
 */

#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "migration/mapped-ram-pool.h"
#include "qapi/error.h"
#include "qemu/bitops.h"
#include "qemu/units.h"
#include "qemu/direct-io.h"
#include "qemu/error-report.h"
#include "mapped-ram-space.h"
#include "ram.h"
#include "system/runstate.h"
#include "trace.h"

/* If the guest runs, the actual need may be lower by 1/MARGIN of the room. */
#define MARGIN 16

#ifdef CONFIG_LINUX
#include <sys/statvfs.h>

/*
 * Computes how many bytes an image may have on the disk; false if unknown.
 * What the file has now is freed first, except for @kept bytes.
 */
static bool room_for(int fd, uint64_t kept, uint64_t *bytes)
{
    struct statvfs fs;
    struct stat st;
    uint64_t allocated;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || fstatvfs(fd, &fs) < 0) {
        return false;
    }
    /* A tmpfs without a limit, or a file system that can't tell */
    if (!fs.f_blocks) {
        return false;
    }
    allocated = (uint64_t)st.st_blocks * 512;
    /* Root may use the reserved blocks. */
    *bytes = (uint64_t)(geteuid() ? fs.f_bavail : fs.f_bfree) * fs.f_frsize +
             (allocated > kept ? allocated - kept : 0);
    return true;
}
#else
static bool room_for(int fd, uint64_t kept, uint64_t *bytes)
{
    return false;
}
#endif

uint64_t mapped_ram_space_kept(int fd, uint64_t offset)
{
    uint64_t bytes = 0;
#ifdef SEEK_DATA
    off_t position = offset ? lseek(fd, 0, SEEK_CUR) : -1;

    if (position < 0) {
        return 0;
    }
    for (off_t hole, data = 0; data < offset; data = hole) {
        data = lseek(fd, data, SEEK_DATA);
        if (data < 0 || data >= offset) {
            break;
        }
        hole = lseek(fd, data, SEEK_HOLE);
        if (hole < 0 || hole > offset) {
            hole = offset;
        }
        bytes += hole - data;
    }
    lseek(fd, position, SEEK_SET);
#endif
    return bytes;
}

/* Whether a page takes exactly a page on @fs, and its free space is exact. */
static bool fs_is_exact(const char *fs)
{
    static const char *const names[] = { "ext4", "f2fs", "tmpfs", "xfs" };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        if (g_str_equal(fs, names[i])) {
            return true;
        }
    }
    return false;
}

/*
 * Returns the pages of one bitmap word that are dirty and not in the file yet.
 * Before the save has dirty bitmaps, all pages count, except for discarded
 * ones, which must not even be read.
 */
static unsigned long new_pages(RAMBlock *rb, const MappedRamBlock *b,
                               unsigned long word)
{
    uint64_t first = (uint64_t)word * BITS_PER_LONG;
    uint64_t left = mapped_ram_layout_pages(&b->layout) - first;

    if (rb->bmap) {
        return rb->bmap[word] & ~b->present[word];
    }
    if (b->keep_absent &&
        ramblock_page_is_discarded(rb, first * b->layout.page_size)) {
        return 0;
    }
    return left < BITS_PER_LONG ? BITMAP_LAST_WORD_MASK(left) : ~0UL;
}

/* Fills in @extent, and returns how many of its pages are new. */
static unsigned long new_extent(RAMBlock *rb, MappedRamBlock *b,
                                unsigned long first, MappedRamExtent *extent)
{
    extent->block = b;
    extent->first = first;
    extent->pages = MIN(mapped_ram_layout_pages(&b->layout) - first,
                        MAPPED_RAM_EXTENT_PAGES);
    for (unsigned long i = 0; i < BITS_TO_LONGS(extent->pages); i++) {
        extent->dirty[i] = new_pages(rb, b, BIT_WORD(first) + i);
    }
    return bitmap_count_one(extent->dirty, extent->pages);
}

/* What a check has found so far, in bytes */
typedef struct Need {
    /* pages that are in the file, or were found not to be zero */
    uint64_t known;
    /* new pages that have not been scanned yet */
    uint64_t open;
    uint64_t room;
} Need;

static Need need_at_first(MappedRamSpaceCheck *check, uint64_t room)
{
    Need need = { .known = MAPPED_RAM_DEVICE_STATE, .room = room };
    MappedRamExtent extent;
    GHashTableIter iter;
    gpointer key, value;

    g_hash_table_iter_init(&iter, check->blocks);
    while (g_hash_table_iter_next(&iter, &key, &value)) {
        MappedRamBlock *b = value;
        uint64_t pages = mapped_ram_layout_pages(&b->layout);

        need.known += bitmap_count_one(b->present, pages) *
                      b->layout.page_size;
        for (uint64_t page = 0; page < pages; page += extent.pages) {
            need.open += new_extent(key, b, page, &extent) *
                         b->layout.page_size;
        }
    }
    return need;
}

/* Whether the result no longer depends on pages that are still open. */
static bool decided(const Need *need)
{
    return need->known > need->room || need->known + need->open <= need->room;
}

/* Updates the need from what the workers have counted since @before. */
static Need need_now(const MappedRamSpaceCheck *check, const Need *at_first,
                     const MappedRamCounts *before, uint64_t page_size)
{
    Need need = *at_first;
    MappedRamCounts now;

    mapped_ram_pool_counts(check->pool, &now);
    need.known += (now.counted_data - before->counted_data) * page_size;
    need.open -= (now.counted - before->counted) * page_size;
    return need;
}

/*
 * Lets the workers scan new pages until @need is decided.  Returns false if
 * they have failed or were cancelled.
 */
static bool count_new_pages(MappedRamSpaceCheck *check, Need *need)
{
    const Need at_first = *need;
    MappedRamCounts before;
    MappedRamExtent extent;
    GHashTableIter iter;
    gpointer key, value;
    uint64_t page_size = 0;

    mapped_ram_pool_counts(check->pool, &before);
    g_hash_table_iter_init(&iter, check->blocks);
    while (!decided(need) && g_hash_table_iter_next(&iter, &key, &value)) {
        MappedRamBlock *b = value;
        uint64_t pages = mapped_ram_layout_pages(&b->layout);

        page_size = b->layout.page_size;
        for (uint64_t page = 0; page < pages && !decided(need);
             page += extent.pages) {
            if (new_extent(key, b, page, &extent) &&
                !mapped_ram_pool_count(check->pool, &extent, NULL)) {
                return false;
            }
            *need = need_now(check, &at_first, &before, page_size);
        }
    }
    if (!mapped_ram_pool_wait_scanned(check->pool, NULL)) {
        return false;
    }
    *need = need_now(check, &at_first, &before, page_size);
    return true;
}

/* Warns, once, if the result is uncertain. */
static void warn_of_space(MappedRamSpaceCheck *check, const char *fs,
                          const Need *need)
{
    if (!check->warned) {
        warn_report("%s: RAM may need %" PRIu64 " bytes, and the file "
                    "system (%s) has room for %" PRIu64 "; saving anyway",
                    check->name, need->known + need->open, fs, need->room);
        check->warned = true;
    }
}

bool mapped_ram_space_check(MappedRamSpaceCheck *check, Error **errp)
{
    g_autofree char *fs = direct_io_fs_name(check->fd);
    uint64_t room;
    Need need;

    if (!room_for(check->fd, check->kept, &room)) {
        return true;
    }
    need = need_at_first(check, room);
    trace_mapped_ram_space_check(check->name, need.known + need.open, room);
    if (need.known + need.open <= room) {
        return true;
    }
    if (!fs_is_exact(fs)) {
        warn_of_space(check, fs, &need);
        return true;
    }
    /* Pages of a running guest may become zero before they are saved. */
    if (runstate_is_running()) {
        need.room += need.room / MARGIN;
    }
    if (check->keep_zeros) {
        need.known += need.open;
    } else if (!count_new_pages(check, &need)) {
        /* The next caller that waits for the workers gets their error. */
        return true;
    }
    if (need.known <= need.room) {
        return true;
    }
    error_setg(errp, "%s: no space left for RAM: it needs at least %" PRIu64
               " bytes, and the file system (%s) has room for %" PRIu64 "; "
               "free some space, or use another file", check->name,
               need.known, fs, room);
    return false;
}
