/*
 * Tests of include/io/direct-queue.h
 *
 * The first part runs with every engine that works here, on every file system
 * and device that direct-io-dirs.h knows, direct and buffered.  The second
 * part puts a method of its own below the core, to have faults that no disk
 * produces on demand.  Linux only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/memalign.h"
#include "qapi/error.h"
#include "../../io/direct-queue-int.h"

#include <dlfcn.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifdef CONFIG_LINUX_IO_URING
#include <liburing.h>
#endif
#ifdef CONFIG_LINUX_AIO
#include <libaio.h>
#endif

#include "direct-io-dirs.h"

#define KiB 1024u
#define MiB (1024u * KiB)

/* Enough for every alignment that exists, 64 KiB. */
#define BUF_ALIGN (64 * KiB)

/* Help for all */

static uint8_t pattern_at(uint64_t offset)
{
    return (offset * UINT64_C(0x9e3779b97f4a7c15)) >> 56;
}

static void fill(uint8_t *buf, size_t len, uint64_t offset)
{
    size_t i;

    for (i = 0; i < len; i++) {
        buf[i] = pattern_at(offset + i);
    }
}

static void check(const uint8_t *buf, size_t len, uint64_t offset)
{
    size_t i;

    for (i = 0; i < len; i++) {
        if (buf[i] != pattern_at(offset + i)) {
            g_error("wrong byte at offset %" PRIu64, offset + i);
        }
    }
}

/* What @fd holds, read without the queue and without O_DIRECT. */
static void check_file(int fd, size_t len, uint64_t offset)
{
    g_autofree uint8_t *buf = g_malloc(len);
    size_t done = 0;

    while (done < len) {
        ssize_t ret = pread(fd, buf + done, len - done, offset + done);

        g_assert_cmpint(ret, >, 0);
        done += ret;
    }
    check(buf, len, offset);
}

/* @err is an error whose message matches @pattern; frees it. */
static void assert_error(Error *err, const char *pattern)
{
    g_assert_nonnull(err);
    if (!g_pattern_match_simple(pattern, error_get_pretty(err))) {
        g_error("wanted: %s\ngot: %s", pattern, error_get_pretty(err));
    }
    error_free(err);
}

/* All further calls fail with the error of the first, and start nothing. */
static void assert_fails_fast(DirectQueue *q, const char *pattern)
{
    DirectQueueStats before, after;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    Error *err = NULL;

    g_assert(!direct_queue_drain(q, &err));
    assert_error(err, pattern);
    direct_queue_get_stats(q, &before);

    err = NULL;
    g_assert(!direct_queue_write(q, buf, BUF_ALIGN, 0, &err));
    assert_error(err, pattern);
    err = NULL;
    g_assert(!direct_queue_read(q, buf, BUF_ALIGN, 0, &err));
    assert_error(err, pattern);
    err = NULL;
    g_assert(!direct_queue_write(q, buf, 0, 0, &err));
    assert_error(err, pattern);
    err = NULL;
    g_assert(!direct_queue_drain(q, &err));
    assert_error(err, pattern);

    direct_queue_get_stats(q, &after);
    g_assert(memcmp(&before, &after, sizeof(before)) == 0);
    qemu_vfree(buf);
}

static uint64_t histogram_sum(const DirectQueueStats *stats)
{
    uint64_t sum = 0;
    int i;

    for (i = 0; i < DIRECT_QUEUE_LATENCY_BUCKETS; i++) {
        sum += stats->latency[i];
    }
    return sum;
}

/* Part one: engines on files */

static const char *const engine_names[DIRECT_QUEUE_ENGINE__MAX] = {
    [DIRECT_QUEUE_ENGINE_AUTO] = "auto",
    [DIRECT_QUEUE_ENGINE_IO_URING] = "io_uring",
    [DIRECT_QUEUE_ENGINE_LINUX_AIO] = "linux-aio",
    [DIRECT_QUEUE_ENGINE_SYNC] = "sync",
};

/* Where a test runs: in a directory or on a device, with which engine. */
typedef struct Where {
    const char *path;
    bool is_device;
    bool direct;
    DirectQueueEngine engine;
} Where;

/* A file, or the device, open twice, and a queue on one of them. */
typedef struct Bench {
    int buffered;
    int fd;
    DirectIOLimits limits;
    DirectQueue *q;
} Bench;

static DirectQueue *make_queue(int fd, const DirectIOLimits *limits,
                               DirectQueueEngine engine, unsigned depth)
{
    DirectQueueConfig config = {
        .fd = fd,
        .name = "the-file",
        .limits = *limits,
        .engine = engine,
        .depth = depth,
    };

    return direct_queue_new(&config, &error_abort);
}

/*
 * Open a new file, @flags with what access, and make a queue of requests of
 * @request_size (0: as the file likes).  False: skipped.
 */
static bool bench_open(Bench *b, const Where *where, int flags,
                       unsigned depth, uint32_t request_size)
{
    Error *err = NULL;

    if (where->is_device) {
        b->buffered = open(where->path, O_RDWR);
    } else {
        b->buffered = direct_io_test_file(where->path, 0, NULL);
    }
    g_assert_cmpint(b->buffered, >=, 0);
    if (where->direct) {
        b->fd = direct_io_reopen(b->buffered, "the-file", flags, &err);
        if (b->fd < 0) {
            g_test_skip(error_get_pretty(err));
            error_free(err);
            close(b->buffered);
            return false;
        }
        direct_io_probe(b->fd, "the-file", &b->limits, &error_abort);
    } else {
        g_autofree char *proc = g_strdup_printf("/proc/self/fd/%d",
                                                b->buffered);
        b->fd = open(proc, flags);
        g_assert_cmpint(b->fd, >=, 0);
        direct_io_limits_buffered(&b->limits);
    }
    if (request_size) {
        b->limits.best_size = request_size;
    }
    b->q = make_queue(b->fd, &b->limits, where->engine, depth);
    return true;
}

static void bench_close(Bench *b)
{
    direct_queue_free(b->q);
    close(b->fd);
    close(b->buffered);
}

typedef struct Extent {
    size_t start;
    size_t len;
} Extent;

/* Cut [0, @total) into @n extents of random length, in random order. */
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
 * Whether reads on @where return before they are done.  On buffered
 * descriptors, and on tmpfs, they may or may not.
 */
static bool is_really_asynchronous(const Where *where)
{
    return where->direct && where->engine != DIRECT_QUEUE_ENGINE_SYNC &&
           (where->is_device || g_str_has_suffix(where->path, "ext4") ||
            g_str_has_suffix(where->path, "xfs"));
}

