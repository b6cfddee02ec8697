/*
 * Saving guests to files: settings of the engine, and what QEMU reports
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * No test measures time.  To examine a save in progress, a test sets
 * max-bandwidth so low that the save stalls after its first extent.
 */

#include "qemu/osdep.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include "migration-file-helpers.h"
#include "migration-file-status.h"
#include "qobject/qlist.h"

/* For C libraries that are older than io_uring */
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif

#define NO_DIRECT "no O_DIRECT here; set QDIO_TEST_DIR to try elsewhere"

/* Bytes per second; one tenth is more than the headers and less than RAM */
#define STALLING_BANDWIDTH (64 * KiB)
/* Bytes that are sent at once at this rate */
#define LEAST_EXTENT (64 * FILE_VM_PAGE)
/* Far more than the headers of all blocks */
#define HEADERS (64 * KiB)

static const FileWay direct = { .mapped = true, .channels = 2,
                                .direct = true };

static void set_string(FileVM *vm, const char *parameter, const char *value)
{
    QDict *args = qdict_new();

    qdict_put_str(args, parameter, value);
    file_vm_do(vm, "{ 'execute': 'migrate-set-parameters',"
               " 'arguments': %p }", args);
}

/* Checks a parameter, printed as HMP does. */
static void check_parameter(FileVM *vm, const char *name, const char *value)
{
    g_autofree char *line = g_strdup_printf("%s: %s\r\n", name, value);

    file_vm_check_hmp(vm, "info migrate_parameters", line);
}

/* Takes ownership of @args. */
static void refuse_parameter(FileVM *vm, QDict *args, const char *expected)
{
    g_autofree char *desc = file_vm_refuse(
        vm, "{ 'execute': 'migrate-set-parameters', 'arguments': %p }", args);

    g_assert_nonnull(strstr(desc, expected));
}

static void refuse_int(FileVM *vm, const char *name, int64_t value,
                       const char *expected)
{
    QDict *args = qdict_new();

    qdict_put_int(args, name, value);
    refuse_parameter(vm, args, expected);
}

static void refuse_string(FileVM *vm, const char *name, const char *value,
                          const char *expected)
{
    QDict *args = qdict_new();

    qdict_put_str(args, name, value);
    refuse_parameter(vm, args, expected);
}

static void test_parameters(void)
{
    g_autoptr(FileVM) vm = file_vm_start("source", NULL);
    QDict *params;

    check_parameter(vm, "file-sync", "on");
    check_parameter(vm, "x-direct-io-engine", "auto");

    file_vm_set_bool(vm, "file-sync", false);
    set_string(vm, "x-direct-io-engine", "linux-aio");
    file_vm_set_int(vm, "x-direct-io-depth", 1024);
    check_parameter(vm, "file-sync", "off");
    check_parameter(vm, "x-direct-io-engine", "linux-aio");
    check_parameter(vm, "x-direct-io-depth", "1024");
    /* Setting other parameters does not change them. */
    file_vm_set_int(vm, "multifd-channels", 3);
    params = file_vm_ask(vm, "{ 'execute': 'query-migrate-parameters' }");
    g_assert_false(qdict_get_bool(params, "file-sync"));
    g_assert_cmpstr(qdict_get_str(params, "x-direct-io-engine"), ==,
                    "linux-aio");
    g_assert_cmpint(qdict_get_int(params, "x-direct-io-depth"), ==, 1024);
    qobject_unref(params);

    file_vm_check_hmp(vm, "migrate_set_parameter file-sync on", "");
    file_vm_check_hmp(vm, "migrate_set_parameter x-direct-io-engine sync", "");
    file_vm_check_hmp(vm, "migrate_set_parameter x-direct-io-depth 1", "");
    check_parameter(vm, "file-sync", "on");
    check_parameter(vm, "x-direct-io-engine", "sync");
    check_parameter(vm, "x-direct-io-depth", "1");

    refuse_int(vm, "x-direct-io-depth", 0, "a value between 1 and 1024");
    refuse_int(vm, "x-direct-io-depth", 1025, "a value between 1 and 1024");
    refuse_string(vm, "x-direct-io-engine", "fast", "x-direct-io-engine");
    refuse_int(vm, "file-sync", 0, "file-sync");
    file_vm_check_hmp(vm, "migrate_set_parameter x-direct-io-engine fast",
                      "Error");
    check_parameter(vm, "x-direct-io-engine", "sync");
    check_parameter(vm, "x-direct-io-depth", "1");
}

