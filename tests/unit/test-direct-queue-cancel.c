/*
 * Tests of include/io/direct-queue.h: queues that are cancelled, or freed with
 * requests in flight
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "direct-queue-fault.h"
#include "direct-queue-helpers.h"

/* Do what other threads may do: get statistics, and cancel. */
static void *look_and_cancel(void *opaque)
{
    DirectQueue *q = opaque;
    DirectQueueStats stats;
    uint64_t written = 0;
    int i;

    for (i = 0; i < 50; i++) {
        g_usleep(100);
        direct_queue_get_stats(q, &stats);
        g_assert_cmpuint(stats.bytes_written, >=, written);
        g_assert_nonnull(direct_queue_engine_name(q));
        written = stats.bytes_written;
    }
    direct_queue_cancel(q);
    return NULL;
}

/* Another thread cancels an endless write. */
static void test_cancel(gconstpointer data)
{
    const TestPlace *place = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 4 * MiB);
    DirectQueueStats stats;
    GThread *thread;
    Error *err = NULL;
    QueueFixture f;

    if (fixture_open(&f, place, O_RDWR, 4, 64 * KiB)) {
        pattern_fill(buf, 4 * MiB, 0);
        thread = g_thread_new("cancel", look_and_cancel, f.q);
        while (direct_queue_write(f.q, buf, 4 * MiB, 0, &err)) {
            if (!direct_queue_drain(f.q, &err)) {
                break;
            }
        }
        assert_error(err, "the-file: cancelled");
        assert_fails_fast(f.q, "the-file: cancelled");
        g_thread_join(thread);
        fixture_close(&f);
    }
    if (fixture_open(&f, place, O_RDWR, 4, 64 * KiB)) {
        direct_queue_cancel(f.q);
        direct_queue_cancel(f.q);
        g_assert(!direct_queue_write(f.q, buf, MiB, 0, NULL));
        assert_fails_fast(f.q, "the-file: cancelled");
        direct_queue_get_stats(f.q, &stats);
        g_assert_cmpuint(stats.requests, ==, 0);
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

/* Freed with requests in flight: nothing writes to the memory later. */
static void test_free_in_flight(gconstpointer data)
{
    const TestPlace *place = data;
    const size_t len = 8 * MiB;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    QueueFixture f;
    size_t i;

    if (fixture_open(&f, place, O_RDWR, 64, 128 * KiB)) {
        pattern_fill(buf, len, 0);
        g_assert(direct_queue_write(f.q, buf, len, 0, &error_abort));
        direct_queue_free(f.q);

        f.q = make_queue(f.fd, &f.limits, place->engine, 64);
        g_assert(direct_queue_read(f.q, buf, len / 2, 0, &error_abort));
        direct_queue_free(f.q);
        f.q = NULL;
        memset(buf, 0xff, len);
        g_usleep(20000);
        for (i = 0; i < len; i++) {
            g_assert_cmphex(buf[i], ==, 0xff);
        }
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

/* Cancelled with requests in flight: they are reaped, none is submitted. */
static void test_cancel_in_flight(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    Error *err = NULL;
    DirectQueue *q;
    int fd;

    memset(buf, 1, BUF_ALIGN);
    fault_reset();
    q = fault_queue(&fd, 512, 4096, 8);
    fault.cancel = q;
    fault.at = 6;
    fault.result = 512;
    g_assert(!direct_queue_write(q, buf, BUF_ALIGN, 0, &err));
    assert_error(err, "the-file: cancelled");
    g_assert_cmpuint(fault.submissions, ==, 6);
    g_assert_cmpuint(fault.reaped, ==, 0);
    assert_fails_fast(q, "the-file: cancelled");
    g_assert_cmpuint(fault.submissions, ==, 6);
    g_assert_cmpuint(fault.reaped, ==, 6);
    fault_queue_free(q, fd);

    /* Freed without a drain: all requests are reaped before close(). */
    fault_reset();
    q = fault_queue(&fd, 512, 4096, 8);
    fault.max_len = 1024;
    g_assert(direct_queue_write(q, buf, 8 * 4096, 0, &error_abort));
    g_assert_cmpuint(fault.reaped, ==, 0);
    direct_queue_free(q);
    g_assert_cmpuint(fault.reaped, ==, 8);
    g_assert_cmpuint(fault.submissions, ==, 8);
    g_assert_cmpuint(fault.closed, ==, 1);
    close(fd);
    direct_queue_free(NULL);
    qemu_vfree(buf);
}

static void add_dir(const TestPlace *place)
{
    add_case(place, "cancel", test_cancel);
    add_case(place, "free-in-flight", test_free_in_flight);
}

static void add_device(const TestPlace *place)
{
    add_case(place, "free-in-flight", test_free_in_flight);
}

int main(int argc, char **argv)
{
    direct_queue_test_init(&argc, &argv);
    for_each_dir(add_dir);
    for_each_device(add_device);
    g_test_add_func("/direct-queue/fault/cancel-in-flight",
                    test_cancel_in_flight);
    return g_test_run();
}
