/*
 * Tests of include/qemu/direct-io.h on real file systems
 *
 * See direct-io-dirs.h for where they run.  Linux only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/direct-io.h"
#include "qemu/host-utils.h"
#include "qemu/units.h"
#include "qapi/error.h"

#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "direct-io-dirs.h"

/*
 * A fake statx(), to test answers that no kernel here gives.  It replaces
 * that of the C library because this program is linked first.
 */
static struct {
    bool active;
    int err;                    /* the call fails with this error */
    bool silent;                /* reports nothing about direct I/O */
    uint32_t mem_align;
    uint32_t offset_align;
    uint32_t fs;                /* the file system's magic number, if not 0 */
} fake_statx;

#ifdef STATX_DIOALIGN
int statx(int dirfd, const char *path, int flags, unsigned int mask,
          struct statx *buf)
{
    int ret;

    if (fake_statx.active && fake_statx.err) {
        errno = fake_statx.err;
        return -1;
    }
    ret = syscall(SYS_statx, dirfd, path, flags, mask, buf);
    if (ret == 0 && fake_statx.active) {
        buf->stx_mask |= STATX_DIOALIGN;
        buf->stx_dio_mem_align = fake_statx.mem_align;
        buf->stx_dio_offset_align = fake_statx.offset_align;
        if (fake_statx.silent) {
            buf->stx_mask &= ~STATX_DIOALIGN;
        }
    }
    return ret;
}

/* Likewise */
int fstatfs(int fd, struct statfs *buf)
{
    int ret = syscall(SYS_fstatfs, fd, buf);

    if (ret == 0 && fake_statx.fs) {
        buf->f_type = fake_statx.fs;
    }
    return ret;
}
#endif

static void fake_statx_off(void)
{
    memset(&fake_statx, 0, sizeof(fake_statx));
}

/* Check that @err is set and its message matches @pattern; frees @err. */
static void assert_error(Error *err, const char *pattern)
{
    g_assert_nonnull(err);
    if (!g_pattern_match_simple(pattern, error_get_pretty(err))) {
        g_test_message("wanted: %s", pattern);
        g_test_message("got: %s", error_get_pretty(err));
        g_test_fail();
    }
    error_free(err);
}

static void assert_sane(const DirectIOLimits *limits)
{
    g_assert(is_power_of_2(limits->mem_align));
    g_assert(is_power_of_2(limits->offset_align));
    g_assert(is_power_of_2(limits->opt_transfer));
    g_assert_cmpuint(limits->mem_align, <=, DIRECT_IO_ALIGN_MAX);
    g_assert_cmpuint(limits->offset_align, <=, DIRECT_IO_ALIGN_MAX);
    g_assert_cmpuint(limits->opt_transfer, >=, limits->mem_align);
    g_assert_cmpuint(limits->opt_transfer, >=, limits->offset_align);
    g_assert_cmpuint(limits->opt_transfer, >=, 1024 * 1024);
    g_assert_cmpuint(limits->opt_transfer, <=, 4 * 1024 * 1024);
}

/*
 * Check that transfers that just obey @limits work: at an offset that is not a
 * multiple of anything larger, and likewise in memory.
 */
static void assert_sufficient(int fd, const DirectIOLimits *limits)
{
    size_t room = 4 * (limits->mem_align + limits->offset_align);
    size_t align = MAX(2 * limits->mem_align, qemu_real_host_page_size());
    g_autofree uint8_t *raw = g_malloc(room + align);
    uint8_t *buf = (uint8_t *)QEMU_ALIGN_PTR_UP(raw, align);
    off_t offset = 3 * (off_t)limits->offset_align;

    g_assert(direct_io_enabled(fd));
    buf += limits->mem_align;
    memset(buf, 0x5a, limits->offset_align);
    g_assert_cmpint(pwrite(fd, buf, limits->offset_align, offset),
                    ==, limits->offset_align);
    memset(buf, 0, limits->offset_align);
    g_assert_cmpint(pread(fd, buf, limits->offset_align, offset),
                    ==, limits->offset_align);
    g_assert_cmphex(buf[0], ==, 0x5a);
    g_assert_cmphex(buf[limits->offset_align - 1], ==, 0x5a);
}

