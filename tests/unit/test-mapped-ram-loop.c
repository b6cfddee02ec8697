/*
 * Tests of the save loop, with a mock base
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The base has one RAM block and a dirty bitmap, and checks the guarantees of
 * the loop: no synchronization while workers have something to do, the BQL
 * held where it must be, nothing claimed once the bandwidth is used up.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "migration/mapped-ram-pool.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/memalign.h"
#include "../../migration/mapped-ram-loop.h"

#define PAGE 4096
#define PAGES 4096

typedef struct Base {
    char *path;
    int fd;
    MappedRamBlock block;
    MappedRamPool *pool;
    MappedRamLoop loop;
    DECLARE_BITMAP(dirty, PAGES);
    /* pages that the guest writes to before each synchronization */
    DECLARE_BITMAP(scribble, PAGES);
    int scribbles;
    unsigned long position;
    /* bytes that a period may use, and has used */
    uint64_t limit, used;
    uint64_t pages_accounted;
    int syncs, checks, bitmaps, claims;
    bool bql, failed, no_block, no_space;
} Base;

/* The base under test; its @bql stands for the BQL, with only one thread. */
static Base *the_base;

static int64_t base_claim(void *opaque, MappedRamExtent *extent,
                          unsigned long max_pages, Error **errp)
{
    Base *b = opaque;
    unsigned long page = find_next_bit(b->dirty, PAGES, b->position);

    b->claims++;
    g_assert_cmpuint(max_pages % BITS_PER_LONG, ==, 0);
    if (page == PAGES) {
        page = find_first_bit(b->dirty, PAGES);
    }
    if (page == PAGES) {
        return 0;
    }
    if (b->no_block) {
        error_setg(errp, "no such block");
        return -1;
    }
    extent->block = &b->block;
    extent->first = QEMU_ALIGN_DOWN(page, BITS_PER_LONG);
    extent->pages = MIN(max_pages, PAGES - extent->first);
    bitmap_copy(extent->dirty, b->dirty + BIT_WORD(extent->first),
                extent->pages);
    bitmap_clear(b->dirty, extent->first, extent->pages);
    b->position = extent->first + extent->pages;
    return bitmap_count_one(extent->dirty, extent->pages);
}

static void base_account(void *opaque, const MappedRamCounts *delta)
{
    Base *b = opaque;

    b->used += delta->direct_bytes + delta->buffered_bytes;
    b->pages_accounted += delta->normal + delta->zero;
}

static bool base_rate_exceeded(void *opaque, uint64_t claimed)
{
    Base *b = opaque;

    return b->used + claimed > b->limit;
}

static uint64_t base_rate_limit(void *opaque)
{
    Base *b = opaque;

    return b->limit;
}

static bool base_failed(void *opaque)
{
    Base *b = opaque;

    return b->failed;
}

static void base_synchronize(void *opaque, bool last)
{
    Base *b = opaque;

    g_assert_true(b->bql);
    g_assert_true(mapped_ram_pool_drained(b->pool));
    b->syncs++;
    if (b->scribbles) {
        b->scribbles--;
        bitmap_or(b->dirty, b->dirty, b->scribble, PAGES);
    }
}

static uint64_t base_dirty_pages(void *opaque)
{
    Base *b = opaque;

    return bitmap_count_one(b->dirty, PAGES);
}

static bool base_check_space(void *opaque, Error **errp)
{
    Base *b = opaque;

    g_assert_false(b->bql);
    b->checks++;
    if (b->no_space) {
        error_setg(errp, "no space");
    }
    return !b->no_space;
}

static bool base_write_bitmaps(void *opaque, Error **errp)
{
    Base *b = opaque;

    g_assert_true(mapped_ram_pool_drained(b->pool));
    b->bitmaps++;
    return true;
}

static void base_lock_bql(void)
{
    g_assert_false(the_base->bql);
    the_base->bql = true;
}

static void base_unlock_bql(void)
{
    g_assert_true(the_base->bql);
    the_base->bql = false;
}

static const MappedRamLoopOps base_ops = {
    .claim = base_claim,
    .account = base_account,
    .rate_exceeded = base_rate_exceeded,
    .rate_limit = base_rate_limit,
    .failed = base_failed,
    .synchronize = base_synchronize,
    .dirty_pages = base_dirty_pages,
    .check_space = base_check_space,
    .write_bitmaps = base_write_bitmaps,
    .lock_bql = base_lock_bql,
    .unlock_bql = base_unlock_bql,
};