/* Many extents of all sizes, in no order, and the figures about them. */
static void test_write_read(gconstpointer data)
{
    const Where *where = data;
    const size_t total = 16 * MiB;
    const uint32_t request_size = 128 * KiB;
    Extent extents[100];
    DirectQueueStats stats;
    uint64_t requests = 0;
    uint8_t *buf, *back;
    size_t i, unit;
    Bench b;

    if (!bench_open(&b, where, O_RDWR, 7, request_size)) {
        return;
    }
    unit = MAX(b.limits.mem_align, b.limits.offset_align);
    buf = qemu_memalign(BUF_ALIGN, total);
    back = qemu_memalign(BUF_ALIGN, total + unit);
    fill(buf, total, 0);

    cut(extents, ARRAY_SIZE(extents), total, unit);
    for (i = 0; i < ARRAY_SIZE(extents); i++) {
        requests += DIV_ROUND_UP(extents[i].len, request_size);
        g_assert(direct_queue_write(b.q, buf + extents[i].start,
                                    extents[i].len, extents[i].start,
                                    &error_abort));
    }
    g_assert(direct_queue_drain(b.q, &error_abort));
    direct_queue_get_stats(b.q, &stats);
    g_assert_cmpuint(stats.bytes_written, ==, total);
    g_assert_cmpuint(stats.bytes_read, ==, 0);
    g_assert_cmpuint(stats.requests, ==, requests);
    check_file(b.buffered, total, 0);

    /* Back, into memory that is no better aligned than it has to be. */
    memset(back, 0, total + unit);
    cut(extents, ARRAY_SIZE(extents), total, unit);
    for (i = 0; i < ARRAY_SIZE(extents); i++) {
        requests += DIV_ROUND_UP(extents[i].len, request_size);
        g_assert(direct_queue_read(b.q, back + unit + extents[i].start,
                                   extents[i].len, extents[i].start,
                                   &error_abort));
    }
    g_assert(direct_queue_drain(b.q, &error_abort));
    check(back + unit, total, 0);
    direct_queue_get_stats(b.q, &stats);
    g_assert_cmpuint(stats.bytes_written, ==, total);
    g_assert_cmpuint(stats.bytes_read, ==, total);
    g_assert_cmpuint(stats.requests, ==, requests);
    g_assert_cmpuint(histogram_sum(&stats), ==, requests);
    g_assert_cmpuint(stats.max_in_flight, <=, 7);
    if (where->engine == DIRECT_QUEUE_ENGINE_SYNC) {
        g_assert_cmpuint(stats.max_in_flight, ==, 1);
    } else if (is_really_asynchronous(where)) {
        g_assert_cmpuint(stats.max_in_flight, >, 1);
    }
    qemu_vfree(buf);
    qemu_vfree(back);
    bench_close(&b);
}

/* One call becomes requests of the best size and a rest. */
static void test_split(gconstpointer data)
{
    const Where *where = data;
    size_t len = 3 * MiB + BUF_ALIGN;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    unsigned depths[] = { 1, 2, 0, DIRECT_QUEUE_DEPTH_MAX };
    DirectQueueStats stats;
    Bench b;
    int i;

    fill(buf, len, 0);
    for (i = 0; i < ARRAY_SIZE(depths); i++) {
        if (!bench_open(&b, where, O_RDWR, depths[i], 256 * KiB)) {
            break;
        }
        g_assert(direct_queue_write(b.q, buf, len, 0, &error_abort));
        g_assert(direct_queue_drain(b.q, &error_abort));
        direct_queue_get_stats(b.q, &stats);
        g_assert_cmpuint(stats.requests, ==, 13);
        g_assert_cmpuint(stats.bytes_written, ==, len);
        if (depths[i]) {
            g_assert_cmpuint(stats.max_in_flight, <=, depths[i]);
        }
        check_file(b.buffered, len, 0);
        bench_close(&b);
    }
    qemu_vfree(buf);
}

/* Offsets are 64 bits wide all the way. */
static void test_far(gconstpointer data)
{
    const Where *where = data;
    const uint64_t far = 5 * UINT64_C(0x40000000) + BUF_ALIGN;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, MiB);
    Bench b;

    if (bench_open(&b, where, O_RDWR, 0, 0)) {
        fill(buf, MiB, far);
        g_assert(direct_queue_write(b.q, buf, MiB, far, &error_abort));
        g_assert(direct_queue_drain(b.q, &error_abort));
        check_file(b.buffered, MiB, far);
        memset(buf, 0, MiB);
        g_assert(direct_queue_read(b.q, buf, MiB, far, &error_abort));
        g_assert(direct_queue_drain(b.q, &error_abort));
        check(buf, MiB, far);
        bench_close(&b);
    }
    qemu_vfree(buf);
}

/* A file that is too short, by whole blocks or less, and reads far behind. */
static void test_eof(gconstpointer data)
{
    const Where *where = data;
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
            Bench b;

            if (!bench_open(&b, where, O_RDONLY, depth, BUF_ALIGN)) {
                goto out;
            }
            fill(buf, len, 0);
            g_assert_cmpint(pwrite(b.buffered, buf, sizes[i], 0),
                            ==, sizes[i]);
            memset(buf, 0, len);
            direct_queue_read(b.q, buf, len, 0, NULL);
            g_assert(!direct_queue_drain(b.q, &err));
            assert_error(err, pattern);
            assert_fails_fast(b.q, pattern);
            if (depth == 1) {
                /* All that was there was read. */
                check(buf, QEMU_ALIGN_DOWN(sizes[i], BUF_ALIGN), 0);
            }
            bench_close(&b);
        }
    }
out:
    qemu_vfree(buf);
}

/* How much is missing is right to the byte, too. */
static void test_eof_exact(gconstpointer data)
{
    const Where *where = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, MiB);
    Error *err = NULL;
    Bench b;

    if (bench_open(&b, where, O_RDONLY, 1, MiB)) {
        fill(buf, MiB, 0);
        g_assert_cmpint(pwrite(b.buffered, buf, 300001, 0), ==, 300001);
        direct_queue_read(b.q, buf, MiB, 0, NULL);
        g_assert(!direct_queue_drain(b.q, &err));
        assert_error(err, "the-file: the file ended at offset 300001, "
                     "needed 748575 more bytes");
        bench_close(&b);
    }
    qemu_vfree(buf);
}

/* Really short writes: the limit lies within a request. */
static void test_rlimit(gconstpointer data)
{
    const Where *where = data;
    const size_t allowed = 3 * BUF_ALIGN + BUF_ALIGN / 2;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 8 * BUF_ALIGN);
    struct rlimit old, limit;
    DirectQueueStats stats;
    unsigned depth;
    Bench b;

    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &old), ==, 0);
    limit = old;
    limit.rlim_cur = allowed;
    fill(buf, 8 * BUF_ALIGN, 0);
    for (depth = 1; depth <= 16; depth += 15) {
        if (!bench_open(&b, where, O_RDWR, depth, BUF_ALIGN)) {
            break;
        }
        g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &limit), ==, 0);
        direct_queue_write(b.q, buf, 8 * BUF_ALIGN, 0, NULL);
        direct_queue_drain(b.q, NULL);
        g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &old), ==, 0);

        assert_fails_fast(b.q, "the-file: cannot write * bytes at offset *: "
                          "the file would become larger than allowed *");
        direct_queue_get_stats(b.q, &stats);
        g_assert_cmpuint(stats.bytes_written, <=, allowed);
        if (depth == 1) {
            g_assert_cmpuint(stats.bytes_written, ==, allowed);
            g_assert_cmpuint(stats.short_transfers, ==, 1);
            check_file(b.buffered, allowed, 0);
        }
        bench_close(&b);
    }
    qemu_vfree(buf);
}