/* Open a direct descriptor of a new file in @dir, or skip the test. */
static int open_direct_or_skip(const char *dir, int *buffered)
{
    Error *err = NULL;
    int fd;

    *buffered = direct_io_test_file(dir, 0, NULL);
    g_assert_cmpint(*buffered, >=, 0);
    fd = direct_io_reopen(*buffered, "test", O_RDWR, &err);
    if (fd < 0 && g_getenv("QDIO_TEST_DIRS")) {
        /* These file systems are known to support it. */
        error_report_err(err);
        g_assert_not_reached();
    } else if (fd < 0) {
        g_test_skip(error_get_pretty(err));
        error_free(err);
        close(*buffered);
    }
    return fd;
}

static void test_limits(gconstpointer data)
{
    const char *dir = data;
    DirectIOLimits limits = { }, again = { };
    int buffered, fd = open_direct_or_skip(dir, &buffered);

    if (fd < 0) {
        return;
    }
    g_assert(direct_io_probe(fd, "test", &limits, &error_abort));
    assert_sane(&limits);
    assert_sufficient(fd, &limits);
    if (g_str_has_suffix(dir, "16k")) {
        g_assert_cmpuint(limits.offset_align, ==, 16384);
    }

    /* The buffered descriptor gives the same answer. */
    g_assert(direct_io_probe(buffered, "test", &again, &error_abort));
    g_assert(memcmp(&limits, &again, sizeof(limits)) == 0);
    close(fd);
    close(buffered);
}

/* If the kernel does not report alignment, the guess is sufficient, too. */
static void test_limits_guessed(gconstpointer data)
{
    const char *dir = data;
    DirectIOLimits limits = { };
    int buffered, fd, round;

    if (g_str_has_suffix(dir, "16k")) {
        g_test_skip("kernels that have such devices tell");
        return;
    }
    fd = open_direct_or_skip(dir, &buffered);
    if (fd < 0) {
        return;
    }
    for (round = 0; round < 2; round++) {
        fake_statx.active = true;
        fake_statx.silent = round == 0;
        fake_statx.err = round == 1 ? ENOSYS : 0;
        g_assert(direct_io_probe(fd, "test", &limits, &error_abort));
        fake_statx_off();
        assert_sane(&limits);
        assert_sufficient(fd, &limits);
        g_assert_cmpuint(limits.offset_align, >=, DIRECT_IO_ALIGN_DEFAULT);
        g_assert_cmpuint(limits.offset_align, >=, qemu_real_host_page_size());
        g_assert_cmpuint(limits.mem_align, ==, limits.offset_align);
    }
    close(fd);
    close(buffered);
}

static void test_fs_name(gconstpointer data)
{
    const char *dir = data;
    g_autofree char *base = g_path_get_basename(dir);
    g_autofree char *name = NULL;
    int fd = direct_io_test_file(dir, 0, NULL);

    name = direct_io_fs_name(fd);
    g_test_message("%s is %s", dir, name);
    if (g_getenv("QDIO_TEST_DIRS")) {
        g_assert(g_str_has_prefix(base, name));
    }
    close(fd);
    g_free(name);
    name = direct_io_fs_name(fd);
    g_assert_cmpstr(name, ==, "of unknown type");
}

/* The new descriptor is independent, and works even on an unlinked file. */
static void test_reopen(gconstpointer data)
{
    const char *dir = data;
    DirectIOLimits limits;
    int buffered, fd = open_direct_or_skip(dir, &buffered);
    g_autofree char *raw = NULL;
    char *buf, got[4];

    if (fd < 0) {
        return;
    }
    g_assert(direct_io_enabled(fd));
    g_assert(!direct_io_enabled(buffered));
    g_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    g_assert(direct_io_same_file(fd, buffered, "test", &error_abort));

    g_assert_cmpint(lseek(buffered, 12345, SEEK_SET), ==, 12345);
    g_assert_cmpint(lseek(fd, 0, SEEK_CUR), ==, 0);

    g_assert(direct_io_probe(fd, "test", &limits, &error_abort));
    raw = g_malloc0(limits.offset_align + limits.mem_align);
    buf = (char *)QEMU_ALIGN_PTR_UP(raw, limits.mem_align);
    memcpy(buf, "data", 4);
    g_assert_cmpint(pwrite(fd, buf, limits.offset_align, 0),
                    ==, limits.offset_align);
    g_assert_cmpint(pread(buffered, got, 4, 0), ==, 4);
    g_assert(memcmp(got, "data", 4) == 0);
    close(fd);
    close(buffered);
}

