/*
 * Saving guests to files: what must fail, and how
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Every failure gives a message with its cause; the guest that was to be saved
 * runs on and can be saved at once; and no emulator dies from a signal or
 * continues with a guest other than the one that was saved.
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include <sys/resource.h>
#include "migration-file-faults.h"
#include "migration-file-helpers.h"
#include "qemu/bswap.h"

#define NO_DIRECT "no O_DIRECT here; set QDIO_TEST_DIR to try elsewhere"

static void expect_text(const char *text, const char *expected)
{
    if (!strstr(text, expected)) {
        g_printerr("expected '%s' in: %s\n", expected, text);
        g_assert_not_reached();
    }
}

/* Checks that the guest runs, can be saved, and runs after that. */
static void check_well(FileVM *vm)
{
    static const FileWay plain = { .mapped = true };
    g_autofree char *path = file_test_path("well");
    FileTarget target = { .path = path };

    file_vm_check_runs(vm);
    file_vm_save(vm, &plain, &target);
    file_vm_cont(vm);
    unlink(path);
}

/* Checks that saving to @uri as @way says is refused with @expected. */
static void refuse_save(FileVM *vm, const FileWay *way, const char *uri,
                        const char *expected)
{
    g_autofree char *desc = NULL;

    file_vm_set_way(vm, way);
    desc = file_vm_refuse(vm, "{ 'execute': 'migrate',"
                          " 'arguments': { 'uri': %s } }", uri);
    expect_text(desc, expected);
    check_well(vm);
}

static void refuse_restore(FileVM *vm, const FileWay *way, const char *uri,
                           const char *expected)
{
    g_autofree char *desc = NULL;

    file_vm_set_way(vm, way);
    desc = file_vm_refuse(vm, "{ 'execute': 'migrate-incoming',"
                          " 'arguments': { 'uri': %s } }", uri);
    expect_text(desc, expected);
}

static const char set_cap[] =
    "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
    " 'capabilities': [ { 'capability': %s, 'state': true } ] } }";

static void refuse_cap(FileVM *vm, const char *cap, const char *with)
{
    g_autofree char *desc = file_vm_try(vm, set_cap, cap);

    g_assert_nonnull(desc);
    expect_text(desc, "'mapped-ram' is not compatible");
    expect_text(desc, with);
}

/* Tests a capability, unless this host or this build does not have it. */
static void test_capability(const void *opaque)
{
    const char *cap = opaque;
    g_autoptr(FileVM) vm = file_vm_start_source();
    g_autofree char *desc = NULL;

    /* zero-copy-send needs multifd; others refuse it. */
    file_vm_set_cap(vm, "multifd", g_str_equal(cap, "zero-copy-send"));
    desc = file_vm_try(vm, set_cap, cap);
    if (desc) {
        if (!strstr(desc, "QEMU compiled without")) {
            expect_text(desc, "not supported by host kernel");
        }
        g_test_skip(desc);
        return;
    }
    refuse_cap(vm, "mapped-ram", cap);
    file_vm_set_cap(vm, cap, false);

    file_vm_set_cap(vm, "mapped-ram", true);
    refuse_cap(vm, cap, cap);
    /* Both at once */
    file_vm_set_cap(vm, "mapped-ram", false);
    g_clear_pointer(&desc, g_free);
    desc = file_vm_try(vm, "{ 'execute': 'migrate-set-capabilities',"
                       " 'arguments': { 'capabilities': ["
                       " { 'capability': 'mapped-ram', 'state': true },"
                       " { 'capability': %s, 'state': true } ] } }", cap);
    g_assert_nonnull(desc);
    expect_text(desc, cap);
    check_well(vm);
}

/*
 * Checks that mapped-ram and the parameter @name are refused together: either
 * @desc is the error from setting the second of them, or, if it is NULL, the
 * migration is refused.
 */
static void refuse_parameter(FileVM *vm, const char *name, char *desc)
{
    g_autofree char *path = file_test_path("image");
    g_autofree char *uri = g_strdup_printf("file:%s", path);

    if (!desc) {
        desc = file_vm_refuse(vm, "{ 'execute': 'migrate',"
                              " 'arguments': { 'uri': %s } }", uri);
    }
    expect_text(desc, "'mapped-ram' is not compatible");
    expect_text(desc, name);
    g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    g_free(desc);
}