static void base_init(Base *b)
{
    MappedRamPoolConfig config = {
        .thread_name = "test", .direct_fd = -1, .workers = 2,
        .engine = DIRECT_IO_ENGINE_SYNC,
    };

    memset(b, 0, sizeof(*b));
    the_base = b;
    b->limit = UINT64_MAX;
    b->fd = g_file_open_tmp("test-mapped-ram-loop-XXXXXX", &b->path, NULL);
    g_assert_cmpint(b->fd, >=, 0);
    b->block.name = "test.ram";
    b->block.backing = mapped_ram_memory_backing(-1, 0, true, false);
    b->block.host = qemu_memalign(64 * KiB, PAGES * PAGE);
    memset(b->block.host, 0x55, PAGES * PAGE);
    g_assert_true(mapped_ram_layout_init(&b->block.layout, "test.ram", 100,
                                         PAGES * PAGE, PAGE, &error_abort));
    b->block.present =
        g_malloc0(mapped_ram_layout_bitmap_size(&b->block.layout));
    bitmap_fill(b->dirty, PAGES);

    config.name = b->path;
    config.fd = b->fd;
    b->pool = mapped_ram_pool_new(&config, &error_abort);
    b->loop = (MappedRamLoop) {
        .ops = &base_ops, .opaque = b, .pool = b->pool, .page_size = PAGE,
        .dirty = PAGES,
    };
}

static void base_destroy(Base *b)
{
    mapped_ram_pool_free(b->pool);
    g_free(b->block.present);
    qemu_vfree(b->block.host);
    close(b->fd);
    g_unlink(b->path);
    g_free(b->path);
}

static void check_file(Base *b)
{
    g_autofree uint8_t *data = g_malloc(PAGES * PAGE);

    g_assert_cmpint(pread(b->fd, data, PAGES * PAGE,
                          b->block.layout.pages_offset), ==, PAGES * PAGE);
    g_assert_cmpint(memcmp(data, b->block.host, PAGES * PAGE), ==, 0);
    g_assert_cmpuint(bitmap_count_one(b->block.present, PAGES), ==, PAGES);
}

/* A whole save: a pass, a synchronization, the last stage. */
static void test_save(void)
{
    Base b;

    base_init(&b);
    g_assert_cmpint(mapped_ram_loop_pass(&b.loop, 1000000, &error_abort), ==,
                    1);
    g_assert_cmpint(b.checks, ==, 1);
    g_assert_true(mapped_ram_loop_synchronize(&b.loop, false,
                                              &error_abort));
    g_assert_cmpint(b.checks, ==, 2);
    g_assert_cmpuint(b.used, <=, PAGES * PAGE);
    base_lock_bql();
    g_assert_true(mapped_ram_loop_finish(&b.loop, &error_abort));
    g_assert_true(b.bql);
    g_assert_cmpuint(b.used, ==, PAGES * PAGE);
    g_assert_cmpuint(b.pages_accounted, ==, PAGES);
    g_assert_cmpint(b.bitmaps, ==, 1);
    check_file(&b);
    base_destroy(&b);
}

/* Pages that the main loop dirties while the BQL is released are written. */
static void test_finish(void)
{
    for (int scribbles = 1; scribbles < 8; scribbles++) {
        Base b;

        base_init(&b);
        bitmap_set(b.scribble, 77, 3);
        b.scribbles = scribbles;
        base_lock_bql();
        g_assert_true(mapped_ram_loop_finish(&b.loop, &error_abort));
        g_assert_true(b.bql);
        g_assert_cmpuint(base_dirty_pages(&b), ==, 0);
        /* after this many passes the lock is kept, which ends the loop */
        g_assert_cmpint(b.syncs, ==, MIN(scribbles,
                                         MAPPED_RAM_UNLOCKED_PASSES) + 1);
        check_file(&b);
        base_destroy(&b);
    }
}

/* A guest that is stopped already is written before the last stage. */
static void test_stopped(void)
{
    uint64_t threshold = 2 * PAGES * PAGE;
    Base b;

    base_init(&b);
    g_assert_cmpuint(mapped_ram_loop_remaining(&b.loop, false, threshold), ==,
                     PAGES * PAGE);
    while (base_dirty_pages(&b)) {
        /* twice, as nothing may have been written in between */
        for (int i = 0; i < 2; i++) {
            g_assert_true(mapped_ram_loop_synchronize(&b.loop, true,
                                                      &error_abort));
            g_assert_cmpuint(mapped_ram_loop_remaining(&b.loop, true,
                                                       threshold), ==,
                             threshold + 1);
        }
        b.used = 0;
        b.limit = 1 * MiB;
        mapped_ram_loop_pass(&b.loop, 1000000, &error_abort);
    }
    g_assert_true(mapped_ram_loop_synchronize(&b.loop, true, &error_abort));
    g_assert_cmpuint(mapped_ram_loop_remaining(&b.loop, true, threshold), ==,
                     0);
    base_destroy(&b);

    /* What a running guest made dirty says nothing about the stopped one. */
    base_init(&b);
    g_assert_true(mapped_ram_loop_synchronize(&b.loop, false, &error_abort));
    bitmap_fill(b.scribble, PAGES);
    b.scribbles = 1;
    g_assert_cmpint(mapped_ram_loop_pass(&b.loop, 1000000, &error_abort), ==,
                    1);
    g_assert_true(mapped_ram_loop_synchronize(&b.loop, true, &error_abort));
    g_assert_cmpuint(mapped_ram_loop_remaining(&b.loop, true, threshold), ==,
                     threshold + 1);
    base_destroy(&b);
}

