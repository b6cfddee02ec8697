/*
 * Tests of include/io/direct-queue.h: data, splitting, statistics
 *
 * What a queue does when nothing goes wrong, with each engine and place.  See
 * also test-direct-queue-*.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "direct-queue-fault.h"
#include "direct-queue-helpers.h"

typedef struct Extent {
    size_t start;
    size_t len;
} Extent;

/* Divide [0, @total) into @n extents of random length, in random order. */
static void cut(Extent *extents, size_t n, size_t total, size_t unit)
{
    size_t i, pos = 0, most = 2 * (total / n / unit);

    for (i = 0; i < n; i++) {
        size_t units = g_test_rand_int_range(0, most);
        size_t len = MIN(units * unit, total - pos);

        extents[i].start = pos;
        extents[i].len = i == n - 1 ? total - pos : len;
        pos += extents[i].len;
    }
    for (i = n - 1; i > 0; i--) {
        size_t k = g_test_rand_int_range(0, i + 1);
        Extent tmp = extents[i];

        extents[i] = extents[k];
        extents[k] = tmp;
    }
}

/*
 * Whether requests at @place certainly complete after their submission.  On
 * buffered descriptors, and on tmpfs, they may or may not.
 */
static bool is_really_asynchronous(const TestPlace *place)
{
    return place->direct && place->engine != DIRECT_IO_ENGINE_SYNC &&
           (place->is_device || g_str_has_suffix(place->path, "ext4") ||
            g_str_has_suffix(place->path, "xfs"));
}

/* Transfer extents of all sizes in random order; check the statistics. */
static void test_write_read(gconstpointer data)
{
    const TestPlace *place = data;
    const size_t total = 16 * MiB;
    const uint32_t request_size = 128 * KiB;
    Extent extents[100];
    DirectQueueStats stats;
    uint64_t requests = 0;
    uint8_t *buf, *back;
    size_t i, unit;
    QueueFixture f;

    if (!fixture_open(&f, place, O_RDWR, 7, request_size)) {
        return;
    }
    unit = MAX(f.limits.mem_align, f.limits.offset_align);
    buf = qemu_memalign(BUF_ALIGN, total);
    back = qemu_memalign(BUF_ALIGN, total + unit);
    pattern_fill(buf, total, 0);

    cut(extents, ARRAY_SIZE(extents), total, unit);
    for (i = 0; i < ARRAY_SIZE(extents); i++) {
        requests += DIV_ROUND_UP(extents[i].len, request_size);
        g_assert(direct_queue_write(f.q, buf + extents[i].start,
                                    extents[i].len, extents[i].start,
                                    &error_abort));
    }
    g_assert(direct_queue_drain(f.q, &error_abort));
    direct_queue_get_stats(f.q, &stats);
    g_assert_cmpuint(stats.bytes_written, ==, total);
    g_assert_cmpuint(stats.bytes_read, ==, 0);
    g_assert_cmpuint(stats.requests, ==, requests);
    pattern_check_file(f.buffered, total, 0);

    /* Read into memory with just the required alignment. */
    memset(back, 0, total + unit);
    cut(extents, ARRAY_SIZE(extents), total, unit);
    for (i = 0; i < ARRAY_SIZE(extents); i++) {
        requests += DIV_ROUND_UP(extents[i].len, request_size);
        g_assert(direct_queue_read(f.q, back + unit + extents[i].start,
                                   extents[i].len, extents[i].start,
                                   &error_abort));
    }
    g_assert(direct_queue_drain(f.q, &error_abort));
    pattern_check(back + unit, total, 0);
    direct_queue_get_stats(f.q, &stats);
    g_assert_cmpuint(stats.bytes_written, ==, total);
    g_assert_cmpuint(stats.bytes_read, ==, total);
    g_assert_cmpuint(stats.requests, ==, requests);
    g_assert_cmpuint(histogram_sum(&stats), ==, requests);
    g_assert_cmpuint(stats.max_in_flight, <=, 7);
    if (place->engine == DIRECT_IO_ENGINE_SYNC) {
        g_assert_cmpuint(stats.max_in_flight, ==, 1);
    } else if (is_really_asynchronous(place)) {
        g_assert_cmpuint(stats.max_in_flight, >, 1);
    }
    qemu_vfree(buf);
    qemu_vfree(back);
    fixture_close(&f);
}