static void test_parameter(const void *opaque)
{
    const char *name = opaque;
    const char *value = g_str_equal(name, "tls-creds") ? "tls0" : "zlib";
    g_autoptr(FileVM) vm = file_vm_start_source();
    QDict *args = qdict_new();

    qdict_put_str(args, name, value);
    qobject_ref(args);
    file_vm_do(vm, "{ 'execute': 'migrate-set-parameters',"
               " 'arguments': %p }", args);
    refuse_parameter(vm, name, file_vm_try(vm, set_cap, "mapped-ram"));
    file_vm_do(vm, "{ 'execute': 'migrate-set-parameters', 'arguments': {"
               " 'tls-creds': '', 'multifd-compression': 'none' } }");
    file_vm_set_cap(vm, "mapped-ram", true);
    refuse_parameter(vm, name,
                     file_vm_try(vm, "{ 'execute': 'migrate-set-parameters',"
                                 " 'arguments': %p }", args));
    file_vm_do(vm, "{ 'execute': 'migrate-set-parameters', 'arguments': {"
               " 'tls-creds': '', 'multifd-compression': 'none' } }");
    check_well(vm);
}

static void test_transport(void)
{
    static const char *const uris[] = {
        "tcp:127.0.0.1:0", "unix:/nonexistent", "exec:cat>/dev/null",
    };
    FileWay mapped = { .mapped = true, .channels = 2 };
    g_autoptr(FileVM) from = file_vm_start_source();
    g_autoptr(FileVM) to = file_vm_start_target(NULL);

    for (unsigned i = 0; i < G_N_ELEMENTS(uris); i++) {
        refuse_save(from, &mapped, uris[i], "needs a seekable transport");
        refuse_restore(to, &mapped, uris[i], "needs a seekable transport");
    }
}

/* A descriptor that is not a file's */
static void test_fd_pipe(const void *opaque)
{
    FileWay mapped = { .mapped = true, .channels = GPOINTER_TO_UINT(opaque) };
    g_autoptr(FileVM) from = file_vm_start_source();
    g_autoptr(FileVM) to = file_vm_start_target(NULL);
    int fds[2];

    g_assert_cmpint(pipe(fds), ==, 0);
    file_vm_pass_fd(from, "pipe", fds[1]);
    file_vm_pass_fd(to, "pipe", fds[0]);
    refuse_save(from, &mapped, "fd:pipe", "needs a seekable file");
    refuse_restore(to, &mapped, "fd:pipe", "needs a seekable file");
}

static void test_multifd_stream(void)
{
    FileWay multifd = { .channels = 2 };
    g_autofree char *path = file_test_path("image");
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autoptr(FileVM) from = file_vm_start_source();
    g_autoptr(FileVM) to = file_vm_start_target(NULL);

    refuse_save(from, &multifd, uri, "Multifd without mapped-ram");
    g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    refuse_restore(to, &multifd, uri, "Multifd without mapped-ram");
}

static void test_offset_text(void)
{
    static const char *const offsets[] = {
        "", "x", "-1", "1x", "0x10q", "1 2", "8E", "99999999999999999999",
    };
    FileWay mapped = { .mapped = true };
    g_autofree char *path = file_test_path("image");
    g_autoptr(FileVM) from = file_vm_start_source();
    g_autoptr(FileVM) to = file_vm_start_target(NULL);

    for (unsigned i = 0; i < G_N_ELEMENTS(offsets); i++) {
        g_autofree char *uri = g_strdup_printf("file:%s,offset=%s", path,
                                               offsets[i]);

        refuse_save(from, &mapped, uri, "'offset'");
        refuse_restore(to, &mapped, uri, "'offset'");
        g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    }
    refuse_save(from, &mapped, "file:", "has no path");
    refuse_save(from, &mapped, "file:,offset=1M", "has no path");
}