static void test_properties(void)
{
    g_autoptr(FileVM) vm = file_vm_start(
        "source", "-global migration.file-sync=off "
        "-global migration.x-direct-io-engine=sync "
        "-global migration.x-direct-io-depth=7");

    check_parameter(vm, "file-sync", "off");
    check_parameter(vm, "x-direct-io-engine", "sync");
    check_parameter(vm, "x-direct-io-depth", "7");
}

/* The histogram must count each request once, in rising order. */
static void check_latency(QDict *info)
{
    QList *ranges = qdict_get_qlist(info, "latency");
    const QListEntry *entry;
    int64_t count = 0, below = 0;

    QLIST_FOREACH_ENTRY(ranges, entry) {
        QDict *range = qobject_to(QDict, qlist_entry_obj(entry));

        g_assert_cmpint(qdict_get_int(range, "count"), >, 0);
        g_assert_cmpint(qdict_get_int(range, "from"), >=, below);
        if (qdict_haskey(range, "below")) {
            below = qdict_get_int(range, "below");
            g_assert_cmpint(below, >, qdict_get_int(range, "from"));
        } else {
            below = INT64_MAX;
        }
        count += qdict_get_int(range, "count");
    }
    g_assert_cmpint(count, ==, qdict_get_int(info, "requests"));
    g_assert_cmpint(qdict_get_int(info, "slowest"), <, below);
}

/* Checks the direct-io section after RAM has moved. */
static void check_section(FileVM *vm, const char *engine, int64_t depth,
                          const char *path)
{
    QDict *info = file_vm_direct_io(vm);
    int64_t workers;

    g_assert_true(qdict_get_bool(info, "active"));
    if (!g_str_equal(engine, "auto")) {
        g_assert_cmpstr(qdict_get_str(info, "engine"), ==, engine);
        g_assert_false(qdict_haskey(info, "engine-reason"));
    }
    workers = qdict_get_int(info, "channels");
    g_assert_cmpint(workers, >=, direct.channels);
    /* The workers share the depth that was set. */
    depth = MAX(DIV_ROUND_UP(depth, workers), MIN(depth, 2));
    g_assert_cmpint(qdict_get_int(info, "depth"), ==, depth);
    g_assert_cmpint(qdict_get_int(info, "depth-reached"), >=, 1);
    g_assert_cmpint(qdict_get_int(info, "depth-reached"), <=,
                    g_str_equal(qdict_get_str(info, "engine"), "sync") ?
                    1 : depth);
    g_assert_cmpint(qdict_get_int(info, "requests"), >=, 4);
    g_assert_cmpint(qdict_get_int(info, "slowest-offset"), <, file_size(path));
    g_assert_false(qdict_haskey(info, "phase"));
    check_latency(info);
    qobject_unref(info);
}

static void check_well(FileVM *vm, const FileTarget *target)
{
    set_string(vm, "x-direct-io-engine", "auto");
    file_vm_check_runs(vm);
    file_vm_save(vm, &direct, target);
}

/* Saves and restores with a given engine, if this host has it */
static void test_engine(const void *opaque)
{
    const char *engine = opaque;
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path };
    g_autoptr(FileVM) from = NULL;
    g_autoptr(FileVM) to = NULL;
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autofree char *desc = NULL;

    if (!file_test_direct()) {
        g_test_skip(NO_DIRECT);
        return;
    }
    from = file_vm_start_source();
    file_vm_set_way(from, &direct);
    set_string(from, "x-direct-io-engine", engine);
    file_vm_set_int(from, "x-direct-io-depth", 3);
    file_vm_set_int(from, "downtime-limit", 100000);
    desc = file_vm_try(from, "{ 'execute': 'migrate',"
                       " 'arguments': { 'uri': %s } }", uri);
    if (desc) {
        g_assert_nonnull(strstr(desc, "'x-direct-io-engine'"));
        g_assert_nonnull(strstr(desc, engine));
        check_well(from, &target);
        g_test_skip(desc);
        unlink(path);
        return;
    }
    file_vm_wait(from, "completed");
    check_section(from, engine, 3, path);

    to = file_vm_start_target(NULL);
    set_string(to, "x-direct-io-engine", engine);
    file_vm_set_int(to, "x-direct-io-depth", 5);
    file_vm_restore(to, &direct, &target);
    check_section(to, engine, 5, path);
    file_vm_compare(from, to);
    unlink(path);
}

/* Makes io_uring fail in this process and its children from now on. */
static void forbid_io_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = { .len = ARRAY_SIZE(code), .filter = code };

    g_assert_cmpint(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), ==, 0);
    g_assert_cmpint(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), ==,
                    0);
}

