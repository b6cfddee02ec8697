/*
 * Tests of include/io/direct-queue.h: errors
 *
 * The first error is kept, with the file, the offset and the cause, and no
 * request is started after it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "direct-queue-fault.h"
#include "direct-queue-helpers.h"

/* Read beyond the end of a file that ends anywhere in a block. */
static void test_eof(gconstpointer data)
{
    const TestPlace *place = data;
    const size_t sizes[] = { 0, 1, 511, 512, BUF_ALIGN, 2 * BUF_ALIGN - 1,
                             5 * BUF_ALIGN + 4096, 8 * BUF_ALIGN - 512 };
    const size_t len = 8 * BUF_ALIGN;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    unsigned depth;
    int i;

    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        for (depth = 1; depth <= 16; depth += 15) {
            g_autofree char *pattern =
                g_strdup_printf("the-file: the file ended at offset %zu, "
                                "needed * more bytes", sizes[i]);
            Error *err = NULL;
            QueueFixture f;

            if (!fixture_open(&f, place, O_RDONLY, depth, BUF_ALIGN)) {
                goto out;
            }
            pattern_fill(buf, len, 0);
            g_assert_cmpint(pwrite(f.buffered, buf, sizes[i], 0),
                            ==, sizes[i]);
            memset(buf, 0, len);
            direct_queue_read(f.q, buf, len, 0, NULL);
            g_assert(!direct_queue_drain(f.q, &err));
            assert_error(err, pattern);
            assert_fails_fast(f.q, pattern);
            if (depth == 1) {
                /* The data before the end has been read. */
                pattern_check(buf, QEMU_ALIGN_DOWN(sizes[i], BUF_ALIGN), 0);
            }
            fixture_close(&f);
        }
    }
out:
    qemu_vfree(buf);
}

