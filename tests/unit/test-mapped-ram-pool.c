/*
 * Tests of extents: which pages are moved, and that they arrive
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A device with large sectors is simulated by limits that require them: the
 * queue asserts that every direct request obeys its limits.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#ifdef CONFIG_LINUX
#include <sys/mman.h>
#endif
#include "migration/mapped-ram-pool.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/memalign.h"
#include "../../migration/mapped-ram-worker.h"

#define PAGE 4096

/* --- which pages are moved ------------------------------------------- */

/* Reads "##..#" as a bitmap: '#' is a set bit. */
static void parse(unsigned long *bitmap, const char *s)
{
    bitmap_zero(bitmap, MAPPED_RAM_EXTENT_PAGES);
    for (int i = 0; s[i]; i++) {
        if (s[i] == '#') {
            set_bit(i, bitmap);
        }
    }
}

static void test_plan(void)
{
    static const struct {
        const char *wanted, *allowed, *plan;
        int gap, align;
    } cases[] = {
        /* nothing to do stays nothing */
        { "........", "########", "........", 4, 4 },
        { "########", "########", "########", 4, 4 },
        /* gaps up to the limit are bridged, longer ones are not */
        { "#..#....", "########", "####....", 2, 1 },
        { "#...#...", "########", "#...#...", 2, 1 },
        { "#.#.#.#.", "########", "#######.", 1, 1 },
        /* at neither end */
        { ".#....#.", "########", ".#....#.", 3, 1 },
        /* and not over pages that must not be touched */
        { "#..#....", "#.......", "#..#....", 2, 1 },
        { "#.#..#..", "#######.", "######..", 2, 1 },
        { "#.#..#..", "###.#...", "###..#..", 2, 1 },
        /* rounding out */
        { ".#......", "........", "####....", 0, 4 },
        { "...#....", "........", "####....", 0, 4 },
        { "...##...", "........", "########", 0, 4 },
        { "#......#", "........", "########", 0, 4 },
        { "#.......", "........", "##......", 0, 2 },
        /* rounding ends where the block ends */
        { "....#.", "......", "....##", 0, 4 },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        DECLARE_BITMAP(wanted, MAPPED_RAM_EXTENT_PAGES);
        DECLARE_BITMAP(allowed, MAPPED_RAM_EXTENT_PAGES);
        DECLARE_BITMAP(expected, MAPPED_RAM_EXTENT_PAGES);
        DECLARE_BITMAP(plan, MAPPED_RAM_EXTENT_PAGES) = {};

        parse(wanted, cases[i].wanted);
        parse(allowed, cases[i].allowed);
        parse(expected, cases[i].plan);
        mapped_ram_plan_extent(plan, wanted, allowed, strlen(cases[i].wanted),
                               cases[i].gap, cases[i].align);
        if (!bitmap_equal(plan, expected, MAPPED_RAM_EXTENT_PAGES)) {
            g_test_message("case %d: wanted %s", i, cases[i].wanted);
            g_assert_not_reached();
        }
    }
}

/* Bytes in flight grow with the requests, and each worker has enough. */
static void test_in_flight(void)
{
    static const struct {
        unsigned depth, workers;
        uint64_t bytes;
    } cases[] = {
        { 0, 1, 32 * MiB }, { 0, 4, 8 * MiB }, { 0, 255, 4 * MiB },
        { 64, 1, 32 * MiB }, { 16, 4, 8 * MiB }, { 2, 64, 4 * MiB },
        { 1, 1, 4 * MiB }, { 128, 1, 64 * MiB }, { 1024, 1, 512 * MiB },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_assert_cmpuint(mapped_ram_worker_bytes(cases[i].depth,
                                                 cases[i].workers), ==,
                         cases[i].bytes);
    }
}

/* --- a save and a load ------------------------------------------------ */

typedef struct Fixture {
    char *path;
    int fd;
    MappedRamBlock block;
    unsigned long pages;
} Fixture;

static void fixture_init(Fixture *f, unsigned long pages)
{
    f->fd = g_file_open_tmp("test-mapped-ram-pool-XXXXXX", &f->path, NULL);
    g_assert_cmpint(f->fd, >=, 0);
    f->pages = pages;
    f->block.name = "test.ram";
    f->block.backing = mapped_ram_memory_backing(-1, 0, true, false);
    f->block.host = qemu_memalign(64 * KiB, pages * PAGE);
    memset(f->block.host, 0, pages * PAGE);
    g_assert_true(mapped_ram_layout_init(&f->block.layout, "test.ram", 100,
                                         pages * PAGE, PAGE, &error_abort));
    f->block.present =
        g_malloc0(mapped_ram_layout_bitmap_size(&f->block.layout));
    /* as in a migration, the pages are followed by other data */
    g_assert_cmpint(pwrite(f->fd, "end", 3,
                           mapped_ram_layout_end(&f->block.layout)), ==, 3);
}

static void fixture_destroy(Fixture *f)
{
    g_free(f->block.present);
    g_free(f->block.written);
    qemu_vfree(f->block.host);
    close(f->fd);
    g_unlink(f->path);
    g_free(f->path);
}