static void without_io_uring(void)
{
    g_autofree char *path = file_test_path("image");
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    FileTarget target = { .path = path };
    g_autoptr(FileVM) vm = NULL;
    g_autofree char *desc = NULL;
    QDict *info;

    forbid_io_uring();
    vm = file_vm_start_source();
    file_vm_save(vm, &direct, &target);
    info = file_vm_direct_io(vm);
    g_assert_cmpstr(qdict_get_str(info, "engine"), !=, "io_uring");
    g_assert_nonnull(strstr(qdict_get_str(info, "engine-reason"),
                            "io_uring: not "));
    qobject_unref(info);
    file_vm_check_hmp(vm, "info migrate", "engine reason: io_uring: not ");
    file_vm_cont(vm);

    /* Refused at once: the guest is not stopped, and the image is not lost. */
    set_string(vm, "x-direct-io-engine", "io_uring");
    desc = file_vm_refuse(vm, "{ 'execute': 'migrate',"
                          " 'arguments': { 'uri': %s } }", uri);
    g_assert_nonnull(strstr(desc, "'x-direct-io-engine'"));
    g_assert_nonnull(strstr(desc, "io_uring"));
    g_assert_nonnull(strstr(desc, path));
    g_assert_cmpuint(file_size(path), >, FILE_VM_RAM);
    check_well(vm, &target);
    unlink(path);
}

/* A sandbox refuses io_uring. */
static void test_sandbox(void)
{
    if (!file_test_direct()) {
        g_test_skip(NO_DIRECT);
    } else if (g_test_subprocess()) {
        without_io_uring();
    } else {
        /* A process can't remove its filter, so use a child. */
        g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_INHERIT_STDERR);
        g_test_trap_assert_passed();
    }
}

/* The member ram of query-migrate, to be unreferenced; NULL if absent. */
static QDict *query_ram(FileVM *vm)
{
    QDict *info = file_vm_ask(vm, "{ 'execute': 'query-migrate' }");
    QDict *ram = qdict_get_qdict(info, "ram");

    if (ram) {
        qobject_ref(ram);
    }
    qobject_unref(info);
    return ram;
}

/* Starts a save that stalls early, and waits until it does. */
static void start_stalled(FileVM *vm, const FileWay *way, const char *path,
                          int64_t *total)
{
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    int64_t seen = -1, now = 0;

    file_vm_set_way(vm, way);
    file_vm_set_int(vm, "downtime-limit", 100000);
    file_vm_set_int(vm, "max-bandwidth", STALLING_BANDWIDTH);
    file_vm_do(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
               uri);
    while (now <= 0 || seen != now) {
        QDict *ram;

        g_usleep(10000);
        ram = query_ram(vm);
        seen = now;
        if (ram) {
            now = qdict_get_int(ram, "normal") +
                  qdict_get_int(ram, "duplicate");
            *total = qdict_get_int(ram, "total");
        }
        qobject_unref(ram);
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    }
}

/* Completes the save without a limit. */
static void finish_stalled(FileVM *vm)
{
    file_vm_set_int(vm, "max-bandwidth", 0);
    file_vm_wait(vm, "completed");
}

static void check_phase(FileVM *vm, const char *expected)
{
    QDict *info = file_vm_direct_io(vm);
    const char *phase = info ? qdict_get_try_str(info, "phase") : NULL;

    g_assert_cmpstr(phase, ==, expected);
    qobject_unref(info);
}

/*
 * Pages that are not written count as remaining, wherever they are queued.  An
 * asynchronous engine updates its figures only with further requests, so this
 * test does not use one.
 */
static void test_figures_during(const void *opaque)
{
    FileWay way = { .mapped = true, .channels = GPOINTER_TO_UINT(opaque) };
    g_autofree char *path = file_test_path("image");
    g_autoptr(FileVM) vm = file_vm_start_source();
    int64_t total = 0, seen = -1;
    gint64 end;

    file_vm_do(vm, "{ 'execute': 'stop' }");
    start_stalled(vm, &way, path, &total);
    check_phase(vm, "ram");
    /*
     * Requests in flight complete, and then nothing happens for long.  Until
     * then the sum may also be too low: a page that a worker has scanned does
     * not remain any more, and the migration thread counts it later.
     */
    end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;
    while (seen != total && g_get_monotonic_time() < end) {
        QDict *ram = query_ram(vm);

        seen = (qdict_get_int(ram, "normal") +
                qdict_get_int(ram, "duplicate")) * FILE_VM_PAGE +
               qdict_get_int(ram, "remaining");
        qobject_unref(ram);
        g_usleep(1000);
    }
    g_assert_cmpint(seen, ==, total);
    finish_stalled(vm);
    check_phase(vm, NULL);
    unlink(path);
}

