/*
 * QEMU I/O channel positioned reads and writes test
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "io/channel-file.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/iov.h"
#include "qemu/module.h"

static char *test_dir;

static QIOChannel *test_open(const char *name, int flags)
{
    g_autofree char *path = g_strdup_printf("%s/%s", test_dir, name);
    QIOChannelFile *fioc = qio_channel_file_new_path(path, flags, 0600,
                                                     &error_abort);

    return QIO_CHANNEL(fioc);
}

static QIOChannel *test_create(const char *name)
{
    return test_open(name, O_RDWR | O_CREAT | O_TRUNC);
}

static void test_fill(uint8_t *buf, size_t len, unsigned int seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1103515245 + 12345;
        buf[i] = seed >> 16;
    }
}

static void test_size(QIOChannel *ioc, off_t expected)
{
    struct stat st;

    g_assert_cmpint(fstat(QIO_CHANNEL_FILE(ioc)->fd, &st), ==, 0);
    g_assert_cmpint(st.st_size, ==, expected);
}

/* Check that @err is set and its message has each of the given strings */
static void G_GNUC_NULL_TERMINATED test_error(Error *err, ...)
{
    const char *text;
    va_list ap;

    g_assert_nonnull(err);
    va_start(ap, err);
    while ((text = va_arg(ap, const char *))) {
        if (!strstr(error_get_pretty(err), text)) {
            g_test_message("'%s' not in '%s'", text, error_get_pretty(err));
            g_test_fail();
        }
    }
    va_end(ap);
    error_free(err);
}

/*
 * A channel over memory that moves at most @chunk bytes per call and returns
 * "not ready" before each of them: what a file may do but rarely does.
 */
#define TYPE_TEST_CHANNEL "test-channel-positioned"
OBJECT_DECLARE_SIMPLE_TYPE(TestChannel, TEST_CHANNEL)

struct TestChannel {
    QIOChannel parent;
    uint8_t data[256];
    size_t size;
    size_t chunk;
    bool block;
    bool ready;
    unsigned int calls;
    unsigned int waits;
};

static ssize_t test_channel_move(QIOChannel *ioc, const struct iovec *iov,
                                 size_t niov, off_t offset, bool is_write)
{
    TestChannel *t = TEST_CHANNEL(ioc);
    size_t len = MIN(t->chunk, iov_size(iov, niov));

    if (t->block && !t->ready) {
        t->ready = true;
        return QIO_CHANNEL_ERR_BLOCK;
    }
    t->ready = false;
    t->calls++;
    /* An empty transfer would be useless: its result of 0 means nothing */
    g_assert_cmpuint(iov[0].iov_len, >, 0);
    if (offset >= t->size) {
        return 0;
    }
    len = MIN(len, t->size - offset);
    if (is_write) {
        return iov_to_buf(iov, niov, 0, t->data + offset, len);
    }
    return iov_from_buf(iov, niov, 0, t->data + offset, len);
}

static ssize_t test_channel_preadv(QIOChannel *ioc, const struct iovec *iov,
                                   size_t niov, off_t offset, Error **errp)
{
    return test_channel_move(ioc, iov, niov, offset, false);
}

static ssize_t test_channel_pwritev(QIOChannel *ioc, const struct iovec *iov,
                                    size_t niov, off_t offset, Error **errp)
{
    return test_channel_move(ioc, iov, niov, offset, true);
}

static gboolean test_channel_prepare(GSource *source, gint *timeout)
{
    return TRUE;
}

static gboolean test_channel_dispatch(GSource *source, GSourceFunc callback,
                                      gpointer opaque)
{
    return callback(opaque);
}

static GSourceFuncs test_channel_source_funcs = {
    .prepare = test_channel_prepare,
    .dispatch = test_channel_dispatch,
};

static GSource *test_channel_create_watch(QIOChannel *ioc,
                                          GIOCondition condition)
{
    TEST_CHANNEL(ioc)->waits++;
    return g_source_new(&test_channel_source_funcs, sizeof(GSource));
}

