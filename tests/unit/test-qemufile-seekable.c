/*
 * Seekable QEMUFile test
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-buffer.h"
#include "io/channel-file.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "qemufile-stats.h"

/* More than QEMUFile reads at once */
#define TEST_SIZE (100 * 1024)

static char *test_path;

static QEMUFile *test_open(int flags)
{
    QIOChannelFile *fioc = qio_channel_file_new_path(test_path, flags, 0600,
                                                     &error_abort);
    QEMUFile *f;

    test_reset_transferred();
    qio_channel_set_name(QIO_CHANNEL(fioc), "the-image");
    if (flags & O_WRONLY) {
        f = qemu_file_new_output(QIO_CHANNEL(fioc));
    } else {
        f = qemu_file_new_input(QIO_CHANNEL(fioc));
    }
    object_unref(OBJECT(fioc));
    return f;
}

static QEMUFile *test_create(void)
{
    return test_open(O_WRONLY | O_CREAT | O_TRUNC);
}

/* The byte that belongs at offset @i of the file that test_write() writes */
static uint8_t test_byte(size_t i)
{
    return i * 7 + (i >> 8);
}

static void test_write(void)
{
    g_autofree uint8_t *buf = g_malloc(TEST_SIZE);
    QEMUFile *f = test_create();

    for (size_t i = 0; i < TEST_SIZE; i++) {
        buf[i] = test_byte(i);
    }
    qemu_put_buffer(f, buf, TEST_SIZE);
    g_assert_cmpint(qemu_fclose(f), ==, 0);
}

static void test_contents(const char *expected, size_t len)
{
    g_autofree char *contents = NULL;
    gsize size;

    g_assert_true(g_file_get_contents(test_path, &contents, &size, NULL));
    g_assert_cmpmem(contents, size, expected, len);
}

/* Check that @f has an error whose message has each of the strings */
static void G_GNUC_NULL_TERMINATED test_error(QEMUFile *f, ...)
{
    Error *err = NULL;
    const char *text;
    va_list ap;

    g_assert_cmpint(qemu_file_get_error_obj(f, &err), ==, -EIO);
    g_assert_nonnull(err);
    va_start(ap, f);
    while ((text = va_arg(ap, const char *))) {
        if (!strstr(error_get_pretty(err), text)) {
            g_test_message("'%s' not in '%s'", text, error_get_pretty(err));
            g_test_fail();
        }
    }
    va_end(ap);
    error_free(err);
}

static void test_put_at(void)
{
    QEMUFile *f = test_create();

    g_assert_true(qemu_file_is_seekable(f));
    qemu_put_buffer(f, (const uint8_t *)"abc", 3);
    qemu_put_buffer_at(f, (const uint8_t *)"XY", 2, 8);
    qemu_put_buffer_at(f, (const uint8_t *)"Z", 1, 5);
    /* The stream continues as if nothing had happened */
    qemu_put_buffer(f, (const uint8_t *)"d", 1);
    g_assert_cmpint(test_transferred(f), ==, 7);
    qemu_fflush(f);
    g_assert_cmpint(test_transferred(f), ==, 7);
    g_assert_cmpint(qemu_get_offset(f), ==, 4);
    g_assert_cmpint(qemu_fclose(f), ==, 0);
    test_contents("abcd\0Z\0\0XY", 10);
}

static void test_put_at_limit(void)
{
    QEMUFile *f = test_create();

    test_set_limit(f, 5);
    qemu_put_buffer_at(f, (const uint8_t *)"12345", 5, 0);
    g_assert_false(test_limit_exceeded(f));
    qemu_put_buffer_at(f, (const uint8_t *)"6", 1, 5);
    g_assert_true(test_limit_exceeded(f));
    g_assert_cmpint(qemu_fclose(f), ==, 0);
}

static void test_write_offset(void)
{
    QEMUFile *f = test_create();

    g_assert_cmpint(qemu_get_offset(f), ==, 0);
    qemu_put_buffer(f, (const uint8_t *)"abc", 3);
    g_assert_cmpint(qemu_get_offset(f), ==, 3);
    qemu_put_buffer(f, (const uint8_t *)"def", 3);
    qemu_set_offset(f, 10, SEEK_SET);
    qemu_put_byte(f, 'k');
    qemu_set_offset(f, 2, SEEK_CUR);
    g_assert_cmpint(qemu_get_offset(f), ==, 13);
    qemu_put_byte(f, 'n');
    qemu_set_offset(f, -1, SEEK_END);
    g_assert_cmpint(qemu_get_offset(f), ==, 13);
    qemu_put_byte(f, 'N');
    qemu_set_offset(f, 1, SEEK_SET);
    qemu_put_byte(f, 'B');
    g_assert_cmpint(qemu_fclose(f), ==, 0);
    test_contents("aBcdef\0\0\0\0k\0\0N", 14);
}

static void test_get_at(void)
{
    uint8_t buf[5];
    QEMUFile *f;

    test_write();
    f = test_open(O_RDONLY);
    g_assert_true(qemu_file_is_seekable(f));
    g_assert_cmpint(qemu_get_byte(f), ==, test_byte(0));
    g_assert_cmpint(qemu_get_buffer_at(f, buf, 5, TEST_SIZE - 5), ==, 5);
    for (size_t i = 0; i < 5; i++) {
        g_assert_cmpint(buf[i], ==, test_byte(TEST_SIZE - 5 + i));
    }
    g_assert_cmpint(qemu_get_byte(f), ==, test_byte(1));
    g_assert_cmpint(qemu_file_get_error(f), ==, 0);

    /* Reading up to the end works, reading beyond it fails */
    g_assert_cmpint(qemu_get_buffer_at(f, buf, 5, TEST_SIZE - 3), ==, 0);
    test_error(f, "the-image", "ended at offset 102400", "2 bytes missing",
               NULL);
    g_assert_cmpint(qemu_get_buffer_at(f, buf, 5, 0), ==, 0);
    qemu_fclose(f);
}