static MappedRamPool *new_pool(Fixture *f, unsigned workers, unsigned align)
{
    MappedRamPoolConfig config = {
        .name = f->path,
        .thread_name = "test",
        .fd = f->fd,
        .direct_fd = align ? f->fd : -1,
        .direct_limits = { 512, align, 1 * MiB },
        .workers = workers,
        .engine = DIRECT_IO_ENGINE_SYNC,
    };

    if (align && !f->block.written) {
        f->block.written = bitmap_new(f->pages);
    }
    return mapped_ram_pool_new(&config, &error_abort);
}

/* A page's first word holds the page and its generation; 0 is a zero page. */
static void fill_page(Fixture *f, unsigned long page, uint64_t generation)
{
    uint64_t *p = (uint64_t *)(f->block.host + page * PAGE);

    for (int i = 0; i < PAGE / 8; i++) {
        p[i] = generation ? generation << 32 | page << 9 | i : 0;
    }
}

/* Hands over all pages in @dirty. */
static bool save_pages(Fixture *f, MappedRamPool *pool,
                       const unsigned long *dirty, unsigned long stretch,
                       Error **errp)
{
    for (unsigned long first = 0; first < f->pages; first += stretch) {
        MappedRamExtent extent = {
            .block = &f->block,
            .first = first,
            .pages = MIN(stretch, f->pages - first),
        };

        bitmap_copy(extent.dirty, dirty + BIT_WORD(first), extent.pages);
        if (!mapped_ram_pool_save(pool, &extent, errp)) {
            return false;
        }
    }
    return mapped_ram_pool_drain(pool, errp);
}

typedef struct Shape {
    const char *name;
    unsigned workers;
    unsigned align;
    unsigned long pages;
} Shape;

/*
 * Saves twice, with pages that become zero or non-zero in between, and loads
 * over memory with other contents.
 */
static void test_roundtrip(const void *opaque)
{
    const Shape *shape = opaque;
    Fixture f = {};
    MappedRamPool *pool;
    MappedRamCounts counts;
    unsigned long data = 0;
    g_autofree unsigned long *dirty = NULL;
    g_autofree uint8_t *copy = NULL;

    fixture_init(&f, shape->pages);
    dirty = bitmap_new(f.pages);
    for (unsigned long i = 0; i < f.pages; i++) {
        fill_page(&f, i, g_test_rand_bit());
    }

    pool = new_pool(&f, shape->workers, shape->align);
    /* a block that can grow may have dirty bits behind its end */
    bitmap_set(dirty, 0, QEMU_ALIGN_UP(f.pages, BITS_PER_LONG));
    g_assert_true(save_pages(&f, pool, dirty, MAPPED_RAM_EXTENT_PAGES,
                             &error_abort));
    bitmap_zero(dirty, f.pages);
    for (unsigned long i = 0; i < f.pages; i++) {
        if (g_test_rand_int_range(0, 4) == 0) {
            fill_page(&f, i, g_test_rand_bit() * 7);
            set_bit(i, dirty);
        }
    }
    g_assert_true(save_pages(&f, pool, dirty, BITS_PER_LONG, &error_abort));
    mapped_ram_pool_counts(pool, &counts);
    g_assert_cmpuint(counts.normal + counts.zero, ==,
                     f.pages + bitmap_count_one(dirty, f.pages));
    mapped_ram_pool_free(pool);

    /* the bitmap is exact */
    g_assert_true(mapped_ram_bitmap_check(&f.block.layout, f.block.name,
                                          f.block.present, &error_abort));
    for (unsigned long i = 0; i < f.pages; i++) {
        bool zero = buffer_is_zero(f.block.host + i * PAGE, PAGE);

        g_assert_cmpint(test_bit(i, f.block.present), ==, !zero);
        data += !zero;
    }

    copy = g_memdup2(f.block.host, f.pages * PAGE);
    memset(f.block.host, 0x5a, f.pages * PAGE);
    pool = new_pool(&f, shape->workers, shape->align);
    g_assert_true(mapped_ram_pool_load_block(pool, &f.block, &error_abort));
    mapped_ram_pool_counts(pool, &counts);
    g_assert_cmpuint(counts.normal, ==, data);
    g_assert_cmpuint(counts.zero, ==, f.pages - data);
    mapped_ram_pool_free(pool);
    g_assert_cmpmem(f.block.host, f.pages * PAGE, copy, f.pages * PAGE);
    fixture_destroy(&f);
}

/*
 * Gaps of up to 16 KiB cost no request of their own, in either direction.  What
 * the file holds there does not matter: the pages become zero.
 */