/* Not in class_init of a TypeInfo: its type differs between QEMU versions */
static void test_channel_register(const TypeInfo *info)
{
    QIOChannelClass *ioc_klass;

    type_register_static(info);
    ioc_klass = QIO_CHANNEL_CLASS(object_class_by_name(info->name));
    ioc_klass->io_preadv = test_channel_preadv;
    ioc_klass->io_pwritev = test_channel_pwritev;
    ioc_klass->io_create_watch = test_channel_create_watch;
}

static const TypeInfo test_channel_info = {
    .parent = TYPE_QIO_CHANNEL,
    .name = TYPE_TEST_CHANNEL,
    .instance_size = sizeof(TestChannel),
};

static TestChannel *test_channel_new(size_t chunk)
{
    TestChannel *t = TEST_CHANNEL(object_new(TYPE_TEST_CHANNEL));

    qio_channel_set_feature(QIO_CHANNEL(t), QIO_CHANNEL_FEATURE_SEEKABLE);
    t->size = sizeof(t->data);
    t->chunk = chunk;
    return t;
}

static void test_roundtrip(void)
{
    QIOChannel *ioc = test_create("roundtrip");
    uint8_t out[3000], in[3000] = { 0 };
    struct iovec wr[] = {
        { .iov_base = out, .iov_len = 1000 },
        { .iov_base = out + 1000, .iov_len = 0 },
        { .iov_base = out + 1000, .iov_len = 2000 },
    };
    struct iovec rd[] = {
        { .iov_base = in, .iov_len = 1 },
        { .iov_base = in + 1, .iov_len = 2999 },
    };

    g_assert_true(qio_channel_has_feature(ioc, QIO_CHANNEL_FEATURE_SEEKABLE));
    test_fill(out, sizeof(out), 1);
    g_assert_cmpint(qio_channel_pwritev(ioc, wr, 3, 5000, &error_abort),
                    ==, 3000);
    g_assert_cmpint(qio_channel_preadv(ioc, rd, 2, 5000, &error_abort),
                    ==, 3000);
    g_assert_cmpmem(in, 3000, out, 3000);
    test_size(ioc, 8000);

    g_assert_cmpint(qio_channel_pwrite(ioc, "x", 1, 5001, &error_abort), ==, 1);
    g_assert_cmpint(qio_channel_pread(ioc, in, 3, 5000, &error_abort), ==, 3);
    g_assert_cmpint(in[0], ==, out[0]);
    g_assert_cmpint(in[1], ==, 'x');
    g_assert_cmpint(in[2], ==, out[2]);

    /* The hole before that data reads as zeroes */
    g_assert_cmpint(qio_channel_pread_all(ioc, in, 3000, 1000, &error_abort),
                    ==, 0);
    g_assert_true(buffer_is_zero(in, 3000));

    /* None of this has moved the channel's own position */
    g_assert_cmpint(qio_channel_io_seek(ioc, 0, SEEK_CUR, &error_abort), ==, 0);
    object_unref(OBJECT(ioc));
}

static void test_many_iov(void)
{
    const size_t n = IOV_MAX * 2 + 7;
    QIOChannel *ioc = test_create("many-iov");
    g_autofree uint8_t *out = g_malloc(n * 3);
    g_autofree uint8_t *in = g_malloc0(n * 3);
    g_autofree struct iovec *iov = g_new(struct iovec, n);
    g_autofree struct iovec *orig = NULL;

    test_fill(out, n * 3, 2);
    for (size_t i = 0; i < n; i++) {
        iov[i].iov_base = out + i * 3;
        iov[i].iov_len = 3;
    }
    orig = g_memdup2(iov, n * sizeof(*iov));
    g_assert_cmpint(qio_channel_pwritev(ioc, iov, n, 0, &error_abort),
                    ==, IOV_MAX * 3);
    test_size(ioc, IOV_MAX * 3);
    g_assert_cmpint(qio_channel_pwritev_all(ioc, iov, n, 10, &error_abort),
                    ==, 0);
    test_size(ioc, n * 3 + 10);
    /* The caller's array is left alone */
    g_assert_cmpmem(iov, n * sizeof(*iov), orig, n * sizeof(*iov));

    for (size_t i = 0; i < n; i++) {
        iov[i].iov_base = in + i * 3;
    }
    g_assert_cmpint(qio_channel_preadv(ioc, iov, n, 10, &error_abort),
                    ==, IOV_MAX * 3);
    memset(in, 0, n * 3);
    g_assert_cmpint(qio_channel_preadv_all(ioc, iov, n, 10, &error_abort),
                    ==, 0);
    g_assert_cmpmem(in, n * 3, out, n * 3);
    object_unref(OBJECT(ioc));
}