/* Without mapped-ram there are phases, too. */
static void test_phase_stream(void)
{
    static const FileWay stream = {};
    g_autofree char *path = file_test_path("image");
    g_autoptr(FileVM) vm = file_vm_start_source();
    int64_t total;

    file_vm_do(vm, "{ 'execute': 'stop' }");
    check_phase(vm, NULL);
    start_stalled(vm, &stream, path, &total);
    check_phase(vm, "stream");
    finish_stalled(vm);
    check_phase(vm, NULL);
    unlink(path);
}

/* Counts the zero pages of guest RAM, and all pages */
static int64_t count_zero(FileVM *vm, int64_t *pages)
{
    static const uint8_t zero[FILE_VM_PAGE];
    g_autofree uint8_t *page = g_malloc(FILE_VM_PAGE);
    int64_t count = 0;

    for (uint64_t addr = 0; addr < FILE_VM_RAM; addr += FILE_VM_PAGE) {
        /* Not RAM, but the memory of a graphics card that is absent */
        if (addr >= 0xa0000 && addr < 0xc0000) {
            continue;
        }
        qtest_memread(vm->qts, addr, page, FILE_VM_PAGE);
        count += memcmp(page, zero, FILE_VM_PAGE) == 0;
        (*pages)++;
    }
    return count;
}

/* The figures after saving a paused guest, whose RAM is known */
static void test_figures_after(void)
{
    FileWay way = { .mapped = true, .channels = 4,
                    .direct = file_test_direct() };
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path };
    g_autoptr(FileVM) vm = file_vm_start_source();
    int64_t pages = 0, zero, written, other;
    QDict *ram, *info;

    file_vm_do(vm, "{ 'execute': 'stop' }");
    zero = count_zero(vm, &pages);
    file_vm_save(vm, &way, &target);
    ram = query_ram(vm);
    info = file_vm_direct_io(vm);

    /* Firmware and other blocks are RAM, too. */
    other = qdict_get_int(ram, "total") / FILE_VM_PAGE - pages;
    g_assert_cmpint(other, >=, 0);
    g_assert_cmpint(other, <, 2 * MiB / FILE_VM_PAGE);
    g_assert_cmpint(qdict_get_int(ram, "duplicate") +
                    qdict_get_int(ram, "normal"), ==, pages + other);
    g_assert_cmpint(qdict_get_int(ram, "duplicate"), >=, zero);
    g_assert_cmpint(qdict_get_int(ram, "duplicate"), <=, zero + other);
    g_assert_cmpint(qdict_get_int(ram, "normal-bytes"), ==,
                    qdict_get_int(ram, "normal") * FILE_VM_PAGE);
    g_assert_cmpint(qdict_get_int(ram, "remaining"), ==, 0);
    g_assert_cmpint(qdict_get_int(ram, "dirty-sync-count"), >=, 2);
    g_assert_cmpint(qdict_get_int(ram, "pages-per-second"), >, 0);
    g_assert_cmpfloat(qdict_get_double(ram, "mbps"), >, 0);
    /* All written bytes count, including gaps between pages. */
    written = qdict_get_int(info, "direct-bytes") +
              qdict_get_int(info, "buffered-bytes");
    g_assert_cmpint(qdict_get_int(ram, "transferred"), >=, written);
    g_assert_cmpint(qdict_get_int(ram, "transferred"), <=,
                    written + 1 * MiB);
    g_assert_cmpint(written, >, qdict_get_int(ram, "normal-bytes"));
    qobject_unref(ram);
    qobject_unref(info);
    unlink(path);
}

/* The duration of the migration in milliseconds, as reported by QEMU */
static int64_t query_time(FileVM *vm)
{
    QDict *info = file_vm_ask(vm, "{ 'execute': 'query-migrate' }");
    int64_t ms = qdict_get_try_int(info, "total-time", 0);

    qobject_unref(info);
    return ms;
}

/*
 * No more is sent than the bandwidth allows in the time that QEMU reports,
 * however long that is.  At the low rate one extent is more than a period's
 * share.
 */