/* If another file takes the name, reopening still gives the first one. */
static void test_reopen_renamed(gconstpointer data)
{
    const char *dir = data;
    g_autofree char *path = NULL;
    g_autofree char *moved = NULL;
    Error *err = NULL;
    int fd = direct_io_test_file(dir, 0, &path), other, new_fd;

    moved = g_strconcat(path, ".moved", NULL);
    g_assert_cmpint(rename(path, moved), ==, 0);
    other = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    g_assert_cmpint(other, >=, 0);

    new_fd = direct_io_reopen(fd, path, O_WRONLY, &err);
    if (new_fd >= 0) {
        g_assert(direct_io_same_file(fd, new_fd, path, &error_abort));
        g_assert(!direct_io_same_file(other, new_fd, "the-name", &err));
        assert_error(err, "the-name: * different files; *");
        g_assert_cmpint(fcntl(new_fd, F_GETFL) & O_ACCMODE, ==, O_WRONLY);
        close(new_fd);
    } else {
        g_test_skip(error_get_pretty(err));
        error_free(err);
    }
    unlink(path);
    unlink(moved);
    close(other);
    close(fd);
}

/* ext4 with journalled data opens files with O_DIRECT, but can't do it. */
static void test_refused_by_statx(gconstpointer data)
{
    const char *dir = data;
    DirectIOLimits limits = { 1, 2, 3 };
    Error *err = NULL;
    int fd = direct_io_test_file(dir, 0, NULL);

    if (direct_io_probe(fd, "the-name", &limits, &err)) {
        g_test_skip("this kernel does not tell");
    } else {
        assert_error(err, "the-name: the file system (ext4) does not support "
                     "direct I/O on this file; turn *");
        g_assert_cmpuint(limits.mem_align, ==, 1);
        g_assert_cmpuint(limits.offset_align, ==, 2);
        g_assert_cmpuint(limits.opt_transfer, ==, 3);
    }
    close(fd);
}

static void test_limits_buffered(void)
{
    DirectIOLimits limits = { };

    g_assert(direct_io_supported_by_host());
    direct_io_limits_buffered(&limits);
    g_assert_cmpuint(limits.mem_align, ==, 1);
    g_assert_cmpuint(limits.offset_align, ==, 1);
    g_assert_cmpuint(limits.opt_transfer, ==, 2 * 1024 * 1024);
}

static void test_nonsense(void)
{
#ifdef STATX_DIOALIGN
    static const struct {
        uint32_t mem_align, offset_align;
        const char *pattern;
    } answers[] = {
        { 512, 513, "the-name: * file offset alignment of 513 bytes *" },
        { 512, 2 * DIRECT_IO_ALIGN_MAX, "the-name: * 2097152 bytes *" },
        { 0, 512, "the-name: * memory alignment of 0 bytes *" },
        { 12, 512, "the-name: * memory alignment of 12 bytes *" },
        { 0x80000000u, 512, "the-name: * alignment of 2147483648 bytes *" },
        { 0, 0, "the-name: the file system (*) does not support *" },
        { 512, 0, "the-name: the file system (*) does not support *" },
    };
    DirectIOLimits limits = { 1, 2, 3 };
    int fd = direct_io_test_file(g_get_tmp_dir(), 0, NULL);
    int i;

    for (i = 0; i < ARRAY_SIZE(answers); i++) {
        Error *err = NULL;

        fake_statx.active = true;
        fake_statx.mem_align = answers[i].mem_align;
        fake_statx.offset_align = answers[i].offset_align;
        g_assert(!direct_io_probe(fd, "the-name", &limits, &err));
        assert_error(err, answers[i].pattern);
        g_assert_cmpuint(limits.opt_transfer, ==, 3);
    }

    /* The largest alignment that is accepted. */
    fake_statx.mem_align = 4;
    fake_statx.offset_align = DIRECT_IO_ALIGN_MAX;
    g_assert(direct_io_probe(fd, "the-name", &limits, &error_abort));
    fake_statx_off();
    g_assert_cmpuint(limits.mem_align, ==, 4);
    g_assert_cmpuint(limits.offset_align, ==, DIRECT_IO_ALIGN_MAX);
    assert_sane(&limits);
    close(fd);
#else
    g_test_skip("no STATX_DIOALIGN on this host");
#endif
}

/* OpenZFS reports which size is best, and only needs pages. */
static void test_zfs(void)
{
#ifdef STATX_DIOALIGN
    size_t page = MAX(DIRECT_IO_ALIGN_DEFAULT, qemu_real_host_page_size());
    DirectIOLimits limits;
    int fd = direct_io_test_file(g_get_tmp_dir(), 0, NULL);

    for (uint32_t size = 512; size <= 16 * MiB; size *= 2) {
        fake_statx.active = true;
        fake_statx.mem_align = page;
        fake_statx.offset_align = size;
        fake_statx.fs = 0x2fc12fc1;
        g_assert(direct_io_probe(fd, "test", &limits, &error_abort));
        fake_statx_off();
        g_assert_cmpuint(limits.offset_align, ==, MIN(size, page));
        g_assert_cmpuint(limits.mem_align, ==, page);
    }
    close(fd);
#else
    g_test_skip("no STATX_DIOALIGN on this host");
#endif
}