static void test_eof(void)
{
    QIOChannel *ioc = test_create("eof");
    uint8_t buf[100];
    Error *err = NULL;

    test_fill(buf, sizeof(buf), 3);
    qio_channel_set_name(ioc, "the-image");
    g_assert_cmpint(qio_channel_pwrite_all(ioc, buf, 60, 0, &error_abort),
                    ==, 0);

    /* Short, then nothing: both are fine for a single transfer */
    g_assert_cmpint(qio_channel_pread(ioc, buf, 100, 20, &error_abort),
                    ==, 40);
    g_assert_cmpint(qio_channel_pread(ioc, buf, 100, 60, &error_abort),
                    ==, 0);
    g_assert_cmpint(qio_channel_pread(ioc, buf, 100, 9999, &error_abort),
                    ==, 0);

    g_assert_cmpint(qio_channel_pread_all(ioc, buf, 100, 20, &err), ==, -1);
    test_error(err, "the-image", "ended at offset 60", "60 bytes missing",
               NULL);
    err = NULL;
    g_assert_cmpint(qio_channel_pread_all(ioc, buf, 100, 9999, &err), ==, -1);
    test_error(err, "ended at offset 9999", "100 bytes missing", NULL);

    /* Exactly up to the end, and an empty transfer */
    g_assert_cmpint(qio_channel_pread_all(ioc, buf, 40, 20, &error_abort),
                    ==, 0);
    g_assert_cmpint(qio_channel_pread_all(ioc, buf, 0, 9999, &error_abort),
                    ==, 0);
    g_assert_cmpint(qio_channel_preadv_all(ioc, NULL, 0, 0, &error_abort),
                    ==, 0);
    object_unref(OBJECT(ioc));
}

static void test_short_file_write(void)
{
    QIOChannel *ioc = test_create("short-write");
    struct rlimit old, limit;
    uint8_t out[8192], in[8192];
    Error *err = NULL;

    /* Beyond the limit the kernel sends SIGXFSZ and then returns EFBIG */
    signal(SIGXFSZ, SIG_IGN);
    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &old), ==, 0);
    limit = old;
    limit.rlim_cur = 10000;
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &limit), ==, 0);

    qio_channel_set_name(ioc, "the-image");
    test_fill(out, sizeof(out), 4);
    g_assert_cmpint(qio_channel_pwrite(ioc, out, 8192, 4096, &error_abort),
                    ==, 10000 - 4096);
    g_assert_cmpint(qio_channel_pwrite_all(ioc, out, 8192, 4096, &err),
                    ==, -1);
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &old), ==, 0);
    signal(SIGXFSZ, SIG_DFL);
    test_error(err, "the-image", "at offset 10000", strerror(EFBIG), NULL);

    test_size(ioc, 10000);
    g_assert_cmpint(qio_channel_pread(ioc, in, 8192, 4096, &error_abort),
                    ==, 10000 - 4096);
    g_assert_cmpmem(in, 10000 - 4096, out, 10000 - 4096);
    object_unref(OBJECT(ioc));
}