static void test_gaps(void)
{
    /* data, and behind it zero pages: only the gap of 5 pages is left out */
    static const struct { int data, zero; } runs[] = {
        { 2, 2 }, { 2, 4 }, { 1, 5 }, { 3, 1 }, { 1, 107 },
    };
    Fixture f = {};
    MappedRamPool *pool;
    MappedRamCounts counts;
    DECLARE_BITMAP(dirty, 128) = {};
    g_autofree uint8_t *copy = NULL;
    unsigned long page = 0, data = 0;

    fixture_init(&f, 128);
    for (int i = 0; i < ARRAY_SIZE(runs); i++) {
        for (int j = 0; j < runs[i].data; j++, data++) {
            fill_page(&f, page++, 1);
        }
        page += runs[i].zero;
    }
    g_assert_cmpuint(page, ==, 128);
    copy = g_memdup2(f.block.host, 128 * PAGE);

    bitmap_set(dirty, 0, 128);
    pool = new_pool(&f, 1, 4096);
    g_assert_true(save_pages(&f, pool, dirty, 128, &error_abort));
    mapped_ram_pool_counts(pool, &counts);
    g_assert_cmpuint(counts.requests, ==, 2);
    g_assert_cmpuint(counts.normal, ==, data);
    mapped_ram_pool_free(pool);
    g_assert_cmpuint(bitmap_count_one(f.block.present, 128), ==, data);

    memset(f.block.host, 0x77, 128 * PAGE);
    for (page = 0; page < 128; page++) {
        if (!test_bit(page, f.block.present)) {
            g_assert_cmpint(pwrite(f.fd, f.block.host, PAGE,
                                   f.block.layout.pages_offset + page * PAGE),
                            ==, PAGE);
        }
    }
    pool = new_pool(&f, 1, 4096);
    g_assert_true(mapped_ram_pool_load_block(pool, &f.block, &error_abort));
    mapped_ram_pool_counts(pool, &counts);
    g_assert_cmpuint(counts.requests, ==, 2);
    g_assert_cmpuint(counts.normal, ==, data);
    g_assert_cmpuint(counts.zero, ==, 128 - data);
    mapped_ram_pool_free(pool);
    g_assert_cmpmem(f.block.host, 128 * PAGE, copy, 128 * PAGE);
    fixture_destroy(&f);
}

/* A clean page between dirty ones is written again, if it is in the file. */
static void test_clean_gaps(void)
{
    Fixture f = {};
    MappedRamPool *pool;
    MappedRamCounts before, counts;
    DECLARE_BITMAP(dirty, 128) = {};
    g_autofree uint8_t *copy = NULL;

    fixture_init(&f, 128);
    for (int i = 0; i < 64; i++) {
        fill_page(&f, i, 1);
    }
    bitmap_set(dirty, 0, 128);
    pool = new_pool(&f, 1, 4096);
    g_assert_true(save_pages(&f, pool, dirty, 128, &error_abort));
    mapped_ram_pool_counts(pool, &before);

    /* every third page of those with data, and of those without */
    bitmap_zero(dirty, 128);
    for (int i = 0; i < 32; i += 3) {
        fill_page(&f, i, 2);
        set_bit(i, dirty);
        fill_page(&f, 90 + i, 2);
        set_bit(90 + i, dirty);
    }
    g_assert_true(save_pages(&f, pool, dirty, 128, &error_abort));
    mapped_ram_pool_counts(pool, &counts);
    g_assert_cmpuint(counts.normal - before.normal, ==, 22);
    g_assert_cmpuint(counts.requests - before.requests, ==, 1 + 11);
    mapped_ram_pool_free(pool);

    copy = g_memdup2(f.block.host, 128 * PAGE);
    memset(f.block.host, 0x77, 128 * PAGE);
    pool = new_pool(&f, 1, 4096);
    g_assert_true(mapped_ram_pool_load_block(pool, &f.block, &error_abort));
    mapped_ram_pool_free(pool);
    g_assert_cmpmem(f.block.host, 128 * PAGE, copy, 128 * PAGE);
    fixture_destroy(&f);
}

/*
 * What has become zero is written, too: the file may have a wrong checksum
 * there, and what is stored with it must be readable.
 */
static void test_become_zero(void)
{
    static const unsigned aligns[] = { 4096, 64 * KiB };
    DECLARE_BITMAP(dirty, 128) = {};
    MappedRamCounts before, counts;
    uint8_t page[PAGE];
    MappedRamPool *pool;

    for (int n = 0; n < ARRAY_SIZE(aligns); n++) {
        Fixture f = {};

        fixture_init(&f, 128);
        for (int i = 0; i < 64; i++) {
            fill_page(&f, i, 1);
        }
        bitmap_set(dirty, 0, 128);
        pool = new_pool(&f, 1, aligns[n]);
        g_assert_true(save_pages(&f, pool, dirty, 128, &error_abort));
        mapped_ram_pool_counts(pool, &before);

        bitmap_zero(dirty, 128);
        fill_page(&f, 5, 0);
        set_bit(5, dirty);
        /* Not in the file: nothing to do */
        set_bit(100, dirty);
        g_assert_true(save_pages(&f, pool, dirty, 128, &error_abort));
        mapped_ram_pool_counts(pool, &counts);
        mapped_ram_pool_free(pool);

        g_assert_cmpuint(counts.normal, ==, before.normal);
        g_assert_cmpuint(counts.zero - before.zero, ==, 2);
        g_assert_cmpuint(counts.requests - before.requests, ==, 1);
        g_assert_cmpuint(counts.direct_bytes - before.direct_bytes, ==,
                         aligns[n]);
        g_assert_false(test_bit(5, f.block.present));
        for (int i = 4; i < 7; i++) {
            g_assert_cmpint(pread(f.fd, page, PAGE,
                                  f.block.layout.pages_offset + i * PAGE), ==,
                            PAGE);
            g_assert_cmpmem(page, PAGE, f.block.host + i * PAGE, PAGE);
        }
        fixture_destroy(&f);
    }
}