/* One call is split into requests of opt_transfer and a remainder. */
static void test_split(gconstpointer data)
{
    const TestPlace *place = data;
    size_t len = 3 * MiB + BUF_ALIGN;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    unsigned depths[] = { 1, 2, 0, DIRECT_QUEUE_DEPTH_MAX };
    DirectQueueStats stats;
    QueueFixture f;
    int i;

    pattern_fill(buf, len, 0);
    for (i = 0; i < ARRAY_SIZE(depths); i++) {
        if (!fixture_open(&f, place, O_RDWR, depths[i], 256 * KiB)) {
            break;
        }
        g_assert(direct_queue_write(f.q, buf, len, 0, &error_abort));
        g_assert(direct_queue_drain(f.q, &error_abort));
        direct_queue_get_stats(f.q, &stats);
        g_assert_cmpuint(stats.requests, ==, 13);
        g_assert_cmpuint(stats.bytes_written, ==, len);
        if (depths[i]) {
            g_assert_cmpuint(stats.max_in_flight, <=, depths[i]);
        }
        pattern_check_file(f.buffered, len, 0);
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

/* An offset that does not fit in 32 bits. */
static void test_far(gconstpointer data)
{
    const TestPlace *place = data;
    const uint64_t far = 5 * UINT64_C(0x40000000) + BUF_ALIGN;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, MiB);
    QueueFixture f;

    if (fixture_open(&f, place, O_RDWR, 0, 0)) {
        pattern_fill(buf, MiB, far);
        g_assert(direct_queue_write(f.q, buf, MiB, far, &error_abort));
        g_assert(direct_queue_drain(f.q, &error_abort));
        pattern_check_file(f.buffered, MiB, far);
        memset(buf, 0, MiB);
        g_assert(direct_queue_read(f.q, buf, MiB, far, &error_abort));
        g_assert(direct_queue_drain(f.q, &error_abort));
        pattern_check(buf, MiB, far);
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

static void test_nothing(gconstpointer data)
{
    const TestPlace *place = data;
    DirectQueueStats stats, zero = { };
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    QueueFixture f;

    if (fixture_open(&f, place, O_RDWR, 0, 0)) {
        g_assert(direct_queue_drain(f.q, &error_abort));
        g_assert(direct_queue_write(f.q, buf, 0, 0, &error_abort));
        g_assert(direct_queue_read(f.q, buf, 0, BUF_ALIGN, &error_abort));
        g_assert(direct_queue_drain(f.q, &error_abort));
        direct_queue_get_stats(f.q, &stats);
        g_assert(memcmp(&stats, &zero, sizeof(zero)) == 0);
        g_assert_cmpstr(direct_queue_engine_name(f.q), ==,
                        DirectIoEngine_str(place->engine));
        g_assert_null(direct_queue_engine_reason(f.q));
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

/* direct_queue_wait() reaps at least one request, and reports errors. */
static void test_wait(void)
{
    g_autofree uint8_t *buf = g_malloc0(4 * 4096);
    DirectQueueStats stats;
    Error *err = NULL;
    DirectQueue *q;
    int fd;

    fault_reset();
    fault.mem_align = 1;
    q = fault_queue(&fd, 512, 4096, 4);
    g_assert_false(direct_queue_busy(q));
    g_assert_true(direct_queue_wait(q, &error_abort));

    g_assert_true(direct_queue_write(q, buf, 3 * 4096, 0, &error_abort));
    for (int done = 0; done < 3; done++) {
        direct_queue_get_stats(q, &stats);
        g_assert_cmpuint(stats.requests, ==, done);
        g_assert_true(direct_queue_busy(q));
        g_assert_true(direct_queue_wait(q, &error_abort));
    }
    direct_queue_get_stats(q, &stats);
    g_assert_cmpuint(stats.bytes_written, ==, 3 * 4096);
    g_assert_false(direct_queue_busy(q));

    fault_reset();
    fault.at = 1;
    fault.result = -EIO;
    g_assert_true(direct_queue_write(q, buf, 4096, 0, &error_abort));
    g_assert_false(direct_queue_wait(q, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), strerror(EIO)));
    error_free(err);
    g_assert_false(direct_queue_busy(q));
    fault_queue_free(q, fd);
}

/*
 * The statistics show a slow request.  Other requests may be slow, too: the
 * machine may be busy.
 */
static void test_slow(void)
{
    const unsigned slow_us = 20000, bucket = 14;    /* from 2^14 on */
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    DirectQueueStats stats;
    DirectQueue *q;
    int fd, immediate;

    memset(buf, 1, BUF_ALIGN);
    for (immediate = 0; immediate < 2; immediate++) {
        uint64_t slow = 0, all = 0;

        fault_reset();
        fault.immediate = immediate;
        fault.at = 5;
        fault.delay_us = slow_us;
        q = fault_queue(&fd, 512, 4096, 1);
        g_assert(direct_queue_write(q, buf, 8 * 4096, 0, &error_abort));
        g_assert(direct_queue_drain(q, &error_abort));
        direct_queue_get_stats(q, &stats);
        for (int i = 0; i < DIRECT_QUEUE_LATENCY_BUCKETS; i++) {
            all += stats.latency[i];
            slow += i >= bucket ? stats.latency[i] : 0;
        }
        g_assert_cmpuint(all, ==, 8);
        g_assert_cmpuint(slow, >, 0);
        g_assert_cmpuint(stats.slowest_us, >=, slow_us);
        if (slow == 1) {
            g_assert_cmpuint(stats.slowest_offset, ==, 4 * 4096);
        }
        fault_queue_free(q, fd);
    }
    qemu_vfree(buf);
}

static void add_dir(const TestPlace *place)
{
    add_case(place, "write-read", test_write_read);
    add_case(place, "split", test_split);
    add_case(place, "far", test_far);
    add_case(place, "nothing", test_nothing);
}

static void add_device(const TestPlace *place)
{
    add_case(place, "write-read", test_write_read);
    add_case(place, "split", test_split);
}

int main(int argc, char **argv)
{
    direct_queue_test_init(&argc, &argv);
    for_each_dir(add_dir);
    for_each_device(add_device);
    g_test_add_func("/direct-queue/wait", test_wait);
    g_test_add_func("/direct-queue/fault/slow", test_slow);
    return g_test_run();
}