static void test_short_mock(gconstpointer opaque)
{
    bool block = GPOINTER_TO_INT(opaque);
    uint8_t out[200], in[200];
    struct iovec iov[] = {
        { .iov_base = out, .iov_len = 0 },
        { .iov_base = out, .iov_len = 13 },
        { .iov_base = out + 13, .iov_len = 0 },
        { .iov_base = out + 13, .iov_len = 187 },
        { .iov_base = out, .iov_len = 0 },
    };

    test_fill(out, sizeof(out), 5);
    for (size_t chunk = 1; chunk <= 201; chunk++) {
        TestChannel *t = test_channel_new(chunk);
        unsigned int calls = DIV_ROUND_UP(200, chunk);

        t->block = block;
        g_assert_cmpint(qio_channel_pwritev_all(QIO_CHANNEL(t), iov, 5, 31,
                                                &error_abort), ==, 0);
        g_assert_cmpmem(t->data + 31, 200, out, 200);
        g_assert_cmpint(t->data[30], ==, 0);
        g_assert_cmpint(t->data[231], ==, 0);
        g_assert_cmpuint(t->calls, ==, calls);

        memset(in, 0, sizeof(in));
        g_assert_cmpint(qio_channel_pread_all(QIO_CHANNEL(t), in, 200, 31,
                                              &error_abort), ==, 0);
        g_assert_cmpmem(in, 200, out, 200);
        g_assert_cmpuint(t->calls, ==, calls * 2);
        g_assert_cmpuint(t->waits, ==, block ? calls * 2 : 0);
        object_unref(OBJECT(t));
    }
}

static void test_stuck_mock(void)
{
    TestChannel *t = test_channel_new(7);
    uint8_t buf[200] = { 0 };
    Error *err = NULL;

    t->size = 20;
    g_assert_cmpint(qio_channel_pwrite_all(QIO_CHANNEL(t), buf, 30, 10, &err),
                    ==, -1);
    test_error(err, "offset 20", "20 bytes not written", NULL);
    err = NULL;
    g_assert_cmpint(qio_channel_pread_all(QIO_CHANNEL(t), buf, 30, 10, &err),
                    ==, -1);
    test_error(err, "ended at offset 20", "20 bytes missing", NULL);
    object_unref(OBJECT(t));
}

static void test_wrong_mode(void)
{
    QIOChannel *rw = test_create("mode");
    QIOChannel *ro = test_open("mode", O_RDONLY);
    QIOChannel *wo = test_open("mode", O_WRONLY);
    char c = 'c';
    Error *err = NULL;

    g_assert_cmpint(qio_channel_pwrite(ro, &c, 1, 17, &err), ==, -1);
    test_error(err, "write", "offset 17", strerror(EBADF), NULL);
    err = NULL;
    g_assert_cmpint(qio_channel_pwrite_all(ro, &c, 1, 18, &err), ==, -1);
    test_error(err, "write", "offset 18", strerror(EBADF), NULL);
    err = NULL;
    g_assert_cmpint(qio_channel_pread(wo, &c, 1, 0, &err), ==, -1);
    test_error(err, "read", "offset 0", strerror(EBADF), NULL);
    err = NULL;
    g_assert_cmpint(qio_channel_pread(rw, &c, 1, -1, &err), ==, -1);
    test_error(err, "negative offset -1", NULL);
    test_size(rw, 0);

    object_unref(OBJECT(rw));
    object_unref(OBJECT(ro));
    object_unref(OBJECT(wo));
}

static void test_closed(void)
{
    QIOChannel *ioc = test_create("closed");
    int fd = QIO_CHANNEL_FILE(ioc)->fd;
    char c = 'c';
    Error *err = NULL;

    g_assert_cmpint(close(fd), ==, 0);
    g_assert_cmpint(qio_channel_pwrite_all(ioc, &c, 1, 0, &err), ==, -1);
    test_error(err, strerror(EBADF), NULL);
    err = NULL;
    g_assert_cmpint(qio_channel_close(ioc, &err), ==, -1);
    test_error(err, "close", strerror(EBADF), NULL);

    /* The channel has forgotten a descriptor that another may own by now */
    g_assert_cmpint(open("/dev/null", O_RDONLY), ==, fd);
    object_unref(OBJECT(ioc));
    g_assert_cmpint(fcntl(fd, F_GETFD), !=, -1);
    close(fd);
}