static void test_bad_access(gconstpointer data)
{
    const Where *where = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, MiB);
    Bench b;

    fill(buf, MiB, 0);
    if (bench_open(&b, where, O_RDONLY, 0, 0)) {
        direct_queue_write(b.q, buf, MiB, BUF_ALIGN, NULL);
        assert_fails_fast(b.q, "the-file: cannot write 1048576 bytes at "
                          "offset 65536: * not open for writing");
        bench_close(&b);
    }
    if (bench_open(&b, where, O_WRONLY, 0, 0)) {
        g_assert(direct_queue_write(b.q, buf, MiB, 0, &error_abort));
        g_assert(direct_queue_drain(b.q, &error_abort));
        direct_queue_read(b.q, buf, MiB, 0, NULL);
        assert_fails_fast(b.q, "the-file: cannot read 1048576 bytes at "
                          "offset 0: * not open for reading");
        bench_close(&b);
    }
    qemu_vfree(buf);
}

/* Offsets that no file has are refused, without overflow. */
static void test_bad_offset(gconstpointer data)
{
    const Where *where = data;
    const uint64_t offsets[] = { INT64_MAX - BUF_ALIGN + 1,
                                 UINT64_MAX - BUF_ALIGN + 1,
                                 (uint64_t)INT64_MAX + 1 };
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 2 * BUF_ALIGN);
    Bench b;
    int i;

    for (i = 0; i < ARRAY_SIZE(offsets); i++) {
        if (!bench_open(&b, where, O_RDWR, 0, BUF_ALIGN)) {
            break;
        }
        g_assert(!direct_queue_read(b.q, buf, 2 * BUF_ALIGN, offsets[i],
                                    NULL));
        assert_fails_fast(b.q, "the-file: cannot read 131072 bytes at offset "
                          "*: no file is that large");
        bench_close(&b);
    }
    qemu_vfree(buf);
}

static void test_nothing(gconstpointer data)
{
    const Where *where = data;
    DirectQueueStats stats, zero = { };
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    Bench b;

    if (bench_open(&b, where, O_RDWR, 0, 0)) {
        g_assert(direct_queue_drain(b.q, &error_abort));
        g_assert(direct_queue_write(b.q, buf, 0, 0, &error_abort));
        g_assert(direct_queue_read(b.q, buf, 0, BUF_ALIGN, &error_abort));
        g_assert(direct_queue_drain(b.q, &error_abort));
        direct_queue_get_stats(b.q, &stats);
        g_assert(memcmp(&stats, &zero, sizeof(zero)) == 0);
        g_assert_cmpstr(direct_queue_engine_name(b.q), ==,
                        engine_names[where->engine]);
        g_assert_null(direct_queue_engine_reason(b.q));
        bench_close(&b);
    }
    qemu_vfree(buf);
}

/* What other threads may do: look at the figures, and cancel. */
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

/* Another thread stops a write without end. */
static void test_cancel(gconstpointer data)
{
    const Where *where = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 4 * MiB);
    DirectQueueStats stats;
    GThread *thread;
    Error *err = NULL;
    Bench b;

    if (bench_open(&b, where, O_RDWR, 4, 64 * KiB)) {
        fill(buf, 4 * MiB, 0);
        thread = g_thread_new("cancel", look_and_cancel, b.q);
        while (direct_queue_write(b.q, buf, 4 * MiB, 0, &err)) {
            if (!direct_queue_drain(b.q, &err)) {
                break;
            }
        }
        assert_error(err, "the-file: cancelled");
        assert_fails_fast(b.q, "the-file: cancelled");
        g_thread_join(thread);
        bench_close(&b);
    }
    if (bench_open(&b, where, O_RDWR, 4, 64 * KiB)) {
        direct_queue_cancel(b.q);
        direct_queue_cancel(b.q);
        g_assert(!direct_queue_write(b.q, buf, MiB, 0, NULL));
        assert_fails_fast(b.q, "the-file: cancelled");
        direct_queue_get_stats(b.q, &stats);
        g_assert_cmpuint(stats.requests, ==, 0);
        bench_close(&b);
    }
    qemu_vfree(buf);
}

/* Freed while requests are in flight: none touches the memory later. */
static void test_free_in_flight(gconstpointer data)
{
    const Where *where = data;
    const size_t len = 8 * MiB;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    Bench b;
    size_t i;

    if (bench_open(&b, where, O_RDWR, 64, 128 * KiB)) {
        fill(buf, len, 0);
        g_assert(direct_queue_write(b.q, buf, len, 0, &error_abort));
        direct_queue_free(b.q);

        b.q = make_queue(b.fd, &b.limits, where->engine, 64);
        g_assert(direct_queue_read(b.q, buf, len / 2, 0, &error_abort));
        direct_queue_free(b.q);
        b.q = NULL;
        memset(buf, 0xff, len);
        g_usleep(20000);
        for (i = 0; i < len; i++) {
            g_assert_cmphex(buf[i], ==, 0xff);
        }
        bench_close(&b);
    }
    qemu_vfree(buf);
}

/* Write and read back 8 MiB in small requests. */
static void busy_transfer(const Bench *b)
{
    const size_t len = 8 * MiB;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);

    fill(buf, len, 0);
    g_assert(direct_queue_write(b->q, buf, len, 0, &error_abort));
    g_assert(direct_queue_drain(b->q, &error_abort));
    check_file(b->buffered, len, 0);
    memset(buf, 0, len);
    g_assert(direct_queue_read(b->q, buf, len, 0, &error_abort));
    g_assert(direct_queue_drain(b->q, &error_abort));
    check(buf, len, 0);
    qemu_vfree(buf);
}

static void on_alarm(int signal)
{
}

/* Signals rain on the thread: waits are interrupted, transfers are not. */
static void test_signals(gconstpointer data)
{
    const Where *where = data;
    const struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { };
    struct sigaction action = { .sa_handler = on_alarm }, old;
    Bench b;

    if (bench_open(&b, where, O_RDWR, 4, 64 * KiB)) {
        sigaction(SIGALRM, &action, &old);
        setitimer(ITIMER_REAL, &often, NULL);
        busy_transfer(&b);
        setitimer(ITIMER_REAL, &never, NULL);
        sigaction(SIGALRM, &old, NULL);
        bench_close(&b);
    }
}

/*
 * The libraries' functions to submit, taken over like statx() elsewhere: with
 * @refuse_every n every n-th call is refused, and the first @refuse_first.
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

#ifdef CONFIG_LINUX_AIO
int io_submit(io_context_t context, long n, struct iocb **list)
{
    int (*next)(io_context_t, long, struct iocb **) =
        dlsym(RTLD_NEXT, "io_submit");

    return n > 0 && refused() ? -EAGAIN : next(context, n, list);
}
#endif

/* The kernel is out of requests, now and then or for a while. */
static void test_refused(gconstpointer data)
{
    const Where *where = data;
    const struct {
        unsigned every, first;
    } cases[] = { { 1, 0 }, { 2, 0 }, { 3, 0 }, { 7, 0 }, { 0, 40 } };
    Bench b;
    int i;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        if (cases[i].every == 1 &&
            where->engine == DIRECT_QUEUE_ENGINE_IO_URING) {
            /* Its submissions can't be taken back, only made to wait. */
            continue;
        }
        if (!bench_open(&b, where, O_RDWR, 4, 64 * KiB)) {
            break;
        }
        submit_calls = submit_refused = 0;
        refuse_every = cases[i].every;
        refuse_first = cases[i].first;
        busy_transfer(&b);
        g_assert_cmpuint(submit_refused, >, 0);
        refuse_every = refuse_first = 0;
        bench_close(&b);
    }
}