static void expect_no_file(int fd, const char *pattern)
{
    DirectIOLimits limits;
    Error *err = NULL;

    g_assert(!direct_io_probe(fd, "the-name", &limits, &err));
    assert_error(err, pattern);
    err = NULL;
    g_assert_cmpint(direct_io_reopen(fd, "the-name", O_RDONLY, &err), ==, -1);
    assert_error(err, pattern);
}

static void test_not_a_file(void)
{
    const char *pattern = "the-name: direct I/O needs a regular file or *";
    int fds[2], fd;

    g_assert_cmpint(pipe(fds), ==, 0);
    expect_no_file(fds[0], pattern);
    expect_no_file(fds[1], pattern);
    close(fds[0]);
    close(fds[1]);

    fd = open("/", O_RDONLY);
    expect_no_file(fd, pattern);
    close(fd);

    fd = open("/dev/null", O_RDWR);
    expect_no_file(fd, pattern);
    close(fd);

    /* Closed by now. */
    g_assert(!direct_io_enabled(fd));
    expect_no_file(fd, "the-name: cannot examine the file: Bad file *");
    expect_no_file(-1, "the-name: cannot examine the file: Bad file *");
}

static void test_same_file_errors(void)
{
    int fd = direct_io_test_file(g_get_tmp_dir(), 0, NULL);
    int copy = dup(fd);
    Error *err = NULL;

    g_assert(direct_io_same_file(fd, copy, "the-name", &error_abort));
    close(copy);
    g_assert(!direct_io_same_file(fd, copy, "the-name", &err));
    assert_error(err, "the-name: cannot examine the file: Bad file *");
    err = NULL;
    g_assert(!direct_io_same_file(copy, fd, "the-name", &err));
    assert_error(err, "the-name: cannot examine the file: Bad file *");
    close(fd);
}

/* Every Linux has a file system that does not support O_DIRECT. */
static void test_refused_by_open(void)
{
    int fd = open("/proc/self/status", O_RDONLY);
    Error *err = NULL;

    g_assert_cmpint(direct_io_reopen(fd, "the-name", O_RDONLY, &err), ==, -1);
    assert_error(err, "the-name: the file system (proc) does not support "
                 "O_DIRECT; turn the direct-io parameter off, or *");
    close(fd);
}

/* Other errors are reported as they are: a running program is read-only. */
static void test_reopen_busy(void)
{
    int fd = open("/proc/self/exe", O_RDONLY);
    Error *err = NULL;

    g_assert_cmpint(direct_io_reopen(fd, "the-name", O_WRONLY, &err), ==, -1);
    assert_error(err, "the-name: cannot open the file again for direct I/O: "
                 "Text file busy");
    close(fd);
}

/*
 * Reopens @fd, the file at @path, in a process without /proc.  Exits with 2 if
 * that can't be.
 */