static void test_path(void)
{
    FileWay mapped = { .mapped = true };
    g_autofree char *missing = file_test_path("missing/image");
    g_autofree char *missing_uri = g_strdup_printf("file:%s", missing);
    g_autofree char *absent = file_test_path("absent");
    g_autofree char *absent_uri = g_strdup_printf("file:%s", absent);
    g_autofree char *dir = file_test_path("");
    g_autofree char *dir_uri = g_strdup_printf("file:%s", dir);
    g_autofree char *fifo = file_test_path("fifo");
    g_autofree char *fifo_uri = g_strdup_printf("file:%s", fifo);
    g_autofree char *behind_uri = g_strdup_printf("file:%s,offset=1G", absent);
    g_autoptr(FileVM) from = file_vm_start_source();
    g_autoptr(FileVM) to = file_vm_start_target(NULL);

    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    for (mapped.channels = 0; mapped.channels < 4; mapped.channels += 2) {
        refuse_save(from, &mapped, missing_uri, "No such file or directory");
        refuse_save(from, &mapped, dir_uri, "is a directory");
        refuse_save(from, &mapped, fifo_uri, "not a seekable file");
        refuse_restore(to, &mapped, absent_uri, "No such file or directory");
        refuse_restore(to, &mapped, dir_uri, "is a directory");
        refuse_restore(to, &mapped, fifo_uri, "not a seekable file");
        g_assert_true(g_file_set_contents(absent, "", 0, NULL));
        refuse_restore(to, &mapped, absent_uri, "is empty");
        g_assert_true(g_file_set_contents(absent, "x", 1, NULL));
        refuse_restore(to, &mapped, behind_uri, "beyond the end");
        unlink(absent);
    }
    unlink(fifo);
}

static void remove_fds(FileVM *vm)
{
    file_vm_do(vm, "{ 'execute': 'remove-fd',"
               " 'arguments': { 'fdset-id': 7 } }");
}

static void test_fdset(const void *opaque)
{
    static const char uri[] = "file:/dev/fdset/7";
    static const char text[] = "this stays";
    FileWay way = { .mapped = true, .channels = 2, .direct = true };
    FileWay buffered = { .mapped = true, .channels = 2 };
    g_autofree char *path = file_test_path("image");
    g_autofree char *other = file_test_path("other");
    bool save = opaque != NULL;
    void (*refuse)(FileVM *, const FileWay *, const char *, const char *) =
        save ? refuse_save : refuse_restore;
    int access = save ? O_WRONLY : O_RDONLY;
    int wrong_access = save ? O_RDONLY : O_WRONLY;
    g_autoptr(FileVM) vm = NULL;
    unsigned before;

    if (!file_test_direct()) {
        g_test_skip(NO_DIRECT);
        return;
    }
    g_assert_true(g_file_set_contents(path, text, sizeof(text), NULL));
    g_assert_true(g_file_set_contents(other, text, sizeof(text), NULL));
    vm = save ? file_vm_start_source() : file_vm_start_target(NULL);
    before = file_vm_count_fds(vm, NULL, NULL);

    refuse(vm, &way, uri, "fdset does not exist");
    refuse(vm, &buffered, uri, "fdset does not exist");

    file_vm_add_fd(vm, 7, path, access);
    file_vm_add_fd(vm, 7, path, wrong_access | O_DIRECT);
    refuse(vm, &way, uri, save ? "for writing with O_DIRECT" :
           "for reading with O_DIRECT");
    remove_fds(vm);

    file_vm_add_fd(vm, 7, path, access | O_DIRECT);
    refuse(vm, &way, uri, "without O_DIRECT");
    refuse(vm, &buffered, uri, "without O_DIRECT");
    remove_fds(vm);

    file_vm_add_fd(vm, 7, path, wrong_access);
    file_vm_add_fd(vm, 7, path, wrong_access | O_DIRECT);
    refuse(vm, &way, uri, save ? "for writing" : "for reading");
    refuse(vm, &buffered, uri, save ? "read-only" : "write-only");
    remove_fds(vm);

    file_vm_add_fd(vm, 7, path, access);
    file_vm_add_fd(vm, 7, other, access | O_DIRECT);
    refuse(vm, &way, uri, "different files");
    remove_fds(vm);

    refuse(vm, &way, "file:/dev/fdset/x", "/dev/fdset/x");

    /*
     * Nothing is lost, and no descriptor is left open, except for those of the
     * sets on a base that keeps them until a guest runs.  A save closes its own
     * a moment after it has ended.
     */
    g_assert_cmpuint(file_size(path), ==, sizeof(text));
    g_assert_cmpuint(file_size(other), ==, sizeof(text));
    file_vm_wait_fds(vm, NULL, save || !FILE_BASE_KEEPS_REMOVED_FDS ? before :
                     before + 7);
    unlink(path);
    unlink(other);
}

