/*
 * Tests of include/io/direct-queue.h: short and repeated transfers
 *
 * Short transfers are continued; interrupted and refused ones are retried.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#ifdef CONFIG_LINUX_IO_URING
#include <liburing.h>
#endif
#ifdef CONFIG_LINUX_AIO
#include <libaio.h>
#endif

#include "direct-queue-fault.h"
#include "direct-queue-helpers.h"

/* Write and read back 8 MiB in small requests. */
static void busy_transfer(const QueueFixture *f)
{
    const size_t len = 8 * MiB;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);

    pattern_fill(buf, len, 0);
    g_assert(direct_queue_write(f->q, buf, len, 0, &error_abort));
    g_assert(direct_queue_drain(f->q, &error_abort));
    pattern_check_file(f->buffered, len, 0);
    memset(buf, 0, len);
    g_assert(direct_queue_read(f->q, buf, len, 0, &error_abort));
    g_assert(direct_queue_drain(f->q, &error_abort));
    pattern_check(buf, len, 0);
    qemu_vfree(buf);
}

static void on_alarm(int signal)
{
}

/* A storm of signals interrupts waits, but no transfer fails. */
static void test_signals(gconstpointer data)
{
    const TestPlace *place = data;
    const struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { };
    struct sigaction action = { .sa_handler = on_alarm }, old;
    QueueFixture f;

    if (fixture_open(&f, place, O_RDWR, 4, 64 * KiB)) {
        sigaction(SIGALRM, &action, &old);
        setitimer(ITIMER_REAL, &often, NULL);
        busy_transfer(&f);
        setitimer(ITIMER_REAL, &never, NULL);
        sigaction(SIGALRM, &old, NULL);
        fixture_close(&f);
    }
}

/*
 * Wrappers of the libraries' submission functions.  They refuse the first
 * @refuse_first calls, and every @refuse_every-th one.
 */
static unsigned refuse_every, refuse_first, submit_calls, submit_refused;

static G_GNUC_UNUSED bool refused(void)
{
    submit_calls++;
    if (submit_calls <= refuse_first ||
        (refuse_every && submit_calls % refuse_every == 0)) {
        submit_refused++;
        return true;
    }
    return false;
}

#ifdef CONFIG_LINUX_IO_URING
int io_uring_submit(struct io_uring *ring)
{
    int (*next)(struct io_uring *) = dlsym(RTLD_NEXT, "io_uring_submit");

    return refused() ? -EAGAIN : next(ring);
}
#endif

#ifdef CONFIG_LINUX_IO_URING
/*
 * liburing may have an allocator of its own, and then free() aborts the program
 * if it is called for a probe.  That is so for these, too.
 */
#define PROBE_SIZE (sizeof(struct io_uring_probe) + \
                    256 * sizeof(struct io_uring_probe_op))
#define PROBE_AT 16

static unsigned probes_made, probes_freed;

struct io_uring_probe *io_uring_get_probe_ring(struct io_uring *ring)
{
    struct io_uring_probe *probe = g_malloc0(PROBE_AT + PROBE_SIZE) + PROBE_AT;

    g_assert_cmpint(io_uring_register_probe(ring, probe, 256), ==, 0);
    probes_made++;
    return probe;
}

void io_uring_free_probe(struct io_uring_probe *probe)
{
    g_free((char *)probe - PROBE_AT);
    probes_freed++;
}

static void test_probe(gconstpointer data)
{
    QueueFixture f;

    probes_made = probes_freed = 0;
    if (fixture_open(&f, data, O_RDWR, 4, 64 * KiB)) {
        fixture_close(&f);
        g_assert_cmpuint(probes_made, >, 0);
        g_assert_cmpuint(probes_freed, ==, probes_made);
    }
}
#endif

#ifdef CONFIG_LINUX_AIO
int io_submit(io_context_t context, long n, struct iocb **list)
{
    int (*next)(io_context_t, long, struct iocb **) =
        dlsym(RTLD_NEXT, "io_submit");

    return n > 0 && refused() ? -EAGAIN : next(context, n, list);
}
#endif

/* The kernel refuses submissions, now and then or for a while. */
static void test_refused(gconstpointer data)
{
    const TestPlace *place = data;
    const struct {
        unsigned every, first;
    } cases[] = { { 1, 0 }, { 2, 0 }, { 3, 0 }, { 7, 0 }, { 0, 40 } };
    QueueFixture f;
    int i;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        if (cases[i].every == 1 &&
            place->engine == DIRECT_IO_ENGINE_IO_URING) {
            /* It would wait forever: refused entries stay in the ring. */
            continue;
        }
        if (!fixture_open(&f, place, O_RDWR, 4, 64 * KiB)) {
            break;
        }
        submit_calls = submit_refused = 0;
        refuse_every = cases[i].every;
        refuse_first = cases[i].first;
        busy_transfer(&f);
        g_assert_cmpuint(submit_refused, >, 0);
        refuse_every = refuse_first = 0;
        fixture_close(&f);
    }
}