static unsigned count_descriptors(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    unsigned n = 0;

    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

/* More queues one after the other than the system allows at once. */
static void test_many_queues(gconstpointer data)
{
    const Where *where = data;
    unsigned i, descriptors = count_descriptors();
    Bench b;

    for (i = 0; i < 100; i++) {
        if (!bench_open(&b, where, O_RDWR, DIRECT_QUEUE_DEPTH_MAX, 0)) {
            break;
        }
        bench_close(&b);
    }
    g_assert_cmpuint(count_descriptors(), ==, descriptors);
}

/* A file system or device that is full: says so, and nothing is invented. */
static void test_full(gconstpointer data)
{
    const Where *where = data;
    const size_t len = 96 * MiB;        /* more than any of them holds */
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    DirectQueueStats stats;
    unsigned depth;
    Bench b;

    fill(buf, len, 0);
    for (depth = 1; depth <= 16; depth += 15) {
        if (!bench_open(&b, where, O_RDWR, depth, MiB)) {
            break;
        }
        direct_queue_write(b.q, buf, len, 0, NULL);
        assert_fails_fast(b.q, "the-file: cannot write * bytes at offset *: "
                          "no space left on the file system or device");

        direct_queue_get_stats(b.q, &stats);
        g_assert_cmpuint(stats.bytes_written, >, MiB);
        g_assert_cmpuint(stats.bytes_written, <, len);
        if (depth == 1) {
            check_file(b.buffered, stats.bytes_written, 0);
        }
        bench_close(&b);
    }
    qemu_vfree(buf);
}

static void test_device_end(gconstpointer data)
{
    const Where *where = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, MiB);
    g_autofree char *pattern = NULL;
    off_t end;
    Bench b;

    if (bench_open(&b, where, O_RDWR, 1, MiB)) {
        end = lseek(b.buffered, 0, SEEK_END);
        pattern = g_strdup_printf("the-file: the file ended at offset %"
                                  PRIu64 ", needed 524288 more bytes",
                                  (uint64_t)end);
        direct_queue_read(b.q, buf, MiB, end - MiB / 2, NULL);
        assert_fails_fast(b.q, pattern);
        bench_close(&b);
    }
    qemu_vfree(buf);
}

/* Write like this in another process.  Returns how that ended. */
static int write_in_child(const Where *where, int fd, const uint8_t *buf,
                          size_t len, uint64_t offset)
{
    DirectIOLimits limits = { 512, 4096, MiB };
    int status, null;
    pid_t pid = fork();

    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        DirectQueue *q = make_queue(fd, &limits, where->engine, 0);

        /* No assertion's message and no core in the log of a good run. */
        null = open("/dev/null", O_WRONLY);
        dup2(null, STDERR_FILENO);
        setrlimit(RLIMIT_CORE, &(struct rlimit) { 0, 0 });
        _exit(direct_queue_write(q, buf, len, offset, NULL) &&
              direct_queue_drain(q, NULL) ? 0 : 1);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    return status;
}

/* The caller's bugs are caught before the kernel sees them. */
static void test_alignment(gconstpointer data)
{
    const Where *where = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    int fd = direct_io_test_file(where->path, 0, NULL);
    const struct {
        size_t memory, len, offset;
        bool good;
    } cases[] = {
        { 0, 4096, 4096, true },
        { 512, 8192, 12288, true },
        { 511, 4096, 4096 },
        { 256, 4096, 4096 },
        { 512, 4096 - 512, 4096 },
        { 512, 1, 4096 },
        { 512, 4096, 2048 },
        { 512, 4096, 4097 },
    };
    int i, status;

    memset(buf, 1, BUF_ALIGN);
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        status = write_in_child(where, fd, buf + cases[i].memory,
                                cases[i].len, cases[i].offset);
        if (cases[i].good) {
            g_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        } else {
            g_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
        }
    }
    close(fd);
    qemu_vfree(buf);
}

/* Part two: the core on a method that does what the test wants */

typedef enum FaultOrder { IN_ORDER, LAST_FIRST, RANDOM } FaultOrder;

typedef struct FaultState FaultState;

/* What is to happen; numbers of submissions count from 1, 0 is never. */
static struct {
    /* Requests are over at once, or wait until fetched in this order. */
    bool at_once;
    FaultOrder order;

    /* The queue's alignment of memory, if not that of offsets; its bytes. */
    uint32_t mem_align;
    uint64_t bytes;

    /* No transfer moves more than this, if not 0. */
    size_t most;

    /* Submission @at (and each @every-th) moves @bytes, or fails so. */
    uint64_t at, every;
    ssize_t result;
    bool busy;

    /* Or: submission @at takes that long at least. */
    unsigned slow_us;

    /* Or: what each of the first submissions comes to, if not 0. */
    ssize_t script[4];

    /* What the method saw. */
    uint64_t submissions;
    uint64_t fetched;
    uint64_t opened, closed;
    uint64_t submissions_when_failed;
    DirectQueue *cancel;            /* at submission @at */
} fault;

struct FaultState {
    int fd;
    unsigned depth;
    DirectIOLimits limits;
    unsigned n;
    struct {
        DirectRequest *req;
        ssize_t result;
    } *waiting;
};

static void fault_reset(void)
{
    memset(&fault, 0, sizeof(fault));
}

static bool fault_open(const DirectQueueConfig *config, unsigned depth,
                       void **state, Error **errp)
{
    FaultState *s = g_new0(FaultState, 1);

    s->fd = config->fd;
    s->depth = depth;
    s->limits = config->limits;
    s->waiting = g_malloc0_n(depth, sizeof(*s->waiting));
    fault.opened++;
    *state = s;
    return true;
}

static void fault_close(void *state)
{
    FaultState *s = state;

    g_assert_cmpuint(s->n, ==, 0);
    fault.closed++;
    g_free(s->waiting);
    g_free(s);
}

static bool fault_hits(void)
{
    return fault.submissions == fault.at ||
           (fault.every && fault.submissions % fault.every == 0);
}

/* The transfer itself, shortened or not at all as the test wants. */
static ssize_t fault_transfer(FaultState *s, DirectRequest *req)
{
    DirectRequest part = *req;

    g_assert(QEMU_PTR_IS_ALIGNED(req->buf, s->limits.mem_align));
    g_assert(QEMU_IS_ALIGNED(req->offset, s->limits.offset_align));
    g_assert(QEMU_IS_ALIGNED(req->len, s->limits.offset_align));
    g_assert_cmpuint(req->len, >, 0);

    if (fault.most) {
        part.len = MIN(part.len, fault.most);
    }
    if (fault_hits()) {
        if (fault.result <= 0) {
            return fault.result;
        }
        part.len = MIN(part.len, fault.result);
    }
    if (fault.submissions <= ARRAY_SIZE(fault.script)) {
        ssize_t result = fault.script[fault.submissions - 1];

        if (result < 0) {
            return result;
        }
        part.len = result ? MIN(part.len, result) : part.len;
    }
    return direct_queue_transfer_sync(s->fd, &part);
}

static DirectSubmit fault_submit(void *state, DirectRequest *req,
                                 ssize_t *result)
{
    FaultState *s = state;

    fault.submissions++;
    if (fault.cancel && fault_hits()) {
        direct_queue_cancel(fault.cancel);
    }
    if (fault.busy && fault_hits()) {
        return DIRECT_SUBMIT_BUSY;
    }
    if (fault.slow_us && fault_hits()) {
        g_usleep(fault.slow_us);
        *result = direct_queue_transfer_sync(s->fd, req);
    } else {
        *result = fault_transfer(s, req);
    }
    if (fault.at_once) {
        return DIRECT_SUBMIT_DONE;
    }
    g_assert_cmpuint(s->n, <, s->depth);
    s->waiting[s->n].req = req;
    s->waiting[s->n++].result = *result;
    /* What must not be looked at before the request is fetched. */
    *result = INT_MIN;
    return DIRECT_SUBMIT_QUEUED;
}

