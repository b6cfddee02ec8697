/*
 * Shared code of the test programs of include/io/direct-queue.h
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "direct-queue-helpers.h"

static uint8_t pattern_at(uint64_t offset)
{
    return (offset * UINT64_C(0x9e3779b97f4a7c15)) >> 56;
}

void pattern_fill(uint8_t *buf, size_t len, uint64_t offset)
{
    size_t i;

    for (i = 0; i < len; i++) {
        buf[i] = pattern_at(offset + i);
    }
}

void pattern_check(const uint8_t *buf, size_t len, uint64_t offset)
{
    size_t i;

    for (i = 0; i < len; i++) {
        if (buf[i] != pattern_at(offset + i)) {
            g_error("wrong byte at offset %" PRIu64, offset + i);
        }
    }
}

void pattern_check_file(int fd, size_t len, uint64_t offset)
{
    g_autofree uint8_t *buf = g_malloc(len);
    size_t done = 0;

    while (done < len) {
        ssize_t ret = pread(fd, buf + done, len - done, offset + done);

        g_assert_cmpint(ret, >, 0);
        done += ret;
    }
    pattern_check(buf, len, offset);
}

void assert_error(Error *err, const char *pattern)
{
    g_assert_nonnull(err);
    if (!g_pattern_match_simple(pattern, error_get_pretty(err))) {
        g_error("wanted: %s\ngot: %s", pattern, error_get_pretty(err));
    }
    error_free(err);
}

void assert_fails_fast(DirectQueue *q, const char *pattern)
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

uint64_t histogram_sum(const DirectQueueStats *stats)
{
    uint64_t sum = 0;
    int i;

    for (i = 0; i < DIRECT_QUEUE_LATENCY_BUCKETS; i++) {
        sum += stats->latency[i];
    }
    return sum;
}

static bool works[DIRECT_IO_ENGINE__MAX];

bool engine_works(DirectIoEngine engine)
{
    return works[engine];
}

static bool try_engine(DirectIoEngine engine)
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

DirectQueue *make_queue(int fd, const DirectIOLimits *limits,
                        DirectIoEngine engine, unsigned depth)
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

bool fixture_open(QueueFixture *f, const TestPlace *place, int flags,
                  unsigned depth, uint32_t request_size)
{
    Error *err = NULL;

    if (place->is_device) {
        f->buffered = open(place->path, O_RDWR);
    } else {
        f->buffered = direct_io_test_file(place->path, 0, NULL);
    }
    g_assert_cmpint(f->buffered, >=, 0);
    if (place->direct) {
        f->fd = direct_io_reopen(f->buffered, "the-file", flags, &err);
        if (f->fd < 0) {
            g_test_skip(error_get_pretty(err));
            error_free(err);
            close(f->buffered);
            return false;
        }
        direct_io_probe(f->fd, "the-file", &f->limits, &error_abort);
    } else {
        g_autofree char *proc = g_strdup_printf("/proc/self/fd/%d",
                                                f->buffered);
        f->fd = open(proc, flags);
        g_assert_cmpint(f->fd, >=, 0);
        direct_io_limits_buffered(&f->limits);
    }
    if (request_size) {
        f->limits.opt_transfer = request_size;
    }
    f->q = make_queue(f->fd, &f->limits, place->engine, depth);
    return true;
}

void fixture_close(QueueFixture *f)
{
    direct_queue_free(f->q);
    close(f->fd);
    close(f->buffered);
}

void direct_queue_test_init(int *argc, char ***argv)
{
    int i;

    /* As every program that uses queues must */
    signal(SIGXFSZ, SIG_IGN);

    g_test_init(argc, argv, NULL);
    for (i = DIRECT_IO_ENGINE_AUTO + 1; i < DIRECT_IO_ENGINE__MAX; i++) {
        works[i] = try_engine(i);
    }
}

void add_case(const TestPlace *place, const char *what, GTestDataFunc func)
{
    g_autofree char *path =
        g_strdup_printf("/direct-queue/%s/%s/%s/%s",
                        DirectIoEngine_str(place->engine), place->name,
                        place->direct ? "direct" : "buffered", what);
    TestPlace *copy = g_new(TestPlace, 1);

    *copy = *place;
    g_test_add_data_func_full(path, copy, func, g_free);
}

/* Named by block size: names of loop devices change from run to run. */
static char *device_name(const char *path)
{
    DirectIOLimits limits = { };
    char *name = NULL;
    int fd = open(path, O_RDONLY);

    if (fd < 0) {
        return NULL;
    }
    if (direct_io_probe(fd, path, &limits, NULL)) {
        name = g_strdup_printf("device-%" PRIu32, limits.offset_align);
    }
    close(fd);
    return name;
}

/* Test cases keep path and name, so these are interned strings. */
static void for_each_engine(const char *path, bool is_device,
                            void (*add)(const TestPlace *place))
{
    g_autofree char *name = is_device ? device_name(path)
                                      : g_path_get_basename(path);
    TestPlace place = {
        .path = g_intern_string(path),
        .name = g_intern_string(name),
        .is_device = is_device,
    };
    int engine, direct;

    if (!name) {
        return;
    }
    for (engine = DIRECT_IO_ENGINE_AUTO + 1;
         engine < DIRECT_IO_ENGINE__MAX; engine++) {
        for (direct = 0; direct < 2 && works[engine]; direct++) {
            place.engine = engine;
            place.direct = direct;
            add(&place);
        }
    }
}

void for_each_dir(void (*add)(const TestPlace *place))
{
    g_auto(GStrv) dirs = direct_io_test_dirs();
    int i;

    for (i = 0; dirs[i]; i++) {
        for_each_engine(dirs[i], false, add);
    }
}

void for_each_small_dir(void (*add)(const TestPlace *place))
{
    g_auto(GStrv) dirs = direct_io_test_list("QDIO_TEST_SMALL_DIRS");
    int i;

    for (i = 0; dirs[i]; i++) {
        for_each_engine(dirs[i], false, add);
    }
}

void for_each_device(void (*add)(const TestPlace *place))
{
    g_auto(GStrv) devices = direct_io_test_list("QDIO_TEST_BLOCKDEVS");
    int i;

    for (i = 0; devices[i]; i++) {
        for_each_engine(devices[i], true, add);
    }
}
