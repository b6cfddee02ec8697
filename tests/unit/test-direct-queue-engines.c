/*
 * Tests of include/io/direct-queue.h: the choice of an engine
 *
 * Creating queues, errors from that, and engines that a sandbox forbids.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../../io/direct-queue-int.h"
#include "direct-queue-helpers.h"

/* For C libraries that are older than io_uring */
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#define SYS_io_uring_enter 426
#define SYS_io_uring_register 427
#endif

static unsigned count_descriptors(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    unsigned n = 0;

    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

/* Create more queues, one after the other, than may exist at once. */
static void test_many_queues(gconstpointer data)
{
    const TestPlace *place = data;
    unsigned i, descriptors = count_descriptors();
    QueueFixture f;

    for (i = 0; i < 100; i++) {
        if (!fixture_open(&f, place, O_RDWR, DIRECT_QUEUE_DEPTH_MAX, 0)) {
            break;
        }
        fixture_close(&f);
    }
    g_assert_cmpuint(count_descriptors(), ==, descriptors);
}

static bool refuse_to_open(const DirectQueueConfig *config, unsigned depth,
                           void **state, Error **errp)
{
    error_setg(errp, "not today");
    return false;
}

static const DirectQueueEngine refusing_engine = {
    .name = "refusing",
    .open = refuse_to_open,
};

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
    g_assert_null(direct_queue_new_with_engine(&config, &refusing_engine,
                                               &err));
    assert_error(err, "not today");

    /* AUTO chooses the first that works, and gives reasons for the others. */
    q = direct_queue_new(&config, &error_abort);
    reason = direct_queue_engine_reason(q);
    g_test_message("%s because of: %s", direct_queue_engine_name(q),
                   reason ?: "nothing");
    for (i = DIRECT_IO_ENGINE_IO_URING; i < DIRECT_IO_ENGINE__MAX; i++) {
        DirectQueue *forced;

        config.engine = i;
        err = NULL;
        forced = direct_queue_new(&config, &err);
        if (forced) {
            g_assert_cmpstr(direct_queue_engine_name(forced), ==,
                            DirectIoEngine_str(i));
            g_assert_cmpstr(direct_queue_engine_name(q), ==,
                            DirectIoEngine_str(i));
            g_assert_null(direct_queue_engine_reason(forced));
            direct_queue_free(forced);
            break;
        }
        g_assert_nonnull(reason);
        g_assert_nonnull(strstr(reason, DirectIoEngine_str(i)));
        g_assert_nonnull(strstr(error_get_pretty(err), DirectIoEngine_str(i)));
        assert_error(err, "the-file: the * engine for direct I/O does not "
                     "work here: *");
    }
    g_assert_cmpint(i, <, DIRECT_IO_ENGINE__MAX);
    g_assert((reason == NULL) == (i == DIRECT_IO_ENGINE_IO_URING));
    direct_queue_free(q);
    close(fd);
}

/* Make system call @number fail with @err in this process from now on. */
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

/* The same for linux-aio: libaio uses either call to wait for requests. */
static bool forbid_aio(int number, int err)
{
#ifdef SYS_io_pgetevents
    if (number == SYS_io_getevents && !forbid(SYS_io_pgetevents, err)) {
        return false;
    }
#endif
    return forbid(number, err);
}

/* A system call, its error, and the reason that the queue gives for it. */
typedef struct Forbidden {
    int number;
    int err;
    const char *reason;
} Forbidden;

/*
 * With @uring and @aio (may be NULL) forbidden, AUTO must choose engine @name,
 * which must work, and give their reasons.  Exits with 0 for success, or with
 * 2 if there are no seccomp filters.
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
    pattern_fill(buf, MiB, 0);
    g_assert(direct_queue_write(q, buf, MiB, 0, &error_abort));
    g_assert(direct_queue_drain(q, &error_abort));
    pattern_check_file(fd, MiB, 0);
    direct_queue_free(q);

    /* Requested by name, io_uring is an error with the same reason. */
    g_free(pattern);
    pattern = g_strdup_printf("the-file: the io_uring engine for direct I/O "
                              "does not work here: %s", uring->reason);
    config.engine = DIRECT_IO_ENGINE_IO_URING;
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

/* The queue waits for a request that takes seconds; it completes once. */
static void test_uring_patience(void)
{
    DirectQueueConfig config = {
        .name = "the-file",
        .engine = DIRECT_IO_ENGINE_IO_URING,
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
    g_assert_true(direct_queue_read(q, buf, sizeof(buf), 0, &error_abort));
    /* The request has begun, and so its time runs */
    thread = g_thread_new("late", write_late, &fds[1]);
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
        { SYS_io_uring_setup, ENOSYS, "not available in *" },
        { SYS_io_uring_setup, ENOMEM, "* (raise RLIMIT_MEMLOCK, *)" },
        { SYS_io_uring_setup, EMFILE, "Too many open files" },
        { SYS_io_uring_register, EINVAL, "* is older than 5.6, or *" },
        { SYS_io_uring_enter, EPERM, "not permitted (*)" },
    };
    static const Forbidden aios[] = {
        { SYS_io_setup, EPERM, "not permitted (*)" },
        { SYS_io_setup, ENOSYS, "not available in *" },
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

int main(int argc, char **argv)
{
    int i;

    direct_queue_test_init(&argc, &argv);
    for (i = DIRECT_IO_ENGINE_AUTO + 1; i < DIRECT_IO_ENGINE__MAX; i++) {
        TestPlace place = {
            .path = g_get_tmp_dir(),
            .name = "any",
            .engine = i,
        };

        if (engine_works(i)) {
            add_case(&place, "many-queues", test_many_queues);
        }
    }
    g_test_add_func("/direct-queue/new", test_new);
    if (engine_works(DIRECT_IO_ENGINE_IO_URING)) {
        g_test_add_func("/direct-queue/io_uring/patience",
                        test_uring_patience);
    }
    if (engine_works(DIRECT_IO_ENGINE_IO_URING) &&
        engine_works(DIRECT_IO_ENGINE_LINUX_AIO)) {
        g_test_add_func("/direct-queue/sandbox", test_sandbox);
    }
    return g_test_run();
}