/* As lazy as allowed: nothing is ready before somebody waits. */
static bool fault_reap(void *state, bool wait, DirectRequest **req,
                       ssize_t *result)
{
    FaultState *s = state;
    unsigned i = 0;

    g_assert_cmpuint(s->n, >, 0);
    if (!wait) {
        return false;
    }
    if (fault.order == LAST_FIRST) {
        i = s->n - 1;
    } else if (fault.order == RANDOM) {
        i = g_test_rand_int_range(0, s->n);
    }
    *req = s->waiting[i].req;
    *result = s->waiting[i].result;
    s->n--;
    memmove(&s->waiting[i], &s->waiting[i + 1],
            (s->n - i) * sizeof(*s->waiting));
    fault.fetched++;
    if (*result < 0 && !fault.submissions_when_failed) {
        fault.submissions_when_failed = fault.submissions;
    }
    return true;
}

static const DirectQueueMethod fault_method = {
    .name = "fault",
    .open = fault_open,
    .close = fault_close,
    .submit = fault_submit,
    .reap = fault_reap,
};

static bool fault_refuse(const DirectQueueConfig *config, unsigned depth,
                         void **state, Error **errp)
{
    error_setg(errp, "not today");
    return false;
}

static const DirectQueueMethod refusing_method = {
    .name = "refusing",
    .open = fault_refuse,
};

/* A queue on a new file with the faulty method below. */
static DirectQueue *fault_queue(int *fd, uint32_t align, uint32_t size,
                                unsigned depth)
{
    DirectQueueConfig config = {
        .name = "the-file",
        .limits = { fault.mem_align ?: align, align, size },
        .depth = depth,
        .bytes = fault.bytes,
    };

    *fd = direct_io_test_file(g_get_tmp_dir(), 0, NULL);
    config.fd = *fd;
    return direct_queue_new_with_method(&config, &fault_method, &error_abort);
}

/* Write [0, @len), read it back. */
static void transfer_both_ways(DirectQueue *q, int fd, size_t len)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    uint64_t first = fault.submissions;

    fill(buf, len, 0);
    g_assert(direct_queue_write(q, buf, len, 0, &error_abort));
    g_assert(direct_queue_drain(q, &error_abort));
    check_file(fd, len, 0);
    memset(buf, 0, len);
    /* The reading side meets its fault at its own N-th submission. */
    if (fault.at) {
        fault.submissions = 0;
    }
    g_assert(direct_queue_read(q, buf, len, 0, &error_abort));
    g_assert(direct_queue_drain(q, &error_abort));
    check(buf, len, 0);
    fault.submissions += fault.at ? first : 0;
    qemu_vfree(buf);
}

/* A transfer stops after each possible number of bytes, once. */
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
            transfer_both_ways(q, fd, len);
            direct_queue_get_stats(q, &stats);
            g_assert_cmpuint(stats.bytes_written, ==, len);
            g_assert_cmpuint(stats.bytes_read, ==, len);
            g_assert_cmpuint(stats.requests, ==, 2);
            g_assert_cmpuint(stats.short_transfers, ==, bytes < len ? 2 : 0);
            g_assert_cmpuint(histogram_sum(&stats), ==, 2);
            direct_queue_free(q);
            close(fd);
        }
    }
}

/* Large requests are limited by their bytes, by default or as asked for. */
static void test_bytes_in_flight(void)
{
    static const struct {
        unsigned depth;
        uint64_t bytes;
        uint32_t size;
        size_t len;
        unsigned in_flight;
    } cases[] = {
        { 0, 0, 4 * KiB, 100 * 4 * KiB, DIRECT_QUEUE_DEPTH_DEFAULT },
        { 0, 0, 8 * MiB, 48 * MiB, DIRECT_QUEUE_BYTES_DEFAULT / (8 * MiB) },
        { 0, 0, 64 * MiB, 64 * MiB + 4 * KiB, 1 },
        { 5, 0, 8 * MiB, 48 * MiB, 5 },
        { 5, 16 * MiB, 8 * MiB, 48 * MiB, 2 },
        { 0, 12 * KiB, 4 * KiB, 100 * 4 * KiB, 3 },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t *buf = qemu_memalign(BUF_ALIGN, cases[i].len);
        DirectQueueStats stats;
        DirectQueue *q;
        int fd;

        fault_reset();
        fault.bytes = cases[i].bytes;
        q = fault_queue(&fd, 4096, cases[i].size, cases[i].depth);
        g_assert_cmpint(ftruncate(fd, cases[i].len), ==, 0);
        /* Twice: what has ended makes room again. */
        for (int j = 0; j < 2; j++) {
            g_assert(direct_queue_read(q, buf, cases[i].len, 0,
                                       &error_abort));
            g_assert(direct_queue_drain(q, &error_abort));
            direct_queue_get_stats(q, &stats);
            g_assert_cmpuint(stats.max_in_flight, ==, cases[i].in_flight);
        }
        g_assert_cmpuint(stats.bytes_read, ==, 2 * cases[i].len);
        direct_queue_free(q);
        close(fd);
        qemu_vfree(buf);
    }
}

/* Waiting without a drain: each one fetches something, and sees errors. */
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
    direct_queue_free(q);
    close(fd);
}

/* All transfers are short, all the time, in any order of completion. */
static void test_short_always(void)
{
    const size_t mosts[] = { 512, 513, 1000, 1024, 4095, 4096, 5000 };
    const size_t len = 40 * 4096;
    DirectQueueStats stats;
    DirectQueue *q;
    int i, order, at_once, fd;

    for (i = 0; i < ARRAY_SIZE(mosts); i++) {
        for (order = IN_ORDER; order <= RANDOM; order++) {
            for (at_once = 0; at_once < 2; at_once++) {
                uint64_t pieces = 4096 / QEMU_ALIGN_DOWN(MIN(mosts[i], 4096),
                                                         512);
                fault_reset();
                fault.most = mosts[i];
                fault.order = order;
                fault.at_once = at_once;
                q = fault_queue(&fd, 512, 4096, 5);
                transfer_both_ways(q, fd, len);
                direct_queue_get_stats(q, &stats);
                g_assert_cmpuint(stats.requests, ==, 80);
                g_assert_cmpuint(stats.max_in_flight, ==, at_once ? 1 : 5);
                if (4096 % QEMU_ALIGN_DOWN(MIN(mosts[i], 4096), 512) == 0) {
                    g_assert_cmpuint(fault.submissions, ==, 80 * pieces);
                }
                direct_queue_free(q);
                close(fd);
                g_assert_cmpuint(fault.opened, ==, fault.closed);
            }
        }
    }
}