/* Saves one page as dirty, and returns how many bytes are written for it. */
static uint64_t save_page(Fixture *f, MappedRamPool *pool, unsigned long page)
{
    g_autofree unsigned long *dirty = bitmap_new(f->pages);
    MappedRamCounts before, counts;

    set_bit(page, dirty);
    mapped_ram_pool_counts(pool, &before);
    g_assert_true(save_pages(f, pool, dirty, 128, &error_abort));
    mapped_ram_pool_counts(pool, &counts);
    return counts.direct_bytes + counts.buffered_bytes -
           before.direct_bytes - before.buffered_bytes;
}

/*
 * The guest may also change a page while it is written as zero, and make it
 * zero again.  The page cache has a copy, so there it does not matter.
 */
static void test_zero_again(void)
{
    static const unsigned aligns[] = { 0, 4096, 64 * KiB };

    for (int n = 0; n < ARRAY_SIZE(aligns); n++) {
        MappedRamPool *pool;
        Fixture f = {};

        fixture_init(&f, 128);
        pool = new_pool(&f, 1, aligns[n]);
        fill_page(&f, 5, 1);
        g_assert_cmpuint(save_page(&f, pool, 5), ==, MAX(aligns[n], PAGE));
        fill_page(&f, 5, 0);
        for (int pass = 0; pass < 3; pass++) {
            g_assert_cmpuint(save_page(&f, pool, 5), ==, aligns[n]);
        }
        g_assert_true(bitmap_empty(f.block.present, 128));
        mapped_ram_pool_free(pool);
        fixture_destroy(&f);
    }
}

/*
 * The guest may change a zero page that is written because of its neighbors:
 * between them, or in the same unit of the device.  Others stay holes.
 */
static void test_zero_neighbors(void)
{
    static const struct {
        unsigned align, between, in_unit;
    } cases[] = {
        { 0, 0, 0 },
        { 4096, 4096, 0 },
        { 64 * KiB, 64 * KiB, 64 * KiB },
    };

    for (int n = 0; n < ARRAY_SIZE(cases); n++) {
        g_autofree unsigned long *dirty = bitmap_new(128);
        MappedRamPool *pool;
        Fixture f = {};

        fixture_init(&f, 128);
        pool = new_pool(&f, 1, cases[n].align);
        fill_page(&f, 64, 1);
        fill_page(&f, 66, 1);
        bitmap_set(dirty, 0, 128);
        g_assert_true(save_pages(&f, pool, dirty, 128, &error_abort));
        for (int pass = 0; pass < 2; pass++) {
            g_assert_cmpuint(save_page(&f, pool, 65), ==, cases[n].between);
            g_assert_cmpuint(save_page(&f, pool, 79), ==, cases[n].in_unit);
            g_assert_cmpuint(save_page(&f, pool, 63), ==, 0);
            g_assert_cmpuint(save_page(&f, pool, 80), ==, 0);
        }
        g_assert_cmpuint(bitmap_count_one(f.block.present, 128), ==, 2);
        mapped_ram_pool_free(pool);
        fixture_destroy(&f);
    }
}

/* Counting moves no pages, and does not change the bitmap. */
static void test_count(void)
{
    Fixture f = {};
    MappedRamPool *pool;
    MappedRamCounts counts;
    MappedRamExtent extent = { .pages = 128 };

    fixture_init(&f, 128);
    for (int i = 0; i < 128; i += 4) {
        fill_page(&f, i, 1);
    }
    extent.block = &f.block;
    bitmap_set(extent.dirty, 0, 64);
    pool = new_pool(&f, 2, 4096);
    g_assert_true(mapped_ram_pool_count(pool, &extent, &error_abort));
    g_assert_true(mapped_ram_pool_wait_scanned(pool, &error_abort));
    g_assert_true(mapped_ram_pool_drained(pool));
    mapped_ram_pool_counts(pool, &counts);
    g_assert_cmpuint(counts.counted, ==, 64);
    g_assert_cmpuint(counts.counted_data, ==, 16);
    g_assert_cmpuint(counts.queued + counts.normal + counts.zero +
                     counts.requests, ==, 0);
    g_assert_true(bitmap_empty(f.block.present, 128));
    mapped_ram_pool_cancel(pool);
    g_assert_false(mapped_ram_pool_count(pool, &extent, NULL));
    mapped_ram_pool_free(pool);
    fixture_destroy(&f);
}

#ifdef CONFIG_LINUX
typedef struct Backing {
    const char *name;
    bool file, is_private;
    unsigned flags;
} Backing;

#define HUGE (2 * MiB)
#define UNTOUCHED_PAGES (8 * HUGE / PAGE)

/* Maps memory of this kind; returns false if it is not available here. */
static bool map_backing(Fixture *f, const Backing *backing, int *fd)
{
    int flags = backing->is_private ? MAP_PRIVATE : MAP_SHARED;

    *fd = -1;
    if (backing->file) {
        *fd = memfd_create("test", backing->flags);
        if (*fd < 0 || ftruncate(*fd, UNTOUCHED_PAGES * PAGE) < 0) {
            return false;
        }
    } else {
        flags |= MAP_ANONYMOUS;
    }
    f->block.host = mmap(NULL, UNTOUCHED_PAGES * PAGE, PROT_READ | PROT_WRITE,
                         flags, *fd, 0);
    return f->block.host != MAP_FAILED;
}

