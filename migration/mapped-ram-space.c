/*
 * Whether there is room in the file system for the RAM that is to be saved
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram-space.h.
 */

#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "migration/mapped-ram-pool.h"
#include "qapi/error.h"
#include "qemu/atomic.h"
#include "qemu/bitops.h"
#include "qemu/cutils.h"
#include "qemu/direct-io.h"
#include "qemu/error-report.h"
#include "mapped-ram-space.h"
#include "system/runstate.h"
#include "trace.h"

/* What is needed may be so much less, as a part of it, if the guest runs. */
#define MARGIN 16

#ifdef CONFIG_LINUX
#include <sys/statvfs.h>

/* How many bytes the file @fd may have on its disk; false if unknown. */
static bool room_for(int fd, uint64_t *bytes)
{
    struct statvfs fs;
    struct stat st;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || fstatvfs(fd, &fs) < 0) {
        return false;
    }
    /* A tmpfs without a limit, or a file system that does not know */
    if (!fs.f_blocks) {
        return false;
    }
    /* What is reserved for root is there for root; st_blocks is in 512. */
    *bytes = (uint64_t)(geteuid() ? fs.f_bavail : fs.f_bfree) * fs.f_frsize +
             (uint64_t)st.st_blocks * 512;
    return true;
}
#else
static bool room_for(int fd, uint64_t *bytes)
{
    return false;
}
#endif

/* Where a page takes a page, and what is left is known exactly. */
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
 * The pages of one word of the bitmaps that are dirty and not in the file yet.
 * Before the save has dirty bitmaps, all pages are.
 */
static unsigned long new_pages(const RAMBlock *rb, const MappedRamBlock *b,
                               unsigned long word)
{
    uint64_t left = mapped_ram_layout_pages(&b->layout) -
                    (uint64_t)word * BITS_PER_LONG;
    unsigned long all = left < BITS_PER_LONG ? BITMAP_LAST_WORD_MASK(left) :
                        ~0UL;

    return (rb->bmap ? rb->bmap[word] : all) & ~b->present[word];
}

/* How many of the pages of a word are other than zero */
static unsigned count_data(const MappedRamBlock *b, unsigned long word,
                           unsigned long pages)
{
    unsigned count = 0;

    for (; pages; pages &= pages - 1) {
        uint64_t page = word * BITS_PER_LONG + ctzl(pages);

        count += !buffer_is_zero(b->host + page * b->layout.page_size,
                                 b->layout.page_size);
    }
    return count;
}

/*
 * How many bytes the file needs for what has been written and what is dirty;
 * with @scan only for those dirty pages that are not zero.
 */
static uint64_t bytes_needed(MappedRamSpaceCheck *check, bool scan)
{
    uint64_t needed = 0;
    GHashTableIter iter;
    gpointer key, value;

    g_hash_table_iter_init(&iter, check->blocks);
    while (g_hash_table_iter_next(&iter, &key, &value)) {
        const RAMBlock *rb = key;
        const MappedRamBlock *b = value;
        uint64_t pages = mapped_ram_layout_pages(&b->layout);
        uint64_t count = bitmap_count_one(b->present, pages);

        for (unsigned long word = 0; word < BITS_TO_LONGS(pages) &&
             !qatomic_read(&check->stop); word++) {
            unsigned long new = new_pages(rb, b, word);

            count += scan ? count_data(b, word, new) : ctpopl(new);
        }
        needed += count * b->layout.page_size;
    }
    return needed;
}

bool mapped_ram_space_check(MappedRamSpaceCheck *check, Error **errp)
{
    g_autofree char *fs = direct_io_fs_name(check->fd);
    uint64_t room, needed;

    if (!room_for(check->fd, &room)) {
        return true;
    }
    needed = bytes_needed(check, false);
    trace_mapped_ram_space_check(check->name, needed, room);
    if (needed <= room) {
        return true;
    }
    if (!fs_is_exact(fs)) {
        if (!check->warned) {
            warn_report("%s: RAM may need %" PRIu64 " bytes, and the file "
                        "system (%s) has room for %" PRIu64, check->name,
                        needed, fs, room);
            check->warned = true;
        }
        return true;
    }
    needed = bytes_needed(check, true);
    /* Pages of a guest that runs may become zero before their turn comes. */
    if (needed - (runstate_is_running() ? needed / MARGIN : 0) <= room ||
        qatomic_read(&check->stop)) {
        return true;
    }
    error_setg(errp, "%s: no space left for RAM: it needs %" PRIu64 " bytes, "
               "and the file system (%s) has room for %" PRIu64 "; free some "
               "space, or use another file", check->name, needed, fs, room);
    return false;
}