static void test_bandwidth(const void *opaque)
{
    int64_t rate = GPOINTER_TO_UINT(opaque);
    FileWay way = { .mapped = true, .channels = 8,
                    .direct = file_test_direct() };
    g_autofree char *path = file_test_path("image");
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autoptr(FileVM) vm = file_vm_start_source();
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;
    int64_t ms = 0, sent;
    QDict *ram;

    file_vm_do(vm, "{ 'execute': 'stop' }");
    file_vm_set_way(vm, &way);
    file_vm_set_int(vm, "max-bandwidth", rate);
    file_vm_do(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
               uri);
    /* Read this first, since it grows with the time. */
    do {
        g_usleep(10000);
        ram = query_ram(vm);
        sent = ram ? qdict_get_int(ram, "transferred") : 0;
        qobject_unref(ram);
        ms = query_time(vm);
        g_assert_cmpint(sent, <=, rate * (ms + 100) / 1000 +
                        MAX(rate / 10 / 8, LEAST_EXTENT) + HEADERS);
        /* The time does not grow any more if the save has ended. */
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    } while (ms < 1500);
    finish_stalled(vm);
    unlink(path);
}

static void test_hmp(void)
{
    static const char *const lines[] = {
        "direct-io: active, alignment ", "direct-io engine: ",
        " workers, depth ", ", reached ", " kbytes direct, ",
        " requests, 0 short, ", "direct-io slowest request: ",
        " us at offset ", "direct-io latency: ", " us: ",
    };
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path };
    g_autoptr(FileVM) from = NULL;
    g_autoptr(FileVM) to = NULL;

    if (!file_test_direct()) {
        g_test_skip(NO_DIRECT);
        return;
    }
    from = file_vm_start_source();
    file_vm_save(from, &direct, &target);
    to = file_vm_start_target(NULL);
    file_vm_restore(to, &direct, &target);
    for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
        file_vm_check_hmp(from, "info migrate", lines[i]);
        file_vm_check_hmp(to, "info migrate", lines[i]);
    }
    file_vm_check_hmp(to, "info migrate", "direct-io loaded: ");
    unlink(path);
}

/* After a restore all of RAM is loaded, however much of it was zero. */
static void test_loaded(const void *opaque)
{
    FileWay way = { .mapped = true, .channels = GPOINTER_TO_UINT(opaque),
                    .direct = file_test_direct() };
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path };
    g_autoptr(FileVM) from = file_vm_start_source();
    g_autoptr(FileVM) to = file_vm_start_target(NULL);
    QDict *info, *ram;

    file_vm_save(from, &way, &target);
    info = file_vm_direct_io(from);
    g_assert_false(qdict_haskey(info, "load-total"));
    qobject_unref(info);

    file_vm_restore(to, &way, &target);
    ram = query_ram(from);
    info = file_vm_direct_io(to);
    g_assert_cmpint(qdict_get_int(info, "load-total"), ==,
                    qdict_get_int(ram, "total"));
    g_assert_cmpint(qdict_get_int(info, "load-done"), ==,
                    qdict_get_int(ram, "total"));
    g_assert_false(qdict_haskey(info, "phase"));
    qobject_unref(info);
    qobject_unref(ram);
    unlink(path);
}

void file_status_add(void)
{
    static const char *const engines[] = {
        "auto", "io_uring", "linux-aio", "sync",
    };

    qtest_add_func("migration-file/parameters", test_parameters);
    qtest_add_func("migration-file/properties", test_properties);
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        g_autofree char *name = g_strdup_printf("migration-file/engine/%s",
                                                engines[i]);

        qtest_add_data_func(name, engines[i], test_engine);
    }
    qtest_add_func("migration-file/engine/sandbox", test_sandbox);
    qtest_add_data_func("migration-file/figures/during/mapped", NULL,
                        test_figures_during);
    qtest_add_data_func("migration-file/figures/during/multifd",
                        GUINT_TO_POINTER(4), test_figures_during);
    qtest_add_func("migration-file/figures/after", test_figures_after);
    qtest_add_func("migration-file/phase/stream", test_phase_stream);
    qtest_add_data_func("migration-file/bandwidth/low",
                        GUINT_TO_POINTER(1 * MiB), test_bandwidth);
    qtest_add_data_func("migration-file/bandwidth/high",
                        GUINT_TO_POINTER(10 * MiB), test_bandwidth);
    qtest_add_func("migration-file/hmp", test_hmp);
    qtest_add_data_func("migration-file/loaded/mapped", NULL, test_loaded);
    qtest_add_data_func("migration-file/loaded/multifd", GUINT_TO_POINTER(4),
                        test_loaded);
}