/* A transfer stops short, after each possible number of bytes. */
static void test_short_everywhere(void)
{
    const struct {
        size_t len;
        uint32_t align, mem_align;
    } cases[] = { { 1500, 1, 1 }, { 2048, 512, 4 }, { 2048, 512, 1024 } };
    DirectQueueStats stats;
    ssize_t bytes;
    DirectQueue *q;
    int i, fd;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        size_t len = cases[i].len;

        for (bytes = 1; bytes <= len; bytes++) {
            fault_reset();
            fault.at = 1;
            fault.result = bytes;
            fault.mem_align = cases[i].mem_align;
            q = fault_queue(&fd, cases[i].align, 2048, 3);
            fault_write_and_read(q, fd, len);
            direct_queue_get_stats(q, &stats);
            g_assert_cmpuint(stats.bytes_written, ==, len);
            g_assert_cmpuint(stats.bytes_read, ==, len);
            g_assert_cmpuint(stats.requests, ==, 2);
            g_assert_cmpuint(stats.short_transfers, ==, bytes < len ? 2 : 0);
            g_assert_cmpuint(histogram_sum(&stats), ==, 2);
            fault_queue_free(q, fd);
        }
    }
}

/* All transfers stop short, with any order of completion. */
static void test_short_always(void)
{
    const size_t max_lens[] = { 512, 513, 1000, 1024, 4095, 4096, 5000 };
    const size_t len = 40 * 4096;
    DirectQueueStats stats;
    DirectQueue *q;
    int i, order, immediate, fd;

    for (i = 0; i < ARRAY_SIZE(max_lens); i++) {
        for (order = FAULT_IN_ORDER; order <= FAULT_RANDOM; order++) {
            for (immediate = 0; immediate < 2; immediate++) {
                uint64_t pieces = 4096 / QEMU_ALIGN_DOWN(MIN(max_lens[i], 4096),
                                                         512);
                fault_reset();
                fault.max_len = max_lens[i];
                fault.order = order;
                fault.immediate = immediate;
                q = fault_queue(&fd, 512, 4096, 5);
                fault_write_and_read(q, fd, len);
                direct_queue_get_stats(q, &stats);
                g_assert_cmpuint(stats.requests, ==, 80);
                g_assert_cmpuint(stats.max_in_flight, ==, immediate ? 1 : 5);
                if (4096 % QEMU_ALIGN_DOWN(MIN(max_lens[i], 4096), 512) == 0) {
                    g_assert_cmpuint(fault.submissions, ==, 80 * pieces);
                }
                fault_queue_free(q, fd);
                g_assert_cmpuint(fault.opened, ==, fault.closed);
            }
        }
    }
}

/*
 * With the current plan, a write makes no progress: it fails after
 * @submissions submissions, the last of which transferred @written bytes.
 */
static void check_stuck(uint8_t *buf, unsigned submissions, unsigned written)
{
    g_autofree char *pattern =
        g_strdup_printf("the-file: cannot write 4096 bytes at offset 512: "
                        "only %u of them were written", written);
    DirectQueue *q;
    int fd;

    q = fault_queue(&fd, 512, 4096, 4);
    direct_queue_write(q, buf, 4096, 512, NULL);
    assert_fails_fast(q, pattern);
    g_assert_cmpuint(fault.submissions, ==, submissions);
    fault_queue_free(q, fd);
}

static void test_short_stuck(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 4096);
    DirectQueue *q;
    int fd;

    /* No transfer reaches the next block: an error after a second try. */
    memset(buf, 1, 4096);
    fault_reset();
    fault.max_len = 511;
    check_stuck(buf, 2, 511);

    /* A write that returns 0 is an error at once. */
    fault_reset();
    fault.at = 1;
    fault.result = 0;
    check_stuck(buf, 1, 0);

    /* After progress, a transfer without any is retried once more. */
    fault_reset();
    fault.script[0] = 100;
    fault.script[1] = 1000;
    fault.script[2] = 200;
    q = fault_queue(&fd, 512, 4096, 4);
    pattern_fill(buf, 4096, 512);
    g_assert(direct_queue_write(q, buf, 4096, 512, &error_abort));
    g_assert(direct_queue_drain(q, &error_abort));
    g_assert_cmpuint(fault.submissions, ==, 4);
    pattern_check_file(fd, 4096, 512);
    fault_queue_free(q, fd);
    qemu_vfree(buf);
}