/* No transfer ever reaches the next block: given up, after a second try. */
static void test_short_stuck(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 4096);
    DirectQueue *q;
    int fd;

    memset(buf, 1, 4096);
    fault_reset();
    fault.most = 511;
    q = fault_queue(&fd, 512, 4096, 4);
    direct_queue_write(q, buf, 4096, 512, NULL);
    assert_fails_fast(q, "the-file: cannot write 4096 bytes at offset 512: "
                      "only 511 of them were taken");
    g_assert_cmpuint(fault.submissions, ==, 2);
    direct_queue_free(q);
    close(fd);

    /* A write of nothing at all is an error at once. */
    fault_reset();
    fault.at = 1;
    fault.result = 0;
    q = fault_queue(&fd, 512, 4096, 4);
    direct_queue_write(q, buf, 4096, 512, NULL);
    assert_fails_fast(q, "the-file: cannot write 4096 bytes at offset 512: "
                      "only 0 of them were taken");
    g_assert_cmpuint(fault.submissions, ==, 1);
    direct_queue_free(q);
    close(fd);

    /* One stop without progress is forgiven after each that had some. */
    fault_reset();
    fault.script[0] = 100;
    fault.script[1] = 1000;
    fault.script[2] = 200;
    q = fault_queue(&fd, 512, 4096, 4);
    fill(buf, 4096, 512);
    g_assert(direct_queue_write(q, buf, 4096, 512, &error_abort));
    g_assert(direct_queue_drain(q, &error_abort));
    g_assert_cmpuint(fault.submissions, ==, 4);
    check_file(fd, 4096, 512);
    direct_queue_free(q);
    close(fd);
    qemu_vfree(buf);
}

/* The end of the file is found, though the request behind it fails first. */
static void test_eof_last_first(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 8 * 4096);
    DirectQueue *q;
    int fd;

    fault_reset();
    fault.order = LAST_FIRST;
    q = fault_queue(&fd, 512, 4096, 8);
    g_assert_cmpint(ftruncate(fd, 9000), ==, 0);
    g_assert(direct_queue_read(q, buf, 8 * 4096, 0, &error_abort));
    assert_fails_fast(q, "the-file: the file ended at offset 9000, needed "
                      "23768 more bytes");
    direct_queue_free(q);
    close(fd);
    qemu_vfree(buf);
}

/* The N-th request fails: its error is the queue's, nothing is new after. */
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

    fill(buf, len, 0);
    for (n = 1; n <= 20; n++) {
        for (i = 0; i < ARRAY_SIZE(depths); i++) {
            for (order = IN_ORDER; order <= RANDOM; order++) {
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

                /* What was out came back, and nothing went out since. */
                g_assert_cmpuint(fault.submissions, ==, fault.fetched);
                g_assert_cmpuint(fault.submissions, ==,
                                 fault.submissions_when_failed);
                direct_queue_get_stats(q, &stats);
                g_assert_cmpuint(stats.bytes_written, ==,
                                 (fault.fetched - 1) * 4096);
                g_assert_cmpuint(histogram_sum(&stats), ==,
                                 fault.fetched - 1);
                direct_queue_free(q);
                close(fd);
            }
        }
    }
    qemu_vfree(buf);
}

/* Of several errors the first one to come back counts. */
static void test_error_first(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    Error *err = NULL;
    DirectQueue *q;
    int fd;

    memset(buf, 1, BUF_ALIGN);
    fault_reset();
    fault.order = LAST_FIRST;
    fault.every = 1;
    fault.result = -EIO;
    q = fault_queue(&fd, 512, 4096, 8);
    g_assert(direct_queue_write(q, buf, 8 * 4096, 0, &error_abort));
    g_assert(!direct_queue_drain(q, &err));
    assert_error(err, "the-file: cannot write 4096 bytes at offset 28672: "
                 "Input/output error");
    assert_fails_fast(q, "* offset 28672: *");
    g_assert_cmpuint(fault.fetched, ==, 8);
    direct_queue_free(q);
    close(fd);

    /* A cancel does not hide what went wrong before it. */
    fault_reset();
    fault.at = 2;
    fault.result = -EIO;
    q = fault_queue(&fd, 512, 4096, 1);
    g_assert(!direct_queue_write(q, buf, 8 * 4096, 0, NULL));
    direct_queue_cancel(q);
    assert_fails_fast(q, "* offset 4096: Input/output error");
    direct_queue_free(q);
    close(fd);

    /* Short requests are not continued behind an error. */
    fault_reset();
    fault.at = 4;
    fault.result = -EIO;
    fault.most = 512;
    fault.order = LAST_FIRST;
    q = fault_queue(&fd, 512, 4096, 4);
    g_assert(direct_queue_write(q, buf, 4 * 4096, 0, &error_abort));
    g_assert(!direct_queue_drain(q, NULL));
    g_assert_cmpuint(fault.submissions, ==, 4);
    direct_queue_free(q);
    close(fd);
    qemu_vfree(buf);
}

/* Interrupted, refused, busy: tried again until done. */
static void test_again(void)
{
    const struct {
        ssize_t result;
        bool busy;
    } cases[] = { { -EINTR }, { -EAGAIN }, { 0, .busy = true } };
    DirectQueueStats stats;
    DirectQueue *q;
    int i, every, depth, at_once, fd;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        for (every = i == 0 ? 2 : 1; every < 5; every++) {
            for (depth = 1; depth < 5; depth++) {
                for (at_once = 0; at_once < 2; at_once++) {
                    fault_reset();
                    fault.every = every;
                    fault.result = cases[i].result;
                    fault.busy = cases[i].busy;
                    fault.at_once = at_once;
                    fault.order = RANDOM;
                    q = fault_queue(&fd, 512, 4096, depth);
                    transfer_both_ways(q, fd, 30 * 4096);
                    direct_queue_get_stats(q, &stats);
                    g_assert_cmpuint(stats.requests, ==, 60);
                    g_assert_cmpuint(stats.bytes_written, ==, 30 * 4096);
                    g_assert_cmpuint(stats.bytes_read, ==, 30 * 4096);
                    g_assert_cmpuint(stats.retries, ==,
                                     fault.submissions / every);
                    direct_queue_free(q);
                    close(fd);
                }
            }
        }
    }
}

/*
 * A slow request is found in the statistics.  How fast the others are is not
 * known here: the machine may be busy.
 */
static void test_slow(void)
{
    const unsigned slow_us = 20000, bucket = 14;    /* from 2^14 on */
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    DirectQueueStats stats;
    DirectQueue *q;
    int fd, at_once;

    memset(buf, 1, BUF_ALIGN);
    for (at_once = 0; at_once < 2; at_once++) {
        uint64_t slow = 0, all = 0;

        fault_reset();
        fault.at_once = at_once;
        fault.at = 5;
        fault.slow_us = slow_us;
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
        direct_queue_free(q);
        close(fd);
    }
    qemu_vfree(buf);
}

/* All faults that are none, mixed, byte by byte. */
static void test_mixed(void)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    DirectQueueStats stats;
    DirectQueue *q;
    int i, fd;

    for (i = 1; i < 50; i++) {
        fault_reset();
        fault.order = RANDOM;
        fault.most = i;
        fault.every = 1 + i % 7;
        fault.result = fault.every == 1 ? i : -EINTR;
        q = fault_queue(&fd, 1, 512, 1 + i % 5);
        transfer_both_ways(q, fd, 3001);
        direct_queue_get_stats(q, &stats);
        g_assert_cmpuint(stats.bytes_written, ==, 3001);
        g_assert_cmpuint(stats.requests, ==, 12);
        direct_queue_free(q);
        close(fd);
    }
    qemu_vfree(buf);
}