/*
 * A device reports all pages as dirty at each query: the save ends, and the
 * last stage does not write them more often than it must.
 */
static void test_untracked(void)
{
    Base b;

    base_init(&b);
    bitmap_fill(b.scribble, PAGES);
    b.scribbles = INT_MAX;
    g_assert_cmpint(mapped_ram_loop_pass(&b.loop, 1000000, &error_abort), ==,
                    1);
    g_assert_true(mapped_ram_loop_synchronize(&b.loop, true, &error_abort));
    g_assert_cmpuint(base_dirty_pages(&b), ==, PAGES);
    g_assert_cmpuint(mapped_ram_loop_remaining(&b.loop, true, MiB), ==, 0);

    base_lock_bql();
    g_assert_true(mapped_ram_loop_finish(&b.loop, &error_abort));
    g_assert_true(b.bql);
    /* once before the last stage, and twice in it */
    g_assert_cmpuint(b.used, ==, 3 * PAGES * PAGE);
    check_file(&b);
    base_destroy(&b);
}

/* Nothing is claimed once the bandwidth is used up; zero pages cost none. */
static void test_bandwidth(void)
{
    Base b;

    base_init(&b);
    b.limit = 1 * MiB;
    g_assert_cmpint(mapped_ram_loop_pass(&b.loop, 1000000, &error_abort), ==,
                    0);
    g_assert_cmpuint(b.used, >, b.limit - b.limit / 16);
    g_assert_cmpuint(b.used, <=, b.limit + b.limit / 16 +
                                 BITS_PER_LONG * PAGE);
    b.used = 0;
    g_assert_cmpint(mapped_ram_loop_pass(&b.loop, 0, &error_abort), ==, 1);
    base_destroy(&b);

    base_init(&b);
    memset(b.block.host, 0, PAGES * PAGE);
    b.limit = 1 * MiB;
    g_assert_cmpint(mapped_ram_loop_pass(&b.loop, 1000000, &error_abort), ==,
                    1);
    g_assert_cmpuint(b.used, ==, 0);
    base_destroy(&b);
}

static void test_errors(void)
{
    Error *err = NULL;
    Base b;

    base_init(&b);
    b.no_block = true;
    g_assert_cmpint(mapped_ram_loop_pass(&b.loop, 0, &err), ==, -1);
    error_free_or_abort(&err);
    base_destroy(&b);

    base_init(&b);
    b.no_space = true;
    g_assert_cmpint(mapped_ram_loop_pass(&b.loop, 1000000, &err), ==, -1);
    error_free_or_abort(&err);
    base_destroy(&b);

    base_init(&b);
    b.failed = true;
    g_assert_cmpint(mapped_ram_loop_pass(&b.loop, 0, &error_abort), ==, 0);
    g_assert_cmpint(b.claims, ==, 0);
    base_destroy(&b);

    /* the lock is held when the last stage fails, and nothing is synced */
    base_init(&b);
    mapped_ram_pool_cancel(b.pool);
    base_lock_bql();
    g_assert_false(mapped_ram_loop_finish(&b.loop, &err));
    error_free_or_abort(&err);
    g_assert_true(b.bql);
    g_assert_cmpint(b.syncs, ==, 0);
    g_assert_cmpint(b.bitmaps, ==, 0);
    base_destroy(&b);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mapped-ram-loop/save", test_save);
    g_test_add_func("/mapped-ram-loop/finish", test_finish);
    g_test_add_func("/mapped-ram-loop/stopped", test_stopped);
    g_test_add_func("/mapped-ram-loop/untracked", test_untracked);
    g_test_add_func("/mapped-ram-loop/bandwidth", test_bandwidth);
    g_test_add_func("/mapped-ram-loop/errors", test_errors);
    return g_test_run();
}