/* The number of bytes with memory behind them */
static uint64_t allocated(Fixture *f, const Backing *backing, int fd)
{
    struct stat st = {};
    uint64_t bytes = 0;
    MappedRamMemory memory;

    mapped_ram_memory_open(&memory);
    if (fd >= 0) {
        g_assert_cmpint(fstat(fd, &st), ==, 0);
        bytes += st.st_blocks * 512ULL;
    }
    if (backing->is_private) {
        DECLARE_BITMAP(untouched, UNTOUCHED_PAGES);
        MappedRamBacking anonymous =
            mapped_ram_memory_backing(-1, 0, true, false);

        mapped_ram_memory_untouched(&memory, &anonymous, f->block.host, 0,
                                    UNTOUCHED_PAGES, untouched);
        bytes += (UNTOUCHED_PAGES -
                  bitmap_count_one(untouched, UNTOUCHED_PAGES)) * PAGE;
    }
    mapped_ram_memory_close(&memory);
    return bytes;
}

/*
 * Memory that was never touched stays so, when it is saved, and when it is
 * loaded without a page in the file: its pages are not even read, which would
 * map or allocate them.
 */
static void test_untouched(const void *opaque)
{
    const Backing *backing = opaque;
    uint64_t unit = backing->flags ? HUGE : PAGE;
    /* for a private page, the kernel keeps the file's page, too */
    uint64_t expected = backing->is_private && backing->file &&
                        !backing->flags ? 2 * unit : unit;
    DECLARE_BITMAP(dirty, UNTOUCHED_PAGES);
    unsigned long page = 3 * HUGE / PAGE + 5;
    MappedRamCounts counts;
    MappedRamPool *pool;
    Fixture f = {};
    void *old;
    MappedRamMemory memory;
    int fd = -1;

    mapped_ram_memory_open(&memory);
    fixture_init(&f, UNTOUCHED_PAGES);
    old = f.block.host;
    if (memory.map < 0 || qemu_real_host_page_size() != PAGE ||
        !map_backing(&f, backing, &fd)) {
        g_test_skip("no such memory here, or the kernel tells nothing of it, "
                    "or its pages are not of 4 KiB");
        goto out;
    }
    madvise(f.block.host, UNTOUCHED_PAGES * PAGE, MADV_NOHUGEPAGE);

    /* one page is loaded from the file, then saved */
    f.block.backing = mapped_ram_memory_backing(fd, 0, backing->is_private,
                                                true);
    set_bit(page, f.block.present);
    g_assert_cmpint(pwrite(f.fd, "page", 4, f.block.layout.pages_offset +
                           page * PAGE), ==, 4);
    pool = new_pool(&f, 2, 0);
    g_assert_true(mapped_ram_pool_load_block(pool, &f.block, &error_abort));
    mapped_ram_pool_free(pool);
    g_assert_cmpuint(allocated(&f, backing, fd), ==, expected);
    g_assert_cmpstr((char *)f.block.host + page * PAGE, ==, "page");

    f.block.backing = mapped_ram_memory_backing(fd, 0, backing->is_private,
                                                false);
    g_assert_false(f.block.backing.fd_is_empty);
    if (!backing->flags) {
        bitmap_fill(dirty, UNTOUCHED_PAGES);
        pool = new_pool(&f, 2, 0);
        g_assert_true(save_pages(&f, pool, dirty, MAPPED_RAM_EXTENT_PAGES,
                                 &error_abort));
        mapped_ram_pool_counts(pool, &counts);
        g_assert_cmpuint(counts.normal, ==, 1);
        mapped_ram_pool_free(pool);
        g_assert_cmpuint(allocated(&f, backing, fd), ==, expected);
    }

    /* then it becomes zero again */
    bitmap_zero(f.block.present, UNTOUCHED_PAGES);
    pool = new_pool(&f, 2, 0);
    g_assert_true(mapped_ram_pool_load_block(pool, &f.block, &error_abort));
    mapped_ram_pool_free(pool);
    g_assert_cmpuint(f.block.host[page * PAGE], ==, 0);
    munmap(f.block.host, UNTOUCHED_PAGES * PAGE);

out:
    if (fd >= 0) {
        close(fd);
    }
    mapped_ram_memory_close(&memory);
    f.block.host = old;
    fixture_destroy(&f);
}

static void add_untouched_tests(void)
{
    static const Backing backings[] = {
        { "anonymous", false, true, 0 },
        { "file", true, false, 0 },
        { "private-file", true, true, 0 },
        { "huge-pages", true, false, MFD_HUGETLB },
        { "private-huge-pages", true, true, MFD_HUGETLB },
    };

    for (int i = 0; i < ARRAY_SIZE(backings); i++) {
        g_autofree char *name = g_strdup_printf("/mapped-ram-pool/untouched/%s",
                                                backings[i].name);

        g_test_add_data_func(name, &backings[i], test_untouched);
    }
}
#else
static void add_untouched_tests(void)
{
}
#endif