/* Cancelled with requests in flight: they come back, no other goes out. */
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
    g_assert_cmpuint(fault.fetched, ==, 0);
    assert_fails_fast(q, "the-file: cancelled");
    g_assert_cmpuint(fault.submissions, ==, 6);
    g_assert_cmpuint(fault.fetched, ==, 6);
    direct_queue_free(q);
    close(fd);

    /* Freed without a drain; the method's close() counts. */
    fault_reset();
    q = fault_queue(&fd, 512, 4096, 8);
    fault.most = 1024;
    g_assert(direct_queue_write(q, buf, 8 * 4096, 0, &error_abort));
    g_assert_cmpuint(fault.fetched, ==, 0);
    direct_queue_free(q);
    g_assert_cmpuint(fault.fetched, ==, 8);
    g_assert_cmpuint(fault.submissions, ==, 8);
    g_assert_cmpuint(fault.closed, ==, 1);
    close(fd);
    direct_queue_free(NULL);
    qemu_vfree(buf);
}

static void test_new(void)
{
    int fd = direct_io_test_file(g_get_tmp_dir(), 0, NULL);
    DirectQueueConfig config = { .fd = fd, .name = "the-file" };
    const char *reason;
    DirectQueue *q;
    Error *err = NULL;
    int i;

    direct_io_limits_buffered(&config.limits);

    config.depth = DIRECT_QUEUE_DEPTH_MAX + 1;
    g_assert_null(direct_queue_new(&config, &err));
    assert_error(err, "the-file: a depth of 1025 requests *");
    config.depth = 0;

    err = NULL;
    g_assert_null(direct_queue_new_with_method(&config, &refusing_method,
                                               &err));
    assert_error(err, "not today");

    /* The automatic choice is the first that works; it tells about others. */
    q = direct_queue_new(&config, &error_abort);
    reason = direct_queue_engine_reason(q);
    g_test_message("%s because of: %s", direct_queue_engine_name(q),
                   reason ?: "nothing");
    for (i = DIRECT_QUEUE_ENGINE_IO_URING; i < DIRECT_QUEUE_ENGINE__MAX; i++) {
        DirectQueue *forced;

        config.engine = i;
        err = NULL;
        forced = direct_queue_new(&config, &err);
        if (forced) {
            g_assert_cmpstr(direct_queue_engine_name(forced), ==,
                            engine_names[i]);
            g_assert_cmpstr(direct_queue_engine_name(q), ==, engine_names[i]);
            g_assert_null(direct_queue_engine_reason(forced));
            direct_queue_free(forced);
            break;
        }
        g_assert_nonnull(reason);
        g_assert_nonnull(strstr(reason, engine_names[i]));
        g_assert_nonnull(strstr(error_get_pretty(err), engine_names[i]));
        assert_error(err, "the-file: the * engine for direct I/O does not "
                     "work here: *");
    }
    g_assert_cmpint(i, <, DIRECT_QUEUE_ENGINE__MAX);
    g_assert((reason == NULL) == (i == DIRECT_QUEUE_ENGINE_IO_URING));
    direct_queue_free(q);
    close(fd);
}

/* Part three: engines that a sandbox forbids */

/* Make system call @number fail with @err in this process, for ever. */
static bool forbid(int number, int err)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { ARRAY_SIZE(code), code };

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* The same for linux-aio: libaio takes either call to wait for requests. */
static bool forbid_aio(int number, int err)
{
#ifdef SYS_io_pgetevents
    if (number == SYS_io_getevents && !forbid(SYS_io_pgetevents, err)) {
        return false;
    }
#endif
    return forbid(number, err);
}

typedef struct Forbidden {
    int number;
    int err;
    const char *reason;
} Forbidden;

/*
 * The automatic choice where @uring and @aio (may be NULL) are forbidden is
 * @name, because of the reasons there, and it works.  Ends the process: 0 is
 * well, 2 is that nothing can be forbidden here.
 */
static void check_choice(int fd, const Forbidden *uring, const Forbidden *aio,
                         const char *name)
{
    g_autofree char *pattern = NULL;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, MiB);
    DirectQueueConfig config = { .fd = fd, .name = "the-file" };
    DirectQueue *q;
    Error *err = NULL;
    unsigned descriptors = count_descriptors();

    if (!forbid(uring->number, uring->err) ||
        (aio && !forbid_aio(aio->number, aio->err))) {
        _exit(2);
    }
    pattern = g_strdup_printf("io_uring: %s%s%s", uring->reason,
                              aio ? "; linux-aio: " : "",
                              aio ? aio->reason : "");
    direct_io_limits_buffered(&config.limits);
    q = direct_queue_new(&config, &error_abort);
    g_assert_cmpstr(direct_queue_engine_name(q), ==, name);
    if (!g_pattern_match_simple(pattern, direct_queue_engine_reason(q))) {
        g_error("wanted: %s\ngot: %s", pattern, direct_queue_engine_reason(q));
    }
    fill(buf, MiB, 0);
    g_assert(direct_queue_write(q, buf, MiB, 0, &error_abort));
    g_assert(direct_queue_drain(q, &error_abort));
    check_file(fd, MiB, 0);
    direct_queue_free(q);

    /* Asked for by name it is an error, with the same reason. */
    g_free(pattern);
    pattern = g_strdup_printf("the-file: the io_uring engine for direct I/O "
                              "does not work here: %s", uring->reason);
    config.engine = DIRECT_QUEUE_ENGINE_IO_URING;
    g_assert_null(direct_queue_new(&config, &err));
    assert_error(err, pattern);
    g_assert_cmpuint(count_descriptors(), ==, descriptors);
    _exit(0);
}

static void *write_late(void *opaque)
{
    static const uint8_t data[4096] = { 1, 2, 3 };

    g_usleep(2500 * 1000);
    g_assert_cmpint(write(*(int *)opaque, data, sizeof(data)), ==,
                    sizeof(data));
    return NULL;
}

/* A request that takes its time is waited for, however often one looks. */
static void test_uring_patience(void)
{
    DirectQueueConfig config = {
        .name = "the-file",
        .engine = DIRECT_QUEUE_ENGINE_IO_URING,
        .depth = 1,
    };
    uint8_t buf[4096] = {};
    DirectQueueStats stats;
    DirectQueue *q;
    GThread *thread;
    int fds[2];

    /* io_uring reads pipes as well as files */
    g_assert_cmpint(pipe(fds), ==, 0);
    config.fd = fds[0];
    direct_io_limits_buffered(&config.limits);
    q = direct_queue_new(&config, &error_abort);
    thread = g_thread_new("late", write_late, &fds[1]);
    g_assert_true(direct_queue_read(q, buf, sizeof(buf), 0, &error_abort));
    g_assert_true(direct_queue_drain(q, &error_abort));
    g_thread_join(thread);
    g_assert_cmpuint(buf[2], ==, 3);
    direct_queue_get_stats(q, &stats);
    g_assert_cmpuint(stats.requests, ==, 1);
    g_assert_cmpuint(stats.slowest_us, >=, 2000 * 1000);
    direct_queue_free(q);
    close(fds[0]);
    close(fds[1]);
}