/* Files on hugetlbfs can't be opened with O_DIRECT, on any host. */
static void test_no_direct(void)
{
    FileWay direct = { .mapped = true, .channels = 2, .direct = true };
    int fd = memfd_create("no-direct", MFD_CLOEXEC | MFD_HUGETLB);
    g_autofree char *path = g_strdup_printf("/proc/%d/fd/%d", getpid(), fd);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autoptr(FileVM) from = NULL;
    g_autoptr(FileVM) to = NULL;

    if (fd < 0) {
        g_test_skip("no huge pages, and so no file without O_DIRECT");
        return;
    }
    g_assert_cmpint(ftruncate(fd, 1 * GiB), ==, 0);
    from = file_vm_start_source();
    refuse_save(from, &direct, uri, path);
    refuse_save(from, &direct, uri, "hugetlbfs) does not support O_DIRECT");
    g_assert_cmpuint(file_size(path), ==, 1 * GiB);

    to = file_vm_start_target(NULL);
    refuse_restore(to, &direct, uri, "hugetlbfs) does not support O_DIRECT");
    close(fd);
}

/* A second save to the file, or a restore from it, is refused meanwhile. */
static void test_in_use(void)
{
    FileWay way = { .mapped = true, .channels = 2 };
    g_autofree char *path = file_test_path("image");
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    FileTarget target = { .path = path };
    g_autoptr(FileVM) a = file_vm_start_source();
    g_autoptr(FileVM) b = NULL;
    g_autoptr(FileVM) to = file_vm_start_target(NULL);

    b = file_vm_start("second", NULL);
    file_vm_cont(b);
    file_vm_set_way(a, &way);
    file_vm_set_int(a, "max-bandwidth", 1 * MiB);
    file_vm_do(a, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }", uri);
    file_vm_wait_syncs(a, 1);

    refuse_save(b, &way, uri, "another migration");
    refuse_restore(to, &way, uri, "another migration");

    file_vm_set_int(a, "downtime-limit", 100000);
    file_vm_set_int(a, "max-bandwidth", 0);
    file_vm_wait(a, "completed");
    file_vm_restore(to, &way, &target);
    file_vm_compare(a, to);
    unlink(path);
}

typedef struct CancelTest {
    unsigned channels;
    bool direct;
} CancelTest;

