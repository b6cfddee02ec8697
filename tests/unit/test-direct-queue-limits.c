/*
 * Tests of include/io/direct-queue.h: limits
 *
 * Limits of files and devices, alignment limits, and limits of bytes in flight.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"

#include <sys/resource.h>
#include <sys/wait.h>

#include "direct-queue-fault.h"
#include "direct-queue-helpers.h"

/* RLIMIT_FSIZE in the middle of a request: the kernel writes a part. */
static void test_rlimit(gconstpointer data)
{
    const TestPlace *place = data;
    const size_t allowed = 3 * BUF_ALIGN + BUF_ALIGN / 2;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 8 * BUF_ALIGN);
    struct rlimit old, limit;
    DirectQueueStats stats;
    unsigned depth;
    QueueFixture f;

    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &old), ==, 0);
    limit = old;
    limit.rlim_cur = allowed;
    pattern_fill(buf, 8 * BUF_ALIGN, 0);
    for (depth = 1; depth <= 16; depth += 15) {
        if (!fixture_open(&f, place, O_RDWR, depth, BUF_ALIGN)) {
            break;
        }
        g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &limit), ==, 0);
        direct_queue_write(f.q, buf, 8 * BUF_ALIGN, 0, NULL);
        direct_queue_drain(f.q, NULL);
        g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &old), ==, 0);

        assert_fails_fast(f.q, "the-file: cannot write * bytes at offset *: "
                          "the file would become larger than allowed *");
        direct_queue_get_stats(f.q, &stats);
        g_assert_cmpuint(stats.bytes_written, <=, allowed);
        if (depth == 1) {
            g_assert_cmpuint(stats.bytes_written, ==, allowed);
            g_assert_cmpuint(stats.short_transfers, ==, 1);
            pattern_check_file(f.buffered, allowed, 0);
        }
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

/* A full file system or device: check the error, and what was written. */
static void test_full(gconstpointer data)
{
    const TestPlace *place = data;
    const size_t len = 96 * MiB;        /* more than any of them holds */
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    DirectQueueStats stats;
    unsigned depth;
    QueueFixture f;

    pattern_fill(buf, len, 0);
    for (depth = 1; depth <= 16; depth += 15) {
        if (!fixture_open(&f, place, O_RDWR, depth, MiB)) {
            break;
        }
        direct_queue_write(f.q, buf, len, 0, NULL);
        assert_fails_fast(f.q, "the-file: cannot write * bytes at offset *: "
                          "no space left on the file system or device");

        direct_queue_get_stats(f.q, &stats);
        g_assert_cmpuint(stats.bytes_written, >, MiB);
        g_assert_cmpuint(stats.bytes_written, <, len);
        if (depth == 1) {
            pattern_check_file(f.buffered, stats.bytes_written, 0);
        }
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

static void test_device_end(gconstpointer data)
{
    const TestPlace *place = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, MiB);
    g_autofree char *pattern = NULL;
    off_t end;
    QueueFixture f;

    if (fixture_open(&f, place, O_RDWR, 1, MiB)) {
        end = lseek(f.buffered, 0, SEEK_END);
        pattern = g_strdup_printf("the-file: the file ended at offset %"
                                  PRIu64 ", needed 524288 more bytes",
                                  (uint64_t)end);
        direct_queue_read(f.q, buf, MiB, end - MiB / 2, NULL);
        assert_fails_fast(f.q, pattern);
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

/* Offsets beyond the largest possible file fail and do not overflow. */
static void test_bad_offset(gconstpointer data)
{
    const TestPlace *place = data;
    const uint64_t offsets[] = { INT64_MAX - BUF_ALIGN + 1,
                                 UINT64_MAX - BUF_ALIGN + 1,
                                 (uint64_t)INT64_MAX + 1 };
    uint8_t *buf = qemu_memalign(BUF_ALIGN, 2 * BUF_ALIGN);
    QueueFixture f;
    int i;

    for (i = 0; i < ARRAY_SIZE(offsets); i++) {
        if (!fixture_open(&f, place, O_RDWR, 0, BUF_ALIGN)) {
            break;
        }
        g_assert(!direct_queue_read(f.q, buf, 2 * BUF_ALIGN, offsets[i],
                                    NULL));
        assert_fails_fast(f.q, "the-file: cannot read 131072 bytes at offset "
                          "*: no file is that large");
        fixture_close(&f);
    }
    qemu_vfree(buf);
}

/* Write in a child process.  Returns its status as waitpid() does. */
static int write_in_child(const TestPlace *place, int fd, const uint8_t *buf,
                          size_t len, uint64_t offset)
{
    DirectIOLimits limits = { 512, 4096, MiB };
    int status, null;
    pid_t pid = fork();

    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        DirectQueue *q = make_queue(fd, &limits, place->engine, 0);

        /* The failed assertion leaves neither a message nor a core dump. */
        null = open("/dev/null", O_WRONLY);
        dup2(null, STDERR_FILENO);
        setrlimit(RLIMIT_CORE, &(struct rlimit) { 0, 0 });
        _exit(direct_queue_write(q, buf, len, offset, NULL) &&
              direct_queue_drain(q, NULL) ? 0 : 1);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    return status;
}

/* Misaligned arguments are bugs of the caller and fail an assertion. */
static void test_alignment(gconstpointer data)
{
    const TestPlace *place = data;
    uint8_t *buf = qemu_memalign(BUF_ALIGN, BUF_ALIGN);
    int fd = direct_io_test_file(place->path, 0, NULL);
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
        status = write_in_child(place, fd, buf + cases[i].memory,
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

/* The bytes in flight are limited, by default or as configured. */
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
        /* Twice: completed requests no longer count. */
        for (int j = 0; j < 2; j++) {
            g_assert(direct_queue_read(q, buf, cases[i].len, 0,
                                       &error_abort));
            g_assert(direct_queue_drain(q, &error_abort));
            direct_queue_get_stats(q, &stats);
            g_assert_cmpuint(stats.max_in_flight, ==, cases[i].in_flight);
        }
        g_assert_cmpuint(stats.bytes_read, ==, 2 * cases[i].len);
        fault_queue_free(q, fd);
        qemu_vfree(buf);
    }
}

static void add_dir(const TestPlace *place)
{
    add_case(place, "rlimit", test_rlimit);
    add_case(place, "bad-offset", test_bad_offset);
    if (!place->direct) {
        add_case(place, "alignment", test_alignment);
    }
}

static void add_small_dir(const TestPlace *place)
{
    add_case(place, "full", test_full);
}

static void add_device(const TestPlace *place)
{
    add_case(place, "device-end", test_device_end);
    add_case(place, "full", test_full);
}

int main(int argc, char **argv)
{
    direct_queue_test_init(&argc, &argv);
    for_each_dir(add_dir);
    for_each_small_dir(add_small_dir);
    for_each_device(add_device);
    g_test_add_func("/direct-queue/bytes-in-flight", test_bytes_in_flight);
    return g_test_run();
}