static void reopen_without_proc(int fd, const char *path)
{
    Error *err = NULL;
    int second;

    second = direct_io_reopen(fd, path, O_RDONLY, NULL);
    if (second < 0 || unshare(CLONE_NEWNS) < 0 ||
        /* The root of a chroot is not a mount point, but /proc is one */
        mount(NULL, "/proc", NULL, MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", "/proc", "tmpfs", 0, NULL) < 0) {
        _exit(2);
    }
    close(second);
    g_assert_cmpint(direct_io_reopen(fd, "the-name", O_RDONLY, &err), ==, -1);
    assert_error(err, "the-name: * /proc/self/fd is missing; *");
    err = NULL;
    /* Its path is as good, until another file takes it. */
    second = direct_io_reopen(fd, path, O_RDONLY, &error_abort);
    g_assert(direct_io_same_file(fd, second, path, &error_abort));
    g_assert(direct_io_enabled(second));
    close(second);
    unlink(path);
    second = open(path, O_CREAT | O_RDWR, 0600);
    g_assert_cmpint(direct_io_reopen(fd, path, O_RDONLY, &err), ==, -1);
    assert_error(err, "* /proc/self/fd is missing; *");
    close(second);
    /* Sanitizers need /proc. */
    g_assert_cmpint(umount("/proc"), ==, 0);
    _exit(g_test_failed() ? 1 : 0);
}

static void test_reopen_no_proc(void)
{
    g_autofree char *path = NULL;
    int fd = direct_io_test_file(g_get_tmp_dir(), 0, &path);
    pid_t pid = fork();
    int status;

    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        reopen_without_proc(fd, path);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    unlink(path);
    close(fd);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 2) {
        g_test_skip("hiding /proc needs privileges, or there is no O_DIRECT");
    } else {
        g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

static void test_block_device(gconstpointer data)
{
    const char *path = data;
    g_autofree char *node = NULL;
    DirectIOLimits limits;
    Error *err = NULL;
    struct stat st;
    int buffered, fd, other, sector = 0;

    buffered = open(path, O_RDWR);
    if (buffered < 0) {
        g_test_skip("cannot open the device");
        return;
    }
    g_assert_cmpint(ioctl(buffered, BLKSSZGET, &sector), ==, 0);
    fd = direct_io_reopen(buffered, path, O_RDWR, &error_abort);
    g_assert(direct_io_same_file(fd, buffered, path, &error_abort));

    g_assert(direct_io_probe(fd, path, &limits, &error_abort));
    g_assert_cmpuint(limits.offset_align, ==, sector);
    assert_sane(&limits);
    assert_sufficient(fd, &limits);

    /* Likewise without the kernel's report. */
    fake_statx.active = fake_statx.silent = true;
    g_assert(direct_io_probe(fd, path, &limits, &error_abort));
    fake_statx_off();
    g_assert_cmpuint(limits.offset_align, ==, sector);
    g_assert_cmpuint(limits.mem_align, ==, sector);
    assert_sufficient(fd, &limits);

    /* Another node of the same device is the same; a regular file is not. */
    g_assert_cmpint(fstat(fd, &st), ==, 0);
    node = g_strdup_printf("%s.direct-io-test.%d", path, (int)getpid());
    if (mknod(node, S_IFBLK | 0600, st.st_rdev) == 0) {
        other = open(node, O_RDWR);
        unlink(node);
        g_assert_cmpint(other, >=, 0);
        g_assert(direct_io_same_file(fd, other, path, &error_abort));
        close(other);
    }
    other = direct_io_test_file(g_get_tmp_dir(), 0, NULL);
    g_assert(!direct_io_same_file(fd, other, path, &err));
    assert_error(err, "* different files; *");
    close(other);
    close(fd);
    close(buffered);
}

static void add(const char *where, const char *what, GTestDataFunc func)
{
    g_autofree char *base = g_path_get_basename(where);
    g_autofree char *path = g_strdup_printf("/direct-io/%s/%s", base, what);

    g_test_add_data_func(path, where, func);
}

static void add_dir(const char *dir)
{
    add(dir, "limits", test_limits);
    add(dir, "limits-guessed", test_limits_guessed);
    add(dir, "fs-name", test_fs_name);
    add(dir, "reopen", test_reopen);
    add(dir, "reopen-renamed", test_reopen_renamed);
}

int main(int argc, char **argv)
{
    g_auto(GStrv) dirs = direct_io_test_dirs();
    g_auto(GStrv) refusing = direct_io_test_list("QDIO_TEST_REFUSE_DIRS");
    g_auto(GStrv) devices = direct_io_test_list("QDIO_TEST_BLOCKDEVS");
    int i;

    g_test_init(&argc, &argv, NULL);
    for (i = 0; dirs[i]; i++) {
        add_dir(dirs[i]);
    }
    for (i = 0; refusing[i]; i++) {
        add(refusing[i], "refused-by-statx", test_refused_by_statx);
    }
    for (i = 0; devices[i]; i++) {
        g_autofree char *path = g_strdup_printf("/direct-io/block-device/%d",
                                                i);

        g_test_add_data_func(path, devices[i], test_block_device);
    }
    g_test_add_func("/direct-io/limits-buffered", test_limits_buffered);
    g_test_add_func("/direct-io/nonsense", test_nonsense);
    g_test_add_func("/direct-io/zfs", test_zfs);
    g_test_add_func("/direct-io/not-a-file", test_not_a_file);
    g_test_add_func("/direct-io/same-file-errors", test_same_file_errors);
    g_test_add_func("/direct-io/refused-by-open", test_refused_by_open);
    g_test_add_func("/direct-io/reopen-busy", test_reopen_busy);
    g_test_add_func("/direct-io/reopen-no-proc", test_reopen_no_proc);
    return g_test_run();
}