/* Interrupted, refused and busy requests are retried until they succeed. */
static void test_again(void)
{
    const struct {
        ssize_t result;
        bool busy;
    } cases[] = { { -EINTR }, { -EAGAIN }, { 0, .busy = true } };
    DirectQueueStats stats;
    DirectQueue *q;
    int i, every, depth, immediate, fd;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        for (every = i == 0 ? 2 : 1; every < 5; every++) {
            for (depth = 1; depth < 5; depth++) {
                for (immediate = 0; immediate < 2; immediate++) {
                    fault_reset();
                    fault.every = every;
                    fault.result = cases[i].result;
                    fault.busy = cases[i].busy;
                    fault.immediate = immediate;
                    fault.order = FAULT_RANDOM;
                    q = fault_queue(&fd, 512, 4096, depth);
                    fault_write_and_read(q, fd, 30 * 4096);
                    direct_queue_get_stats(q, &stats);
                    g_assert_cmpuint(stats.requests, ==, 60);
                    g_assert_cmpuint(stats.bytes_written, ==, 30 * 4096);
                    g_assert_cmpuint(stats.bytes_read, ==, 30 * 4096);
                    g_assert_cmpuint(stats.retries, ==,
                                     fault.submissions / every);
                    fault_queue_free(q, fd);
                }
            }
        }
    }
}

/* A mixture of everything that the queue must handle internally. */
static void test_mixed(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    DirectQueueStats stats;
    DirectQueue *q;
    int i, fd;

    for (i = 1; i < 50; i++) {
        fault_reset();
        fault.order = FAULT_RANDOM;
        fault.max_len = i;
        fault.every = 1 + i % 7;
        fault.result = fault.every == 1 ? i : -EINTR;
        q = fault_queue(&fd, 1, 512, 1 + i % 5);
        fault_write_and_read(q, fd, 3001);
        direct_queue_get_stats(q, &stats);
        g_assert_cmpuint(stats.bytes_written, ==, 3001);
        g_assert_cmpuint(stats.requests, ==, 12);
        fault_queue_free(q, fd);
    }
    qemu_vfree(buf);
}

static uint32_t fake_fs;

#if HOST_LONG_BITS == 64
/* Replaces that of the C library because this program is linked first. */
int fstatfs(int fd, struct statfs *buf)
{
    int ret = syscall(SYS_fstatfs, fd, buf);

    if (ret == 0 && fake_fs) {
        buf->f_type = fake_fs;
    }
    return ret;
}
#endif

/* Writes with these first results; returns the number of retries, or -1. */
static int write_scripted(int first, int second)
{
    const size_t len = 4096;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    DirectQueueStats stats;
    Error *err = NULL;
    int fd, retries = -1;
    DirectQueue *q;

    fault_reset();
    fault.script[0] = first;
    fault.script[1] = second;
    q = fault_queue(&fd, 512, len, 3);
    pattern_fill(buf, len, 0);
    direct_queue_write(q, buf, len, 0, NULL);
    if (direct_queue_drain(q, &err)) {
        pattern_check_file(fd, len, 0);
        direct_queue_get_stats(q, &stats);
        retries = stats.retries;
    } else {
        g_assert_nonnull(strstr(error_get_pretty(err), strerror(-first)));
        error_free(err);
    }
    fault_queue_free(q, fd);
    qemu_vfree(buf);
    return retries;
}

/* What has been changed while it was written is written from a copy. */
static void test_changed(void)
{
    g_assert_cmpint(write_scripted(-EILSEQ, 0), ==, 1);
    g_assert_cmpint(write_scripted(-EILSEQ, 512), ==, 1);
    g_assert_cmpint(write_scripted(-EILSEQ, -EILSEQ), ==, -1);
    /* Elsewhere this means that the disk is broken */
    g_assert_cmpint(write_scripted(-EIO, 0), ==, -1);
#if HOST_LONG_BITS == 64
    fake_fs = 0x2fc12fc1;                       /* OpenZFS */
    g_assert_cmpint(write_scripted(-EIO, 0), ==, 1);
    g_assert_cmpint(write_scripted(-EIO, -EIO), ==, -1);
    fake_fs = 0;
#endif
}

static void add_dir(const TestPlace *place)
{
    add_case(place, "signals", test_signals);
    if (place->engine != DIRECT_IO_ENGINE_SYNC) {
        add_case(place, "refused", test_refused);
    }
#ifdef CONFIG_LINUX_IO_URING
    if (place->engine == DIRECT_IO_ENGINE_IO_URING) {
        add_case(place, "probe", test_probe);
    }
#endif
}

int main(int argc, char **argv)
{
    direct_queue_test_init(&argc, &argv);
    for_each_dir(add_dir);
    g_test_add_func("/direct-queue/fault/short-everywhere",
                    test_short_everywhere);
    g_test_add_func("/direct-queue/fault/short-always", test_short_always);
    g_test_add_func("/direct-queue/fault/short-stuck", test_short_stuck);
    g_test_add_func("/direct-queue/fault/again", test_again);
    g_test_add_func("/direct-queue/fault/mixed", test_mixed);
    g_test_add_func("/direct-queue/fault/changed", test_changed);
    return g_test_run();
}
