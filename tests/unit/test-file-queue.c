/*
 * Tests of deferred writes, while a save holds the BQL
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-file.h"
#include "qapi/error.h"
#include "qemu/units.h"
#include "../../migration/file-queue.h"

#define PIECE MiB

/* More than is kept in memory */
#define PIECES 160

static QIOChannel *ioc;
static int fd;

static void setup(void)
{
    g_autofree char *path = NULL;

    fd = g_file_open_tmp("test-file-queue-XXXXXX", &path, NULL);
    g_assert_cmpint(fd, >=, 0);
    unlink(path);
    ioc = QIO_CHANNEL(qio_channel_file_new_fd(fd));
}

static void teardown(void)
{
    file_queue_drop();
    object_unref(OBJECT(ioc));
}

static off_t file_size(void)
{
    struct stat st;

    g_assert_cmpint(fstat(fd, &st), ==, 0);
    return st.st_size;
}

static void write_piece(uint8_t value, size_t len)
{
    g_autofree char *buf = g_malloc(len);
    struct iovec iov[] = {
        { .iov_base = buf, .iov_len = len / 4 },
        { .iov_base = buf + len / 4, .iov_len = len - len / 4 },
    };

    memset(buf, value, len);
    g_assert_cmpint(file_queue_writev_all(ioc, iov, 2, &error_abort), ==, 0);
}

static void write_at(off_t offset, uint8_t value)
{
    g_assert_cmpint(file_queue_pwrite_all(ioc, &value, 1, offset,
                                          &error_abort), ==, 0);
}

static void check_byte(off_t offset, uint8_t value)
{
    uint8_t found;

    g_assert_cmpint(pread(fd, &found, 1, offset), ==, 1);
    g_assert_cmpuint(found, ==, value);
}

/* Nothing is written before the flush, then all of it in the same order. */
static void test_defer(void)
{
    setup();
    file_queue_begin(ioc);
    write_piece(1, 100);
    write_at(50, 2);
    write_at(150, 3);
    write_piece(4, 100);
    g_assert_cmpint(file_size(), ==, 0);

    g_assert_true(file_queue_flush(&error_abort));
    g_assert_cmpint(file_size(), ==, 200);
    check_byte(49, 1);
    check_byte(50, 2);
    check_byte(51, 1);
    /* The second piece was written over it */
    check_byte(150, 4);

    /* From now on writes are immediate */
    write_piece(5, 100);
    g_assert_cmpint(file_size(), ==, 300);
    teardown();
}

static void test_release(void)
{
    setup();
    file_queue_begin(ioc);
    write_piece(1, 100);
    file_queue_defer(false);
    write_piece(2, 100);
    g_assert_cmpint(file_size(), ==, 200);
    check_byte(99, 1);
    check_byte(100, 2);
    file_queue_defer(true);
    write_piece(3, 100);
    g_assert_cmpint(file_size(), ==, 200);
    teardown();
}

/* The state of some devices is larger than the memory that is left. */
static void test_much(void)
{
    size_t len = PIECE;

    setup();
    file_queue_begin(ioc);
    for (int i = 0; i < PIECES; i++) {
        write_piece(i, len);
        g_assert_cmpint((i + 1) * len - file_size(), <=, 64 * MiB);
    }
    /* More at once than is ever kept */
    write_piece(PIECES, 65 * MiB);
    write_piece(PIECES + 1, len);
    write_at(10, 200);
    g_assert_true(file_queue_flush(&error_abort));
    g_assert_cmpint(file_size(), ==, (PIECES + 66) * len);
    check_byte(9, 0);
    check_byte(10, 200);
    for (int i = 1; i < PIECES; i++) {
        check_byte(i * len, i);
        check_byte((i + 1) * len - 1, i);
    }
    check_byte((PIECES + 65) * len - 1, PIECES);
    check_byte((PIECES + 65) * len, PIECES + 1);
    teardown();
}

static void test_drop(void)
{
    setup();
    file_queue_begin(ioc);
    write_piece(1, 100);
    file_queue_drop();
    g_assert_true(file_queue_flush(&error_abort));
    g_assert_cmpint(file_size(), ==, 0);

    /* What was dropped does not count */
    file_queue_begin(ioc);
    write_piece(1, 40 * MiB);
    file_queue_drop();
    file_queue_begin(ioc);
    write_piece(2, 40 * MiB);
    g_assert_cmpint(file_size(), ==, 0);
    teardown();
}

int main(int argc, char **argv)
{
    module_call_init(MODULE_INIT_QOM);
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/migration/file-queue/defer", test_defer);
    g_test_add_func("/migration/file-queue/release", test_release);
    g_test_add_func("/migration/file-queue/much", test_much);
    g_test_add_func("/migration/file-queue/drop", test_drop);
    return g_test_run();
}