/*
 * Pages that are not in the file become zero, whatever the file has there, also
 * if they are read through, and the memory is known to have been empty.
 */
static void test_stale_gaps(void)
{
    Fixture f = {};
    MappedRamPool *pool;
    char stale[4 * PAGE];

    fixture_init(&f, 128);
    f.block.backing = (MappedRamBacking) { .fd = f.fd, .fd_is_empty = true };
    memset(stale, 'S', sizeof(stale));
    g_assert_cmpint(pwrite(f.fd, stale, sizeof(stale),
                           f.block.layout.pages_offset + 10 * PAGE), ==,
                    sizeof(stale));
    set_bit(10, f.block.present);
    set_bit(13, f.block.present);
    pool = new_pool(&f, 1, 0);
    g_assert_true(mapped_ram_pool_load_block(pool, &f.block, &error_abort));
    mapped_ram_pool_free(pool);
    for (unsigned long i = 0; i < 128; i++) {
        g_assert_cmpuint(f.block.host[i * PAGE], ==,
                         (i == 10 || i == 13) ? 'S' : 0);
    }
    fixture_destroy(&f);
}

#ifdef CONFIG_LINUX
/* A character device does not tell where it has data. */
static void test_device(void)
{
    static const uint64_t first[] = { 0, 1024 };
    DECLARE_BITMAP(untouched, 64);
    MappedRamBacking backing;
    MappedRamMemory memory;
    int fd = open("/dev/zero", O_RDWR);

    g_assert_cmpint(fd, >=, 0);
    mapped_ram_memory_open(&memory);
    backing = mapped_ram_memory_backing(fd, 0, false, true);
    for (int i = 0; i < 2 * ARRAY_SIZE(first); i++) {
        /* Even if it were trusted */
        backing.fd_has_holes |= i >= ARRAY_SIZE(first);
        g_assert_false(mapped_ram_memory_untouched(
            &memory, &backing, NULL, first[i % ARRAY_SIZE(first)], 64,
            untouched));
        g_assert_true(bitmap_empty(untouched, 64));
    }
    mapped_ram_memory_close(&memory);
    close(fd);
}
#endif

/*
 * With @keep_absent, pages that are not in the file keep their content if they
 * may have no memory behind them; else they become zero.
 */
static void test_keep_absent(const void *opaque)
{
    bool known = opaque != NULL;
    Fixture f = {};
    MappedRamPool *pool;
    DECLARE_BITMAP(dirty, 128) = {};

    fixture_init(&f, 128);
    fill_page(&f, 3, 1);
    bitmap_set(dirty, 0, 128);
    pool = new_pool(&f, 1, 16 * KiB);
    g_assert_true(save_pages(&f, pool, dirty, 128, &error_abort));
    memset(f.block.host, 0x5a, 128 * PAGE);
    f.block.keep_absent = true;
    /* Without a file, the kernel does not tell about shared memory. */
    f.block.backing.is_private = known;
    g_assert_true(mapped_ram_pool_load_block(pool, &f.block, &error_abort));
    for (unsigned long i = 0; i < 128 * PAGE; i++) {
        if (i / PAGE != 3) {
            g_assert_cmpuint(f.block.host[i], ==, known ? 0 : 0x5a);
        }
    }
    fill_page(&f, 4, 1);
    memmove(f.block.host + 4 * PAGE, f.block.host + 3 * PAGE, 8);
    g_assert_cmpuint(*(uint64_t *)(f.block.host + 4 * PAGE), ==,
                     1ULL << 32 | 3 << 9);
    mapped_ram_pool_free(pool);
    fixture_destroy(&f);
}

/* After an error nothing more is written, and every call returns it. */
static void test_write_error(void)
{
    Fixture f = {};
    MappedRamPool *pool;
    MappedRamExtent extent = {};
    Error *err = NULL;
    g_autofree unsigned long *dirty = bitmap_new(4096);
    int fd;

    fixture_init(&f, 4096);
    for (unsigned long i = 0; i < f.pages; i++) {
        fill_page(&f, i, 1);
    }
    fd = f.fd;
    f.fd = open(f.path, O_RDONLY);
    g_assert_cmpint(f.fd, >=, 0);
    bitmap_set(dirty, 0, f.pages);
    pool = new_pool(&f, 4, 0);
    g_assert_false(save_pages(&f, pool, dirty, 1024, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), f.path));
    error_free(err);
    err = NULL;
    extent.block = &f.block;
    extent.pages = 64;
    g_assert_false(mapped_ram_pool_save(pool, &extent, &err));
    error_free(err);
    err = NULL;
    g_assert_false(mapped_ram_pool_wait_scanned(pool, &err));
    error_free(err);
    err = NULL;
    g_assert_false(mapped_ram_pool_drain(pool, &err));
    error_free(err);
    mapped_ram_pool_free(pool);
    close(fd);
    fixture_destroy(&f);
}