/* Waits until the migration has been cancelled; it may also complete. */
static bool wait_cancelled(FileVM *vm)
{
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;

    for (;;) {
        g_autofree char *status = file_vm_status(vm);

        if (g_str_equal(status, "cancelled") ||
            g_str_equal(status, "completed")) {
            return g_str_equal(status, "cancelled");
        }
        if (g_str_equal(status, "failed")) {
            g_autofree char *text = qtest_hmp(vm->qts, "info migrate");

            g_printerr("failed instead of cancelled: %s\n", text);
            g_assert_not_reached();
        }
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/* Starts to save, and cancels at some moment. */
static void start_and_cancel(FileVM *vm, const char *uri)
{
    unsigned bandwidth = g_test_rand_int_range(0, 4) * 10;

    file_vm_set_int(vm, "max-bandwidth", bandwidth * MiB);
    file_vm_do(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
               uri);
    g_usleep(g_test_rand_int_range(0, bandwidth ? 300000 : 60000));
    file_vm_do(vm, "{ 'execute': 'migrate_cancel' }");
}

/*
 * Saves as soon as the cancelled migration has ended, unless it was completed
 * after all.
 */
static void save_at_once(FileVM *vm, const char *uri)
{
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;
    char *desc;

    while ((desc = file_vm_try(vm, "{ 'execute': 'migrate',"
                               " 'arguments': { 'uri': %s } }", uri))) {
        g_autofree char *status = file_vm_status(vm);

        if (!g_str_equal(status, "completed")) {
            expect_text(desc, "in progress");
        }
        g_free(desc);
        if (g_str_equal(status, "completed")) {
            return;
        }
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    }
    file_vm_set_int(vm, "max-bandwidth", 0);
    file_vm_wait(vm, "completed");
}

static void test_cancel(const void *opaque)
{
    const CancelTest *t = opaque;
    FileWay way = { .mapped = true, .channels = t->channels,
                    .direct = t->direct };
    g_autofree char *path = file_test_path("image");
    g_autofree char *prefix = g_strnfill(12345, 'p');
    FileTarget target = { .path = path, .offset = strlen(prefix) };
    g_autofree char *uri = NULL;
    g_autoptr(FileVM) vm = NULL;
    g_autoptr(FileVM) to = NULL;
    unsigned before;

    if (t->direct && !file_test_direct()) {
        g_test_skip(NO_DIRECT);
        return;
    }
    g_assert_true(g_file_set_contents(path, prefix, -1, NULL));
    vm = file_vm_start_source();
    uri = file_vm_uri(vm, &target, t->direct, true);
    file_vm_set_way(vm, &way);
    file_vm_set_int(vm, "downtime-limit", 100000);
    before = file_vm_count_fds(vm, NULL, NULL);

    for (unsigned i = g_test_slow() ? 100 : 4; i > 0; i--) {
        start_and_cancel(vm, uri);
        if (wait_cancelled(vm)) {
            g_assert_cmpuint(file_size(path), ==, target.offset);
        } else {
            file_vm_cont(vm);
            /* If cancelled early, the next save would leave this image. */
            g_assert_cmpint(truncate(path, target.offset), ==, 0);
        }
        file_vm_check_runs(vm);
    }
    start_and_cancel(vm, uri);
    save_at_once(vm, uri);
    file_vm_wait_fds(vm, path, 0);
    file_vm_wait_fds(vm, NULL, before);

    to = file_vm_start_target(NULL);
    file_vm_restore(to, &way, &target);
    file_vm_compare(vm, to);
    unlink(path);
}

static void limit_file_size(FileVM *vm, rlim_t limit)
{
    struct rlimit rl;

    g_assert_cmpint(prlimit(vm->pid, RLIMIT_FSIZE, NULL, &rl), ==, 0);
    rl.rlim_cur = limit;
    g_assert_cmpint(prlimit(vm->pid, RLIMIT_FSIZE, &rl, NULL), ==, 0);
}

/* The file can't become large enough, which is only noticed later. */
static void test_fail_and_retry(const void *opaque)
{
    const CancelTest *t = opaque;
    FileWay way = { .mapped = true, .channels = t->channels,
                    .direct = t->direct };
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path };
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autofree char *far = g_strdup_printf("file:%s,offset=32M", path);
    g_autoptr(FileVM) vm = NULL;
    g_autoptr(FileVM) to = NULL;
    unsigned before;

    if (t->direct && !file_test_direct()) {
        g_test_skip(NO_DIRECT);
        return;
    }
    vm = file_vm_start_source();
    file_vm_set_way(vm, &way);
    file_vm_set_int(vm, "downtime-limit", 100000);
    before = file_vm_count_fds(vm, NULL, NULL);

    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *desc = NULL;

        limit_file_size(vm, 16 * MiB);
        desc = file_vm_try(vm, "{ 'execute': 'migrate',"
                           " 'arguments': { 'uri': %s } }", far);
        g_assert_nonnull(desc);
        expect_text(desc, "RLIMIT_FSIZE");
        file_vm_do(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
                   uri);
        file_vm_wait(vm, "failed");
        file_vm_check_runs(vm);
        /* The save was refused, so not even a new file is left */
        g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    }
    limit_file_size(vm, RLIM_INFINITY);
    file_vm_do(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
               uri);
    file_vm_wait(vm, "completed");
    file_vm_wait_fds(vm, NULL, before);

    to = file_vm_start_target(NULL);
    file_vm_restore(to, &way, &target);
    file_vm_compare(vm, to);
    unlink(path);
}