static void test_read_offset(void)
{
    QEMUFile *f;
    uint8_t *peeked;

    test_write();
    f = test_open(O_RDONLY);
    g_assert_cmpint(qemu_get_offset(f), ==, 0);
    g_assert_cmpint(qemu_get_byte(f), ==, test_byte(0));
    /* 32 KiB have been read ahead, one byte consumed; peeking consumes none */
    g_assert_cmpint(qemu_get_offset(f), ==, 1);
    g_assert_cmpint(qemu_peek_buffer(f, &peeked, 9, 0), ==, 9);
    g_assert_cmpint(qemu_get_offset(f), ==, 1);
    g_assert_cmpint(qemu_get_byte(f), ==, test_byte(1));

    qemu_set_offset(f, 70000, SEEK_SET);
    g_assert_cmpint(qemu_get_offset(f), ==, 70000);
    g_assert_cmpint(qemu_get_byte(f), ==, test_byte(70000));
    qemu_set_offset(f, 100, SEEK_CUR);
    g_assert_cmpint(qemu_get_byte(f), ==, test_byte(70101));
    qemu_set_offset(f, -70000, SEEK_CUR);
    g_assert_cmpint(qemu_get_offset(f), ==, 102);
    g_assert_cmpint(qemu_get_byte(f), ==, test_byte(102));
    qemu_set_offset(f, -1, SEEK_END);
    g_assert_cmpint(qemu_get_byte(f), ==, test_byte(TEST_SIZE - 1));
    g_assert_cmpint(qemu_get_offset(f), ==, TEST_SIZE);
    g_assert_cmpint(qemu_file_get_error(f), ==, 0);

    qemu_set_offset(f, -5, SEEK_SET);
    test_error(f, "the-image", "offset -5", NULL);
    g_assert_cmpint(qemu_get_offset(f), ==, -1);
    qemu_fclose(f);
}

static void test_write_error(void)
{
    QEMUFile *f = test_create();
    QIOChannelFile *fioc = QIO_CHANNEL_FILE(qemu_file_get_ioc(f));
    int ro = open(test_path, O_RDONLY);

    /* Make the descriptor read-only without telling QEMUFile */
    g_assert_cmpint(dup2(ro, fioc->fd), ==, fioc->fd);
    close(ro);
    qemu_put_buffer_at(f, (const uint8_t *)"x", 1, 4321);
    test_error(f, "the-image", "offset 4321", strerror(EBADF), NULL);
    g_assert_cmpint(test_transferred(f), ==, 0);
    /* The first error is kept */
    qemu_put_buffer_at(f, (const uint8_t *)"x", 1, 8888);
    test_error(f, "offset 4321", NULL);
    g_assert_cmpint(qemu_fclose(f), ==, -EIO);
}

static QEMUFile *test_buffer_file(bool writable)
{
    QIOChannelBuffer *bioc = qio_channel_buffer_new(100);
    QIOChannel *ioc = QIO_CHANNEL(bioc);
    QEMUFile *f;

    f = writable ? qemu_file_new_output(ioc) : qemu_file_new_input(ioc);
    object_unref(OBJECT(bioc));
    g_assert_false(qemu_file_is_seekable(f));
    return f;
}

static void test_not_seekable(void)
{
    uint8_t c = 'c';
    QEMUFile *f;

    f = test_buffer_file(true);
    qemu_put_buffer_at(f, &c, 1, 0);
    test_error(f, "does not support positioned I/O", NULL);
    qemu_fclose(f);

    f = test_buffer_file(false);
    g_assert_cmpint(qemu_get_buffer_at(f, &c, 1, 0), ==, 0);
    test_error(f, "does not support positioned I/O", NULL);
    qemu_fclose(f);

    /* A channel buffer can seek by itself, but not with read-ahead */
    f = test_buffer_file(true);
    qemu_set_offset(f, 0, SEEK_SET);
    test_error(f, "not a seekable file", NULL);
    qemu_fclose(f);

    f = test_buffer_file(false);
    g_assert_cmpint(qemu_get_offset(f), ==, -1);
    test_error(f, "not a seekable file", NULL);
    qemu_fclose(f);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) err = NULL;
    int fd, ret;

    module_call_init(MODULE_INIT_QOM);
    g_test_init(&argc, &argv, NULL);
    fd = g_file_open_tmp("test-qemufile-seekable-XXXXXX", &test_path, &err);
    g_assert_no_error(err);
    close(fd);

#define TEST(name) "/qemufile/seekable/" name
    g_test_add_func(TEST("put-at"), test_put_at);
    g_test_add_func(TEST("put-at-limit"), test_put_at_limit);
    g_test_add_func(TEST("write-offset"), test_write_offset);
    g_test_add_func(TEST("get-at"), test_get_at);
    g_test_add_func(TEST("read-offset"), test_read_offset);
    g_test_add_func(TEST("write-error"), test_write_error);
    g_test_add_func(TEST("not-seekable"), test_not_seekable);
    ret = g_test_run();

    unlink(test_path);
    g_free(test_path);
    return ret;
}