static void test_sandbox(void)
{
    static const Forbidden urings[] = {
        { SYS_io_uring_setup, EPERM, "not permitted (*)" },
        { SYS_io_uring_setup, ENOSYS, "* does not have it" },
        { SYS_io_uring_setup, ENOMEM, "* (raise RLIMIT_MEMLOCK, *)" },
        { SYS_io_uring_setup, EMFILE, "Too many open files" },
        { SYS_io_uring_register, EINVAL, "* it takes Linux 5.6" },
        { SYS_io_uring_enter, EPERM, "not permitted (*)" },
    };
    static const Forbidden aios[] = {
        { SYS_io_setup, EPERM, "not permitted (*)" },
        { SYS_io_setup, ENOSYS, "* does not have it" },
        { SYS_io_setup, EAGAIN, "* (raise the sysctl fs.aio-max-nr, *)" },
        { SYS_io_setup, ENOMEM, "Cannot allocate memory" },
        { SYS_io_getevents, EPERM, "not permitted (*)" },
        { SYS_io_submit, EPERM, "not permitted (*)" },
    };
    int i, k, status;

    for (i = 0; i < ARRAY_SIZE(urings); i++) {
        for (k = -1; k < (int)ARRAY_SIZE(aios); k++) {
            int fd = direct_io_test_file(g_get_tmp_dir(), 0, NULL);
            pid_t pid = fork();

            g_assert_cmpint(pid, >=, 0);
            if (pid == 0) {
                check_choice(fd, &urings[i], k < 0 ? NULL : &aios[k],
                             k < 0 ? "linux-aio" : "sync");
            }
            g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
            close(fd);
            if (WIFEXITED(status) && WEXITSTATUS(status) == 2) {
                g_test_skip("seccomp filters are not available");
                return;
            }
            g_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
    }
}

/* All tests */

static bool engine_works(DirectQueueEngine engine)
{
    int fd = direct_io_test_file(g_get_tmp_dir(), 0, NULL);
    DirectQueueConfig config = {
        .fd = fd,
        .name = "the-file",
        .engine = engine,
    };
    Error *err = NULL;
    DirectQueue *q;

    direct_io_limits_buffered(&config.limits);
    q = direct_queue_new(&config, &err);
    if (!q) {
        printf("# %s\n", error_get_pretty(err));
        error_free(err);
    }
    direct_queue_free(q);
    close(fd);
    return q != NULL;
}

static void add(const char *place, const Where *where, const char *what,
                GTestDataFunc func)
{
    g_autofree char *path =
        g_strdup_printf("/direct-queue/%s/%s/%s/%s",
                        engine_names[where->engine], place,
                        where->direct ? "direct" : "buffered", what);
    Where *copy = g_new(Where, 1);

    *copy = *where;
    g_test_add_data_func_full(path, copy, func, g_free);
}

static void add_dir(const Where *where)
{
    g_autofree char *place = g_path_get_basename(where->path);

    add(place, where, "write-read", test_write_read);
    add(place, where, "split", test_split);
    add(place, where, "far", test_far);
    add(place, where, "eof", test_eof);
    add(place, where, "eof-exact", test_eof_exact);
    add(place, where, "rlimit", test_rlimit);
    add(place, where, "bad-access", test_bad_access);
    add(place, where, "bad-offset", test_bad_offset);
    add(place, where, "nothing", test_nothing);
    add(place, where, "cancel", test_cancel);
    add(place, where, "free-in-flight", test_free_in_flight);
    add(place, where, "signals", test_signals);
    if (where->engine != DIRECT_QUEUE_ENGINE_SYNC) {
        add(place, where, "refused", test_refused);
    }
    if (!where->direct) {
        add(place, where, "alignment", test_alignment);
    }
}

static void add_small_dir(const Where *where)
{
    g_autofree char *place = g_path_get_basename(where->path);

    add(place, where, "full", test_full);
}

static void add_device(const Where *where)
{
    /* Names of loop devices change from run to run. */
    DirectIOLimits limits = { };
    g_autofree char *place = NULL;
    int fd = open(where->path, O_RDONLY);

    if (fd < 0 || !direct_io_probe(fd, where->path, &limits, NULL)) {
        return;
    }
    close(fd);
    place = g_strdup_printf("device-%" PRIu32, limits.offset_align);
    add(place, where, "write-read", test_write_read);
    add(place, where, "split", test_split);
    add(place, where, "device-end", test_device_end);
    add(place, where, "full", test_full);
    add(place, where, "free-in-flight", test_free_in_flight);
}

static bool works[DIRECT_QUEUE_ENGINE__MAX];

/* Call @func for each path with each engine, buffered and direct. */
static void for_all(char **paths, bool is_device, void (*func)(const Where *))
{
    int i, engine, direct;

    for (i = 0; paths[i]; i++) {
        for (engine = DIRECT_QUEUE_ENGINE_AUTO + 1;
             engine < DIRECT_QUEUE_ENGINE__MAX; engine++) {
            for (direct = 0; direct < 2 && works[engine]; direct++) {
                Where where = {
                    .path = paths[i],
                    .is_device = is_device,
                    .direct = direct,
                    .engine = engine,
                };

                func(&where);
            }
        }
    }
}

int main(int argc, char **argv)
{
    g_auto(GStrv) dirs = direct_io_test_dirs();
    g_auto(GStrv) small = direct_io_test_list("QDIO_TEST_SMALL_DIRS");
    g_auto(GStrv) devices = direct_io_test_list("QDIO_TEST_BLOCKDEVS");
    int i;

    /* As every user of queues has to see to. */
    signal(SIGXFSZ, SIG_IGN);

    g_test_init(&argc, &argv, NULL);
    for (i = DIRECT_QUEUE_ENGINE_AUTO + 1; i < DIRECT_QUEUE_ENGINE__MAX; i++) {
        Where where = { .path = g_get_tmp_dir(), .engine = i };

        works[i] = engine_works(i);
        if (works[i]) {
            add("any", &where, "many-queues", test_many_queues);
        }
    }
    for_all(dirs, false, add_dir);
    for_all(small, false, add_small_dir);
    for_all(devices, true, add_device);

    g_test_add_func("/direct-queue/new", test_new);
    g_test_add_func("/direct-queue/fault/short-everywhere",
                    test_short_everywhere);
    g_test_add_func("/direct-queue/fault/short-always", test_short_always);
    g_test_add_func("/direct-queue/bytes-in-flight", test_bytes_in_flight);
    g_test_add_func("/direct-queue/wait", test_wait);
    g_test_add_func("/direct-queue/fault/short-stuck", test_short_stuck);
    g_test_add_func("/direct-queue/fault/eof-last-first",
                    test_eof_last_first);
    g_test_add_func("/direct-queue/fault/error-at", test_error_at);
    g_test_add_func("/direct-queue/fault/error-first", test_error_first);
    g_test_add_func("/direct-queue/fault/again", test_again);
    g_test_add_func("/direct-queue/fault/slow", test_slow);
    g_test_add_func("/direct-queue/fault/mixed", test_mixed);
    g_test_add_func("/direct-queue/fault/cancel-in-flight",
                    test_cancel_in_flight);
    if (works[DIRECT_QUEUE_ENGINE_IO_URING]) {
        g_test_add_func("/direct-queue/io_uring/patience",
                        test_uring_patience);
    }
    if (works[DIRECT_QUEUE_ENGINE_IO_URING] &&
        works[DIRECT_QUEUE_ENGINE_LINUX_AIO]) {
        g_test_add_func("/direct-queue/sandbox", test_sandbox);
    }
    return g_test_run();
}