/* A file that ends in the middle of the pages is an error in any worker. */
static void test_truncated(void)
{
    Fixture f = {};
    MappedRamPool *pool;
    Error *err = NULL;

    fixture_init(&f, 4096);
    bitmap_set(f.block.present, 0, f.pages);
    g_assert_cmpint(ftruncate(f.fd, f.block.layout.pages_offset +
                              4000 * PAGE + 17), ==, 0);
    pool = new_pool(&f, 4, 0);
    g_assert_false(mapped_ram_pool_load_block(pool, &f.block, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), f.path));
    error_free(err);
    mapped_ram_pool_free(pool);
    fixture_destroy(&f);
}

/* Written bytes are known without a drain, also those of an idle worker. */
static void test_idle(void)
{
    Fixture f = {};
    MappedRamExtent extent = {};
    MappedRamPoolConfig config = {
        .thread_name = "test",
        .workers = 1,
    };
    MappedRamPool *pool;
    MappedRamStats stats;
    int64_t end = g_get_monotonic_time() + 1000 * G_USEC_PER_SEC;

    fixture_init(&f, 1024);
    config.name = f.path;
    config.fd = f.fd;
    config.direct_fd = direct_io_reopen(f.fd, f.path, O_RDWR, NULL);
    if (config.direct_fd < 0 ||
        !direct_io_probe(config.direct_fd, f.path, &config.direct_limits,
                         NULL)) {
        g_test_skip("no direct I/O in the directory for temporary files");
        goto out;
    }
    for (unsigned long i = 0; i < f.pages; i++) {
        fill_page(&f, i, 1);
    }
    f.block.written = bitmap_new(f.pages);
    extent.block = &f.block;
    extent.pages = 1024;
    bitmap_set(extent.dirty, 0, 1024);
    pool = mapped_ram_pool_new(&config, &error_abort);
    g_assert_true(mapped_ram_pool_save(pool, &extent, &error_abort));
    do {
        g_usleep(1000);
        memset(&stats, 0, sizeof(stats));
        mapped_ram_pool_stats(pool, &stats);
    } while (stats.direct.bytes_written < 1024 * PAGE &&
             g_get_monotonic_time() < end);
    g_assert_cmpuint(stats.direct.bytes_written, ==, 1024 * PAGE);
    mapped_ram_pool_free(pool);
out:
    if (config.direct_fd >= 0) {
        close(config.direct_fd);
    }
    fixture_destroy(&f);
}

static void *cancel_thread(void *opaque)
{
    g_usleep(g_test_rand_int_range(0, 3000));
    mapped_ram_pool_cancel(opaque);
    return NULL;
}

/* A cancel at any moment ends a save, with an error and without a hang. */
static void test_cancel(void)
{
    for (int round = 0; round < 100; round++) {
        Fixture f = {};
        MappedRamPool *pool;
        MappedRamExtent extent = {};
        Error *err = NULL;
        GThread *thread;

        fixture_init(&f, 1024);
        for (unsigned long i = 0; i < f.pages; i++) {
            fill_page(&f, i, 1);
        }
        pool = new_pool(&f, 1 + round % 8, 0);
        thread = g_thread_new("cancel", cancel_thread, pool);
        extent.block = &f.block;
        extent.pages = 64;
        bitmap_set(extent.dirty, 0, 64);
        do {
            extent.first = (extent.first + 64) % 1024;
        } while (mapped_ram_pool_save(pool, &extent, &err) &&
                 (extent.first || mapped_ram_pool_drain(pool, &err)));
        g_assert_nonnull(strstr(error_get_pretty(err), "cancelled"));
        error_free(err);
        g_thread_join(thread);
        mapped_ram_pool_free(pool);
        fixture_destroy(&f);
    }
}

/*
 * From the first extent on, until a drain has returned, the pool may write, so
 * the dirty bitmap must not be synchronized.
 */
static void test_drained(void)
{
    Fixture f = {};
    MappedRamExtent extent = { .block = &f.block, .pages = 64 };
    MappedRamPool *pool;
    Error *err = NULL;

    fixture_init(&f, 1024);
    fill_page(&f, 3, 1);
    bitmap_set(extent.dirty, 0, 64);
    pool = new_pool(&f, 3, 0);
    g_assert_true(mapped_ram_pool_drained(pool));
    for (int pass = 0; pass < 2; pass++) {
        g_assert_true(mapped_ram_pool_save(pool, &extent, &error_abort));
        g_assert_false(mapped_ram_pool_drained(pool));
        /* all extents are scanned, but requests may be in flight */
        g_assert_true(mapped_ram_pool_wait_scanned(pool, &error_abort));
        g_assert_false(mapped_ram_pool_drained(pool));
        g_assert_true(mapped_ram_pool_drain(pool, &error_abort));
        g_assert_true(mapped_ram_pool_drained(pool));
    }

    /* an error does not drain */
    g_assert_true(mapped_ram_pool_save(pool, &extent, &error_abort));
    mapped_ram_pool_cancel(pool);
    g_assert_false(mapped_ram_pool_wait_scanned(pool, &err));
    error_free_or_abort(&err);
    g_assert_false(mapped_ram_pool_drained(pool));
    /* then a drain does not wait for workers, which end when they can */
    g_assert_false(mapped_ram_pool_drain(pool, &err));
    error_free_or_abort(&err);
    g_assert_false(mapped_ram_pool_save(pool, &extent, &err));
    error_free_or_abort(&err);
    mapped_ram_pool_free(pool);
    fixture_destroy(&f);
}