/* The message is exact about how many bytes are missing. */
static void test_eof_exact(gconstpointer data)
{
    const TestPlace *place = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, MiB);
    Error *err = NULL;
    QueueFixture f;

    if (fixture_open(&f, place, O_RDONLY, 1, MiB)) {
        pattern_fill(buf, MiB, 0);
        g_assert_cmpint(pwrite(f.buffered, buf, 300001, 0), ==, 300001);
        direct_queue_read(f.q, buf, MiB, 0, NULL);
        g_assert(!direct_queue_drain(f.q, &err));
        assert_error(err, "the-file: the file ended at offset 300001, "
                     "needed 748575 more bytes");
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

static void test_bad_access(gconstpointer data)
{
    const TestPlace *place = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, MiB);
    QueueFixture f;

    pattern_fill(buf, MiB, 0);
    if (fixture_open(&f, place, O_RDONLY, 0, 0)) {
        direct_queue_write(f.q, buf, MiB, BUF_ALIGN, NULL);
        assert_fails_fast(f.q, "the-file: cannot write 1048576 bytes at "
                          "offset 65536: * not open for writing");
        fixture_close(&f);
    }
    if (fixture_open(&f, place, O_WRONLY, 0, 0)) {
        g_assert(direct_queue_write(f.q, buf, MiB, 0, &error_abort));
        g_assert(direct_queue_drain(f.q, &error_abort));
        direct_queue_read(f.q, buf, MiB, 0, NULL);
        assert_fails_fast(f.q, "the-file: cannot read 1048576 bytes at "
                          "offset 0: * not open for reading");
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

/* The message has the end of the file although a later offset fails first. */
static void test_eof_last_first(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 8 * 4096);
    DirectQueue *q;
    int fd;

    fault_reset();
    fault.order = FAULT_LAST_FIRST;
    q = fault_queue(&fd, 512, 4096, 8);
    g_assert_cmpint(ftruncate(fd, 9000), ==, 0);
    g_assert(direct_queue_read(q, buf, 8 * 4096, 0, &error_abort));
    assert_fails_fast(q, "the-file: the file ended at offset 9000, needed "
                      "23768 more bytes");
    fault_queue_free(q, fd);
    qemu_vfree(buf);
}

/* The N-th request fails: its error is kept, and no request follows. */
static void test_error_at(void)
{
    const unsigned depths[] = { 1, 3, 16 };
    const struct {
        int number;
        const char *message;
    } errors[] = {
        { EIO, "Input/output error" },
        { ENOSPC, "no space left on the file system or device" },
        { EDQUOT, "Disk quota exceeded" },
        { EINVAL, "the file system or device refuses it, though *" },
        { EPERM, "Operation not permitted" },
        { EBUSY, "Device or resource busy" },
    };
    const size_t len = 20 * 4096;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    DirectQueueStats stats;
    DirectQueue *q;
    int n, i, order, fd;

    pattern_fill(buf, len, 0);
    for (n = 1; n <= 20; n++) {
        for (i = 0; i < ARRAY_SIZE(depths); i++) {
            for (order = FAULT_IN_ORDER; order <= FAULT_RANDOM; order++) {
                int e = n % ARRAY_SIZE(errors);
                g_autofree char *pattern =
                    g_strdup_printf("the-file: cannot write 4096 bytes at "
                                    "offset %u: %s", (n - 1) * 4096,
                                    errors[e].message);

                fault_reset();
                fault.order = order;
                fault.at = n;
                fault.result = -errors[e].number;
                q = fault_queue(&fd, 512, 4096, depths[i]);
                direct_queue_write(q, buf, len, 0, NULL);
                assert_fails_fast(q, pattern);

                /* All requests were reaped, and none was submitted since. */
                g_assert_cmpuint(fault.submissions, ==, fault.reaped);
                g_assert_cmpuint(fault.submissions, ==,
                                 fault.submissions_when_failed);
                direct_queue_get_stats(q, &stats);
                g_assert_cmpuint(stats.bytes_written, ==,
                                 (fault.reaped - 1) * 4096);
                g_assert_cmpuint(histogram_sum(&stats), ==,
                                 fault.reaped - 1);
                fault_queue_free(q, fd);
            }
        }
    }
    qemu_vfree(buf);
}

/* Of several errors, the one that is reaped first is kept. */
static void test_error_first(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    Error *err = NULL;
    DirectQueue *q;
    int fd;

    memset(buf, 1, BUF_ALIGN);
    fault_reset();
    fault.order = FAULT_LAST_FIRST;
    fault.every = 1;
    fault.result = -EIO;
    q = fault_queue(&fd, 512, 4096, 8);
    g_assert(direct_queue_write(q, buf, 8 * 4096, 0, &error_abort));
    g_assert(!direct_queue_drain(q, &err));
    assert_error(err, "the-file: cannot write 4096 bytes at offset 28672: "
                 "Input/output error");
    assert_fails_fast(q, "* offset 28672: *");
    g_assert_cmpuint(fault.reaped, ==, 8);
    fault_queue_free(q, fd);

    /* A cancel does not replace an earlier error. */
    fault_reset();
    fault.at = 2;
    fault.result = -EIO;
    q = fault_queue(&fd, 512, 4096, 1);
    g_assert(!direct_queue_write(q, buf, 8 * 4096, 0, NULL));
    direct_queue_cancel(q);
    assert_fails_fast(q, "* offset 4096: Input/output error");
    fault_queue_free(q, fd);

    /* Short requests are not continued after an error. */
    fault_reset();
    fault.at = 4;
    fault.result = -EIO;
    fault.max_len = 512;
    fault.order = FAULT_LAST_FIRST;
    q = fault_queue(&fd, 512, 4096, 4);
    g_assert(direct_queue_write(q, buf, 4 * 4096, 0, &error_abort));
    g_assert(!direct_queue_drain(q, NULL));
    g_assert_cmpuint(fault.submissions, ==, 4);
    fault_queue_free(q, fd);
    qemu_vfree(buf);
}

/*
 * Of two requests in flight the small one fails, and there is no room for a
 * third: the caller gets the error without waiting for the other one.
 */
static void test_error_beside_slow(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    Error *err = NULL;
    DirectQueue *q;
    int fd;

    memset(buf, 1, BUF_ALIGN);
    fault_reset();
    fault.order = FAULT_LAST_FIRST;
    fault.at = 2;
    fault.result = -EIO;
    fault.bytes = 4096 + 512;
    q = fault_queue(&fd, 512, 4096, 8);
    g_assert(direct_queue_write(q, buf, 4096, 0, &error_abort));
    g_assert(direct_queue_write(q, buf, 512, 4096, &error_abort));
    g_assert(!direct_queue_write(q, buf, 4096, 8192, &err));
    assert_error(err, "the-file: cannot write 512 bytes at offset 4096: "
                 "Input/output error");
    g_assert_cmpuint(fault.submissions, ==, 2);
    g_assert_cmpuint(fault.reaped, ==, 1);
    fault_queue_free(q, fd);
    g_assert_cmpuint(fault.reaped, ==, 2);
    qemu_vfree(buf);
}

static void add_dir(const TestPlace *place)
{
    add_case(place, "eof", test_eof);
    add_case(place, "eof-exact", test_eof_exact);
    add_case(place, "bad-access", test_bad_access);
}

int main(int argc, char **argv)
{
    direct_queue_test_init(&argc, &argv);
    for_each_dir(add_dir);
    g_test_add_func("/direct-queue/fault/eof-last-first",
                    test_eof_last_first);
    g_test_add_func("/direct-queue/fault/error-at", test_error_at);
    g_test_add_func("/direct-queue/fault/error-first", test_error_first);
    g_test_add_func("/direct-queue/fault/error-beside-slow",
                    test_error_beside_slow);
    return g_test_run();
}