/* Check that @ioc, which is consumed, neither claims nor does positioned I/O */
static void test_refused(QIOChannel *ioc)
{
    char c = 'c';
    Error *err = NULL;

    g_assert_false(qio_channel_has_feature(ioc, QIO_CHANNEL_FEATURE_SEEKABLE));
    g_assert_cmpint(qio_channel_pwrite(ioc, &c, 1, 0, &err), ==, -1);
    test_error(err, "does not support positioned I/O", NULL);
    err = NULL;
    g_assert_cmpint(qio_channel_pwrite_all(ioc, &c, 1, 0, &err), ==, -1);
    test_error(err, "does not support positioned I/O", NULL);
    err = NULL;
    g_assert_cmpint(qio_channel_pread(ioc, &c, 1, 0, &err), ==, -1);
    test_error(err, "does not support positioned I/O", NULL);
    err = NULL;
    g_assert_cmpint(qio_channel_pread_all(ioc, &c, 1, 0, &err), ==, -1);
    test_error(err, "does not support positioned I/O", NULL);
    object_unref(OBJECT(ioc));
}

static void test_not_seekable(void)
{
    QIOChannel *ioc;
    int fds[2];

    g_assert_true(g_unix_open_pipe(fds, FD_CLOEXEC, NULL));
    test_refused(QIO_CHANNEL(qio_channel_file_new_fd(fds[0])));
    test_refused(QIO_CHANNEL(qio_channel_file_new_fd(fds[1])));
    /* lseek() succeeds on this one */
    ioc = QIO_CHANNEL(qio_channel_file_new_path("/dev/null", O_RDWR, 0,
                                                &error_abort));
    test_refused(ioc);
    test_refused(test_open("append", O_RDWR | O_CREAT | O_APPEND));
}

static void test_dupfd(void)
{
    QIOChannel *ioc = test_create("dup");
    QIOChannelFile *dup;
    Error *err = NULL;
    char c = 0;

    dup = qio_channel_file_new_dupfd(QIO_CHANNEL_FILE(ioc)->fd, &error_abort);
    g_assert_cmpint(dup->fd, !=, QIO_CHANNEL_FILE(ioc)->fd);
    g_assert_cmpint(qio_channel_pwrite_all(QIO_CHANNEL(dup), "d", 1, 3,
                                           &error_abort), ==, 0);
    object_unref(OBJECT(dup));
    g_assert_cmpint(qio_channel_pread_all(ioc, &c, 1, 3, &error_abort), ==, 0);
    g_assert_cmpint(c, ==, 'd');
    object_unref(OBJECT(ioc));

    g_assert_null(qio_channel_file_new_dupfd(-1, &err));
    test_error(err, strerror(EBADF), NULL);
}

static void test_cleanup(void)
{
    static const char *const names[] = {
        "roundtrip", "many-iov", "eof", "short-write", "mode", "closed",
        "append", "dup",
    };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        g_autofree char *path = g_strdup_printf("%s/%s", test_dir, names[i]);
        unlink(path);
    }
    rmdir(test_dir);
    g_free(test_dir);
}

int main(int argc, char **argv)
{
    int ret;

    module_call_init(MODULE_INIT_QOM);
    test_channel_register(&test_channel_info);
    g_test_init(&argc, &argv, NULL);
    test_dir = g_dir_make_tmp("test-io-channel-positioned-XXXXXX", NULL);
    g_assert_nonnull(test_dir);

#define TEST(name) "/io/channel/positioned/" name
    g_test_add_func(TEST("roundtrip"), test_roundtrip);
    g_test_add_func(TEST("many-iov"), test_many_iov);
    g_test_add_func(TEST("eof"), test_eof);
    g_test_add_func(TEST("short/file"), test_short_file_write);
    g_test_add_data_func(TEST("short/mock"), GINT_TO_POINTER(false),
                         test_short_mock);
    g_test_add_data_func(TEST("short/mock-blocking"), GINT_TO_POINTER(true),
                         test_short_mock);
    g_test_add_func(TEST("short/stuck"), test_stuck_mock);
    g_test_add_func(TEST("wrong-mode"), test_wrong_mode);
    g_test_add_func(TEST("closed"), test_closed);
    g_test_add_func(TEST("not-seekable"), test_not_seekable);
    g_test_add_func(TEST("dupfd"), test_dupfd);

    ret = g_test_run();
    test_cleanup();
    return ret;
}