/* Checks that @path does not restore, with a message that has @expected. */
static void expect_damaged(const char *path, bool direct,
                           const char *expected, const char *args)
{
    FileWay way = { .mapped = true, .channels = 2, .direct = direct };
    FileVM *vm = file_vm_start_target(args);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autofree char *log = NULL;

    file_vm_set_way(vm, &way);
    file_vm_do(vm, "{ 'execute': 'migrate-incoming',"
               " 'arguments': { 'uri': %s } }", uri);
    log = file_vm_stop_failed(vm);
    expect_text(log, expected);
    expect_text(log, "load of migration failed");
}

static void make_image(const char *path, bool mapped)
{
    FileWay way = { .mapped = mapped, .channels = mapped ? 2 : 0 };
    FileTarget target = { .path = path };
    g_autoptr(FileVM) vm = file_vm_start_source();

    file_vm_do(vm, "{ 'execute': 'stop' }");
    file_vm_save(vm, &way, &target);
}

static void test_truncated(void)
{
    g_autofree char *path = file_test_path("image");
    FileBlock blocks[8];
    unsigned n;

    make_image(path, true);
    n = file_find_blocks(path, blocks, G_N_ELEMENTS(blocks));
    {
        const FileBlock *ram = &blocks[0], *last = &blocks[n - 1];
        uint64_t lengths[] = {
            last->pages + last->length + 100,
            last->pages + last->length,
            last->pages + last->length - 1,
            last->header + 10,
            ram->pages + FILE_VM_ZERO,
            ram->pages + FILE_VM_RUN + 4097,
            ram->pages + 4096,
            ram->pages + 1,
            ram->pages,
            ram->header + FILE_HEADER_SIZE + 100,
            ram->header + FILE_HEADER_SIZE,
            ram->header + 10,
            ram->header - 3,
            7,
            1,
        };

        g_assert_cmpuint(n, >, 1);
        for (unsigned i = 0; i < G_N_ELEMENTS(lengths); i++) {
            g_assert_cmpint(truncate(path, lengths[i]), ==, 0);
            expect_damaged(path, i % 2 && file_test_direct(), path, NULL);
        }
    }
    unlink(path);
}

/* Changes @size bytes of the file, checks the error, and restores them. */
static void expect_field(const char *path, uint64_t offset, unsigned size,
                         uint64_t value, const char *expected)
{
    uint8_t old[8], new[8];
    int fd = open(path, O_RDWR);

    stq_be_p(new, value << (64 - 8 * size));
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(pread(fd, old, size, offset), ==, size);
    g_assert_cmpint(memcmp(old, new, size), !=, 0);
    g_assert_cmpint(pwrite(fd, new, size, offset), ==, size);
    expect_damaged(path, false, expected, NULL);
    g_assert_cmpint(pwrite(fd, old, size, offset), ==, size);
    close(fd);
}

static void expect_fields(const char *path, const FileBlock *b)
{
    const uint64_t versions[] = { 0, 2, 0x100, UINT32_MAX };
    const uint64_t page_sizes[] = { 0, 1, 2048, 8192, 1ULL << 40, UINT64_MAX };
    const uint64_t bitmaps[] = { 0, b->header, b->header + FILE_HEADER_SIZE + 1,
                                 b->pages, 1ULL << 62, UINT64_MAX };
    const uint64_t pages[] = { 0, b->header, b->pages - 1, b->pages + 4096,
                               b->pages + MiB, b->pages - MiB, 1ULL << 62,
                               -(uint64_t)MiB };
    unsigned i;

    for (i = 0; i < G_N_ELEMENTS(versions); i++) {
        expect_field(path, b->header + FILE_HEADER_VERSION, 4, versions[i],
                     "version");
    }
    for (i = 0; i < G_N_ELEMENTS(page_sizes); i++) {
        expect_field(path, b->header + FILE_HEADER_PAGE_SIZE, 8,
                     page_sizes[i], "page size");
    }
    for (i = 0; i < G_N_ELEMENTS(bitmaps); i++) {
        expect_field(path, b->header + FILE_HEADER_BITMAP, 8, bitmaps[i],
                     "bitmap offset");
    }
    for (i = 0; i < G_N_ELEMENTS(pages); i++) {
        expect_field(path, b->header + FILE_HEADER_PAGES, 8, pages[i],
                     "pages offset");
    }
    /* Length and name are stored before the header. */
    expect_field(path, b->header - 8, 8, b->length / 2, b->name);
    expect_field(path, b->header - 8, 8, 1ULL << 50, "");
    expect_field(path, b->header - 9, 1, 'X', "nknown ramblock");
}