/* With @keep_zeros a zero page is in the file like any other. */
static void test_keep_zeros(void)
{
    for (int keep = 0; keep < 2; keep++) {
        Fixture f = {};
        MappedRamPool *pool;
        MappedRamCounts counts;
        MappedRamPoolConfig config = {
            .thread_name = "test", .direct_fd = -1, .workers = 2,
            .engine = DIRECT_IO_ENGINE_SYNC, .keep_zeros = keep,
        };
        g_autofree unsigned long *dirty = bitmap_new(1024);

        fixture_init(&f, 1024);
        fill_page(&f, 500, 1);
        bitmap_set(dirty, 0, f.pages);
        config.name = f.path;
        config.fd = f.fd;
        pool = mapped_ram_pool_new(&config, &error_abort);
        g_assert_true(save_pages(&f, pool, dirty, 256, &error_abort));
        mapped_ram_pool_counts(pool, &counts);
        g_assert_cmpuint(counts.normal, ==, keep ? 1024 : 1);
        g_assert_cmpuint(counts.zero, ==, keep ? 0 : 1023);
        g_assert_cmpuint(bitmap_count_one(f.block.present, 1024), ==,
                         keep ? 1024 : 1);
        mapped_ram_pool_free(pool);
        fixture_destroy(&f);
    }
}

static int threads_listed;
static unsigned threads_seen;

static void *thread_started(const char *name)
{
    g_assert_true(g_str_has_prefix(name, "test_"));
    qatomic_or(&threads_seen, 1u << (name[5] - '0'));
    qatomic_inc(&threads_listed);
    return &threads_listed;
}

static void thread_ended(void *thread)
{
    qatomic_dec((int *)thread);
}

/* Each worker is listed by its name while it lives, and no longer. */
static void test_threads(void)
{
    Fixture f = {};
    MappedRamPool *pool;
    MappedRamPoolConfig config = {
        .thread_name = "test", .direct_fd = -1, .workers = 5,
        .engine = DIRECT_IO_ENGINE_SYNC,
        .thread_started = thread_started, .thread_ended = thread_ended,
    };

    fixture_init(&f, 64);
    config.name = f.path;
    config.fd = f.fd;
    pool = mapped_ram_pool_new(&config, &error_abort);
    /* a drain needs each worker, so all have started */
    g_assert_true(mapped_ram_pool_drain(pool, &error_abort));
    g_assert_cmpint(qatomic_read(&threads_listed), ==, 5);
    g_assert_cmphex(qatomic_read(&threads_seen), ==, 0x1f);
    mapped_ram_pool_free(pool);
    g_assert_cmpint(threads_listed, ==, 0);
    fixture_destroy(&f);
}

int main(int argc, char **argv)
{
    static const Shape shapes[] = {
        { "buffered/1", 1, 0, 5000 },
        { "buffered/8", 8, 0, 5000 },
        { "direct-4k/1", 1, 4096, 5000 },
        { "direct-4k/4", 4, 4096, 8192 },
        { "direct-16k/1", 1, 16384, 4096 },
        { "direct-16k/4", 4, 16384, 5001 },
        { "direct-64k/2", 2, 65536, 4103 },
        { "small/2", 2, 4096, 1 },
    };

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mapped-ram-pool/in-flight", test_in_flight);
    add_untouched_tests();
    g_test_add_func("/mapped-ram-pool/plan", test_plan);
    for (int i = 0; i < ARRAY_SIZE(shapes); i++) {
        g_autofree char *name = g_strdup_printf("/mapped-ram-pool/roundtrip/%s",
                                                shapes[i].name);

        g_test_add_data_func(name, &shapes[i], test_roundtrip);
    }
    g_test_add_func("/mapped-ram-pool/gaps", test_gaps);
    g_test_add_func("/mapped-ram-pool/clean-gaps", test_clean_gaps);
    g_test_add_func("/mapped-ram-pool/become-zero", test_become_zero);
    g_test_add_func("/mapped-ram-pool/zero-again", test_zero_again);
    g_test_add_func("/mapped-ram-pool/zero-neighbors", test_zero_neighbors);
    g_test_add_func("/mapped-ram-pool/count", test_count);
    g_test_add_func("/mapped-ram-pool/stale-gaps", test_stale_gaps);
#ifdef CONFIG_LINUX
    g_test_add_func("/mapped-ram-pool/device", test_device);
    g_test_add_data_func("/mapped-ram-pool/keep-absent/touched", "known",
                         test_keep_absent);
#endif
    g_test_add_data_func("/mapped-ram-pool/keep-absent/unknown", NULL,
                         test_keep_absent);
    g_test_add_func("/mapped-ram-pool/write-error", test_write_error);
    g_test_add_func("/mapped-ram-pool/truncated", test_truncated);
    g_test_add_func("/mapped-ram-pool/idle", test_idle);
    g_test_add_func("/mapped-ram-pool/cancel", test_cancel);
    g_test_add_func("/mapped-ram-pool/drained", test_drained);
    g_test_add_func("/mapped-ram-pool/keep-zeros", test_keep_zeros);
    g_test_add_func("/mapped-ram-pool/threads", test_threads);
    return g_test_run();
}