static void test_fields(void)
{
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path };
    FileWay way = { .mapped = true, .channels = 2 };
    g_autoptr(FileVM) to = NULL;
    FileBlock blocks[8];
    unsigned n;

    make_image(path, true);
    n = file_find_blocks(path, blocks, G_N_ELEMENTS(blocks));
    expect_fields(path, &blocks[0]);
    if (g_test_slow()) {
        for (unsigned i = 1; i < n; i++) {
            expect_fields(path, &blocks[i]);
        }
    }
    /* The file is as before, so nothing else was wrong with it. */
    to = file_vm_start_target(NULL);
    file_vm_restore(to, &way, &target);
    unlink(path);
}

/* Valid images that do not match this destination */
static void test_other_guest(void)
{
    g_autofree char *path = file_test_path("image");
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    FileWay stream = { .mapped = false };
    g_autofree char *log = NULL;
    FileVM *vm;

    make_image(path, true);
    expect_damaged(path, false, "pc.ram", "-m 48M");
    expect_damaged(path, false, "pc.ram", "-m 96M");

    /* Without the capability */
    vm = file_vm_start_target(NULL);
    file_vm_set_way(vm, &stream);
    file_vm_do(vm, "{ 'execute': 'migrate-incoming',"
               " 'arguments': { 'uri': %s } }", uri);
    log = file_vm_stop_failed(vm);
    expect_text(log, "load of migration failed");

    make_image(path, false);
    expect_damaged(path, false, "mapped-ram", NULL);
    unlink(path);
}

void file_faults_add(void)
{
    static const char *const caps[] = {
        FILE_BASE_REFUSED_CAPS
    };
    static const char *const params[] = { "multifd-compression", "tls-creds" };

    for (unsigned i = 0; i < G_N_ELEMENTS(caps); i++) {
        g_autofree char *name = g_strdup_printf("migration-file/refuse/%s",
                                                caps[i]);

        qtest_add_data_func(name, caps[i], test_capability);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(params); i++) {
        g_autofree char *name = g_strdup_printf("migration-file/refuse/%s",
                                                params[i]);

        qtest_add_data_func(name, params[i], test_parameter);
    }
    qtest_add_func("migration-file/refuse/transport", test_transport);
    qtest_add_data_func("migration-file/refuse/fd-pipe", NULL, test_fd_pipe);
    qtest_add_data_func("migration-file/refuse/fd-pipe-multifd",
                        GUINT_TO_POINTER(2), test_fd_pipe);
    qtest_add_func("migration-file/refuse/multifd-stream",
                   test_multifd_stream);
    qtest_add_func("migration-file/refuse/offset", test_offset_text);
    qtest_add_func("migration-file/refuse/path", test_path);
    qtest_add_data_func("migration-file/refuse/fdset-save", "save",
                        test_fdset);
    qtest_add_data_func("migration-file/refuse/fdset-restore", NULL,
                        test_fdset);
    qtest_add_func("migration-file/refuse/no-direct", test_no_direct);
    qtest_add_func("migration-file/refuse/in-use", test_in_use);

    for (unsigned channels = 1; channels <= 8; channels *= 2) {
        for (unsigned direct = 0; direct < 2; direct++) {
            CancelTest t = { .channels = channels, .direct = direct };
            const char *how = direct ? "direct" : "buffered";
            g_autofree char *cancel = g_strdup_printf(
                "migration-file/cancel/%s-%u", how, channels);
            g_autofree char *fail = g_strdup_printf(
                "migration-file/fail/%s-%u", how, channels);

            qtest_add_data_func_full(cancel, g_memdup2(&t, sizeof(t)),
                                     test_cancel, g_free);
            qtest_add_data_func_full(fail, g_memdup2(&t, sizeof(t)),
                                     test_fail_and_retry, g_free);
        }
    }
    qtest_add_func("migration-file/damaged/truncated", test_truncated);
    qtest_add_func("migration-file/damaged/fields", test_fields);
    qtest_add_func("migration-file/damaged/other-guest", test_other_guest);
}
