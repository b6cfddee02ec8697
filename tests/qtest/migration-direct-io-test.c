/*
 * Saving guests to files, and restoring them: mapped-ram, multifd, direct-io
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * This file tests what must work; migration-file-faults.c tests what must fail,
 * and how, and migration-file-status.c what QEMU reports.  With -m slow all
 * combinations are tested, otherwise a selection in which every two settings
 * are combined at least once.
 *
 * QDIO_TEST_DIR is the directory for the files, to test other file systems.
 */

#include "qemu/osdep.h"
#include "migration-file-faults.h"
#include "migration-file-helpers.h"
#include "migration-file-status.h"
#include "qobject/qlist.h"

/* The settings that are combined, and how many values each has */
enum { SAVE_WAY, RESTORE_WAY, SAVE_DIRECT, RESTORE_DIRECT, OFFSET, LIVE, FDSET,
       N_SETTINGS };
static const unsigned n_values[N_SETTINGS] = { 6, 6, 2, 2, 3, 2, 2 };
#define MAX_VALUES 6

/* Values of SAVE_WAY and RESTORE_WAY */
static const struct {
    const char *name;
    bool mapped;
    unsigned channels;
} ways[] = {
    { "stream", false, 0 },
    { "mapped", true, 0 },
    { "1", true, 1 },
    { "2", true, 2 },
    { "4", true, 4 },
    { "8", true, 8 },
};

/*
 * With this bandwidth the first pass over RAM takes longer than 100 ms; QEMU
 * needs a bandwidth measured over that time to start a second pass.
 */
#define LIVE_BANDWIDTH (100 * MiB)

/* Values of OFFSET */
static const uint64_t offsets[] = { 0, 12345, 1 * MiB };

typedef struct Combination {
    unsigned value[N_SETTINGS];
} Combination;

static FileWay way_of(const Combination *c, bool save)
{
    unsigned way = c->value[save ? SAVE_WAY : RESTORE_WAY];

    return (FileWay) {
        .mapped = ways[way].mapped,
        .channels = ways[way].channels,
        .direct = c->value[save ? SAVE_DIRECT : RESTORE_DIRECT],
    };
}

static bool is_direct(const FileWay *way)
{
    return way->mapped && way->channels && way->direct;
}

/* Checks what query-migrate reports after RAM has moved as @way says. */
static void check_direct_io(FileVM *vm, const FileWay *way)
{
    QDict *info = file_vm_direct_io(vm);
    int64_t direct, buffered;

    if (!way->mapped && !way->direct) {
        g_assert_null(info);
        return;
    }
    g_assert_nonnull(info);
    g_assert_cmpint(qdict_get_bool(info, "active"), ==, is_direct(way));
    if (is_direct(way)) {
        int64_t align = qdict_get_int(info, "alignment");

        g_assert_false(qdict_haskey(info, "reason"));
        g_assert_cmpint(align, >=, 512);
        g_assert_cmpint(align & (align - 1), ==, 0);
    } else {
        g_assert_false(qdict_haskey(info, "alignment"));
        g_assert_nonnull(strstr(qdict_get_str(info, "reason"),
                                !way->direct ? "'direct-io' is off" :
                                !way->mapped ? "'mapped-ram' is off" :
                                "'multifd' is off"));
    }
    direct = qdict_get_int(info, "direct-bytes");
    buffered = qdict_get_int(info, "buffered-bytes");
    if (way->mapped) {
        g_assert_cmpint(qdict_get_int(info, "channels"), >=,
                        MAX(way->channels, 1));
        g_assert_cmpstr(qdict_get_str(info, "engine"), !=, "");
        g_assert_cmpint(is_direct(way) ? direct : buffered, >, 0);
        g_assert_cmpint(is_direct(way) ? buffered : direct, ==, 0);
        g_assert_cmpint(qdict_get_int(info, "requests"), >, 0);
    } else {
        g_assert_false(qdict_haskey(info, "engine"));
        g_assert_cmpint(direct + buffered, ==, 0);
    }
    qobject_unref(info);
}

/* Writes data in front of the image that must be kept, and an old image. */
static void put_old(const char *path, uint64_t offset)
{
    uint64_t size = offset + FILE_VM_RUN;
    g_autofree char *old = g_malloc(size);

    memset(old, 0x5a, size);
    g_assert_true(g_file_set_contents(path, old, size, NULL));
    /* Longer than the new image will be */
    g_assert_cmpint(truncate(path, offset + 4 * FILE_VM_RAM), ==, 0);
}

/*
 * Checks that data in front of the image is still there, and the rest of the
 * old image is not.  Pages of a mapped-ram image have fixed offsets, and those
 * of a paused guest are written once; the stream of a live guest has no bound.
 */
static void check_old(const char *path, uint64_t offset, bool bounded)
{
    g_autofree char *old = g_malloc(offset + 1);
    int fd = open(path, O_RDONLY);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(read(fd, old, offset), ==, offset);
    for (uint64_t i = 0; i < offset; i++) {
        g_assert_cmpint(old[i], ==, 0x5a);
    }
    close(fd);
    if (bounded) {
        g_assert_cmpuint(file_size(path), <, offset + 4 * FILE_VM_RAM);
    }
}

/* Saves while the guest changes its memory, and more than once. */
static void save_live(FileVM *vm, const FileWay *way, const FileTarget *target)
{
    g_autofree char *uri = file_vm_uri(vm, target, way->direct, true);

    file_vm_set_way(vm, way);
    file_vm_set_int(vm, "downtime-limit", 1);
    file_vm_set_int(vm, "max-bandwidth", LIVE_BANDWIDTH);
    file_vm_do(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
               uri);
    file_vm_wait_syncs(vm, 3);
    file_vm_set_int(vm, "downtime-limit", 100000);
    file_vm_set_int(vm, "max-bandwidth", 0);
    file_vm_wait(vm, "completed");
}

static void test_combination(const void *opaque)
{
    const Combination *c = opaque;
    g_autofree char *path = file_test_path("image");
    FileWay save = way_of(c, true), restore = way_of(c, false);
    FileTarget target = {
        .path = path,
        .offset = offsets[c->value[OFFSET]],
        .fdset = c->value[FDSET],
    };
    g_autoptr(FileVM) from = NULL;
    g_autoptr(FileVM) to = NULL;

    if ((save.direct || restore.direct) && !file_test_direct()) {
        g_test_skip("no O_DIRECT here; set QDIO_TEST_DIR to try elsewhere");
        return;
    }
    put_old(path, target.offset);

    from = file_vm_start_source();
    if (c->value[LIVE]) {
        save_live(from, &save, &target);
    } else {
        file_vm_do(from, "{ 'execute': 'stop' }");
        file_vm_save(from, &save, &target);
    }
    check_old(path, target.offset, save.mapped || !c->value[LIVE]);
    check_direct_io(from, &save);

    to = file_vm_start_target(NULL);
    /* The old content of RAM must be overwritten. */
    qtest_memset(to->qts, FILE_VM_BUSY_START, 0xa5,
                 FILE_VM_RAM - FILE_VM_BUSY_START);
    file_vm_restore(to, &restore, &target);
    check_direct_io(to, &restore);

    file_vm_compare(from, to);
    file_vm_cont(to);
    /* The saved guest is unharmed, too. */
    file_vm_cont(from);
    unlink(path);
}

/* A stream can't be restored as mapped-ram, nor the reverse. */
static bool is_possible(const Combination *c)
{
    return ways[c->value[SAVE_WAY]].mapped ==
           ways[c->value[RESTORE_WAY]].mapped;
}

/* Advances to the next combination; returns false after the last. */
static bool next_combination(Combination *c)
{
    for (unsigned i = 0; i < N_SETTINGS; i++) {
        if (++c->value[i] < n_values[i]) {
            return true;
        }
        c->value[i] = 0;
    }
    return false;
}

static void add_combination(const Combination *c)
{
    const unsigned *v = c->value;
    g_autofree char *name = g_strdup_printf(
        "migration-file/save/%s-%s:%s-%s:offset-%" PRIu64 ":%s:%s",
        ways[v[SAVE_WAY]].name, ways[v[RESTORE_WAY]].name,
        v[SAVE_DIRECT] ? "direct" : "buffered",
        v[RESTORE_DIRECT] ? "direct" : "buffered", offsets[v[OFFSET]],
        v[LIVE] ? "live" : "paused", v[FDSET] ? "fdset" : "path");

    qtest_add_data_func_full(name, g_memdup2(c, sizeof(*c)), test_combination,
                             g_free);
}

/* Which pairs of values of two settings have been selected already */
typedef bool Pairs[N_SETTINGS][MAX_VALUES][N_SETTINGS][MAX_VALUES];

/* Counts the new pairs of @c; with @mark, they are no longer new. */
static unsigned new_pairs(Pairs seen, const Combination *c, bool mark)
{
    unsigned count = 0;

    for (unsigned i = 0; i < N_SETTINGS; i++) {
        for (unsigned j = 0; j < i; j++) {
            bool *pair = &seen[i][c->value[i]][j][c->value[j]];

            count += !*pair;
            *pair |= mark;
        }
    }
    return count;
}

/*
 * Repeatedly selects a combination with the most new pairs, until there are
 * none.  Ties are broken at random, so that the other settings vary, but with
 * a fixed seed.
 */
static void add_choice(void)
{
    static Pairs seen;
    GRand *chance = g_rand_new_with_seed(1);
    unsigned most, equal;

    do {
        Combination c = {}, best = {};

        most = equal = 0;
        do {
            unsigned count = is_possible(&c) ? new_pairs(seen, &c, false) : 0;

            if (count > most) {
                most = count;
                equal = 0;
            }
            if (count == most && g_rand_int_range(chance, 0, ++equal) == 0) {
                best = c;
            }
        } while (next_combination(&c));
        if (most) {
            new_pairs(seen, &best, true);
            add_combination(&best);
        }
    } while (most);
    g_rand_free(chance);
}

static void add_all(void)
{
    Combination c = {};

    do {
        if (is_possible(&c)) {
            add_combination(&c);
        }
    } while (next_combination(&c));
}

static int64_t query_ram(FileVM *vm, const char *key)
{
    QDict *info = file_vm_ask(vm, "{ 'execute': 'query-migrate' }");
    int64_t value = qdict_get_int(qdict_get_qdict(info, "ram"), key);

    qobject_unref(info);
    return value;
}

/*
 * All of RAM must bypass the page cache, and query-migrate must count what was
 * written.
 */
static void test_past_cache(void)
{
    FileWay way = { .mapped = true, .channels = 2, .direct = true };
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path };
    g_autoptr(FileVM) from = NULL;
    g_autoptr(FileVM) to = NULL;
    int64_t normal, direct;
    QDict *info;

    if (!file_test_direct()) {
        g_test_skip("no O_DIRECT here; set QDIO_TEST_DIR to try elsewhere");
        return;
    }
    from = file_vm_start_source();
    file_vm_do(from, "{ 'execute': 'stop' }");
    file_vm_save(from, &way, &target);

    normal = query_ram(from, "normal-bytes");
    info = file_vm_direct_io(from);
    direct = qdict_get_int(info, "direct-bytes");
    qobject_unref(info);
    g_assert_cmpint(normal, >, FILE_VM_SCATTERED - FILE_VM_RUN);
    /* Short gaps of zero pages are written, too. */
    g_assert_cmpint(direct, >=, normal);
    g_assert_cmpint(direct, <=, normal + 2 * MiB);
    g_assert_cmpint(direct + query_ram(from, "duplicate") * FILE_VM_PAGE, >=,
                    FILE_VM_RAM);

    if (file_test_in_ram()) {
        g_test_skip("this file system is itself a page cache");
        return;
    }
    g_assert_cmpuint(file_cached(path), <, 1 * MiB);

    file_uncache(path);
    to = file_vm_start_target(NULL);
    file_vm_restore(to, &way, &target);
    file_vm_compare(from, to);
    /* The stream is read through the cache, with some read-ahead. */
    g_assert_cmpuint(file_cached(path), <, 2 * MiB);
    unlink(path);
}

/* Waits until RAM is being written. */
static void wait_writing(FileVM *vm)
{
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;
    int64_t written = 0;

    while (written < 1 * MiB) {
        QDict *info;

        g_usleep(1000);
        info = file_vm_direct_io(vm);
        if (info) {
            written = qdict_get_int(info, "direct-bytes") +
                      qdict_get_int(info, "buffered-bytes");
        }
        qobject_unref(info);
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    }
}

static void test_descriptors(const void *opaque)
{
    bool fdset = opaque != NULL;
    FileWay way = { .mapped = true, .channels = 4, .direct = true };
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path, .fdset = fdset };
    g_autoptr(FileVM) vm = NULL;
    g_autofree char *uri = NULL;
    unsigned before, all, direct;

    if (!file_test_direct()) {
        g_test_skip("no O_DIRECT here; set QDIO_TEST_DIR to try elsewhere");
        return;
    }
    vm = file_vm_start_source();
    before = file_vm_count_fds(vm, NULL, NULL);
    uri = file_vm_uri(vm, &target, true, true);
    file_vm_set_way(vm, &way);
    file_vm_set_int(vm, "max-bandwidth", 20 * MiB);
    file_vm_do(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
               uri);
    wait_writing(vm);

    /*
     * One descriptor with O_DIRECT, one to be closed at the end to detect late
     * errors, and with a set the one in the set that they are duplicates of
     */
    all = file_vm_count_fds(vm, path, &direct);
    g_assert_cmpuint(direct, ==, fdset ? 3 : 2);
    g_assert_cmpuint(all, >=, 2 * direct);

    file_vm_set_int(vm, "downtime-limit", 100000);
    file_vm_set_int(vm, "max-bandwidth", 0);
    file_vm_wait(vm, "completed");
    check_direct_io(vm, &way);

    /* The only descriptors left are those in the set, unchanged. */
    if (fdset) {
        file_vm_cont(vm);
        file_vm_wait_fds(vm, path, 2);
        file_vm_count_fds(vm, path, &direct);
        g_assert_cmpuint(direct, ==, 1);
        file_vm_do(vm, "{ 'execute': 'remove-fd',"
                   " 'arguments': { 'fdset-id': 1 } }");
    }
    file_vm_wait_fds(vm, path, 0);
    file_vm_wait_fds(vm, NULL, before);
    unlink(path);
}

/* The set may hold an O_DIRECT descriptor that is not wanted. */
static void test_fdset_unused_direct(void)
{
    FileWay way = { .mapped = true, .channels = 2 };
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path, .fdset = true };
    g_autoptr(FileVM) vm = NULL;
    g_autoptr(FileVM) to = NULL;
    g_autofree char *uri = NULL;

    if (!file_test_direct()) {
        g_test_skip("no O_DIRECT here; set QDIO_TEST_DIR to try elsewhere");
        return;
    }
    vm = file_vm_start_source();
    uri = file_vm_uri(vm, &target, true, true);
    file_vm_set_way(vm, &way);
    file_vm_set_int(vm, "downtime-limit", 100000);
    file_vm_do(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
               uri);
    file_vm_wait(vm, "completed");
    check_direct_io(vm, &way);
    to = file_vm_start_target(NULL);
    file_vm_restore(to, &way, &target);
    file_vm_compare(vm, to);
    unlink(path);
}

/* RAM of the destination is a file with other contents. */
static void test_old_content(const void *opaque)
{
    FileWay way = { .mapped = true, .channels = 2, .direct = opaque != NULL };
    g_autofree char *path = file_test_path("image");
    g_autofree char *ram = file_test_path("old.ram");
    g_autofree char *args = NULL;
    g_autofree char *old = g_malloc(FILE_VM_RAM);
    FileTarget target = { .path = path };
    g_autoptr(FileVM) from = NULL;
    g_autoptr(FileVM) to = NULL;

    if (way.direct && !file_test_direct()) {
        g_test_skip("no O_DIRECT here; set QDIO_TEST_DIR to try elsewhere");
        return;
    }
    memset(old, 0xa5, FILE_VM_RAM);
    g_assert_true(g_file_set_contents(ram, old, FILE_VM_RAM, NULL));

    from = file_vm_start_source();
    file_vm_do(from, "{ 'execute': 'stop' }");
    file_vm_save(from, &way, &target);

    args = g_strdup_printf("-object memory-backend-file,id=pc.ram,size=%dM,"
                           "mem-path=%s,share=on -machine memory-backend="
                           "pc.ram", (int)(FILE_VM_RAM / MiB), ram);
    to = file_vm_start_target(args);
    g_assert_cmphex(qtest_readq(to->qts, FILE_VM_ZERO), ==,
                    0xa5a5a5a5a5a5a5a5ULL);
    file_vm_restore(to, &way, &target);
    g_assert_cmphex(qtest_readq(to->qts, FILE_VM_ZERO), ==, 0);
    file_vm_compare(from, to);
    unlink(path);
    unlink(ram);
}

/* The command line of the destination has the URI. */
static void test_incoming_option(void)
{
    FileWay way = { .mapped = true, .channels = 2,
                    .direct = file_test_direct() };
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path, .offset = 1 * MiB };
    g_autofree char *args = g_strdup_printf(
        "-global migration." FILE_BASE_MAPPED_RAM_PROPERTY "=on "
        "-global migration.x-multifd=on "
        "-global migration.direct-io=%s -incoming file:%s,offset=1M",
        way.direct ? "on" : "off", path);
    g_autoptr(FileVM) from = file_vm_start_source();
    g_autoptr(FileVM) to = NULL;

    file_vm_save(from, &way, &target);
    to = file_vm_start("target", args);
    file_vm_wait(to, "completed");
    check_direct_io(to, &way);
    file_vm_compare(from, to);
    file_vm_cont(to);
    unlink(path);
}

/* mapped-ram also works with files whose descriptors are passed as "fd:". */
static void test_fd(const void *opaque)
{
    FileWay way = { .mapped = true, .channels = GPOINTER_TO_UINT(opaque) };
    g_autofree char *path = file_test_path("image");
    g_autoptr(FileVM) from = file_vm_start_source();
    g_autoptr(FileVM) to = file_vm_start_target(NULL);

    file_vm_set_way(from, &way);
    file_vm_set_int(from, "downtime-limit", 100000);
    file_vm_pass_fd(from, "image", open(path, O_WRONLY | O_CREAT, 0600));
    file_vm_do(from, "{ 'execute': 'migrate',"
               " 'arguments': { 'uri': 'fd:image' } }");
    file_vm_wait(from, "completed");
    check_direct_io(from, &way);

    file_vm_set_way(to, &way);
    file_vm_pass_fd(to, "image", open(path, O_RDONLY));
    file_vm_do(to, "{ 'execute': 'migrate-incoming',"
               " 'arguments': { 'uri': 'fd:image' } }");
    file_vm_wait(to, "completed");
    file_vm_compare(from, to);
    file_vm_cont(to);
    unlink(path);
}

/* Pages change from data to zero, and vice versa, after they were saved. */
static void test_zero_later(const void *opaque)
{
    FileWay way = { .mapped = true, .channels = GPOINTER_TO_UINT(opaque),
                    .direct = file_test_direct() };
    g_autofree char *path = file_test_path("image");
    g_autofree char *uri = NULL;
    FileTarget target = { .path = path };
    g_autoptr(FileVM) from = NULL;
    g_autoptr(FileVM) to = NULL;

    from = file_vm_start_source();
    file_vm_set_way(from, &way);
    file_vm_set_int(from, "downtime-limit", 1);
    file_vm_set_int(from, "max-bandwidth", LIVE_BANDWIDTH);
    uri = file_vm_uri(from, &target, way.direct, true);
    file_vm_do(from, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
               uri);
    /* When the third begins, each page has been written at least once. */
    file_vm_wait_syncs(from, 3);
    qtest_memset(from->qts, FILE_VM_RUN, 0, 2 * MiB);
    for (unsigned i = 0; i < 100; i++) {
        qtest_memset(from->qts, FILE_VM_SCATTERED + i * 9 * FILE_VM_PAGE, 0,
                     FILE_VM_PAGE);
    }
    qtest_memset(from->qts, FILE_VM_ZERO, 0x77, 2 * MiB);
    file_vm_set_int(from, "downtime-limit", 100000);
    file_vm_set_int(from, "max-bandwidth", 0);
    file_vm_wait(from, "completed");

    to = file_vm_start_target(NULL);
    qtest_memset(to->qts, FILE_VM_RUN, 0xa5, FILE_VM_RAM - FILE_VM_RUN);
    file_vm_restore(to, &way, &target);
    g_assert_cmphex(qtest_readq(to->qts, FILE_VM_RUN + 8), ==, 0);
    g_assert_cmphex(qtest_readb(to->qts, FILE_VM_ZERO), ==, 0x77);
    file_vm_compare(from, to);
    unlink(path);
}

static bool get_cap(FileVM *vm, const char *name)
{
    QDict *response = qtest_qmp(vm->qts, "{ 'execute':"
                                " 'query-migrate-capabilities' }");
    QList *caps = qdict_get_qlist(response, "return");
    const QListEntry *entry;
    int found = -1;

    QLIST_FOREACH_ENTRY(caps, entry) {
        QDict *cap = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(cap, "capability"), name)) {
            found = qdict_get_bool(cap, "state");
        }
    }
    qobject_unref(response);
    g_assert_cmpint(found, >=, 0);
    return found;
}

static bool get_direct_io(FileVM *vm)
{
    QDict *params = file_vm_ask(vm, "{ 'execute':"
                                " 'query-migrate-parameters' }");
    bool value = qdict_get_bool(params, "direct-io");

    qobject_unref(params);
    return value;
}

static void test_round_trips(void)
{
    g_autoptr(FileVM) vm = file_vm_start("source", NULL);
    g_autofree char *desc = NULL;

    g_assert_false(get_cap(vm, "mapped-ram"));
    file_vm_set_cap(vm, "mapped-ram", true);
    g_assert_true(get_cap(vm, "mapped-ram"));
    g_assert_false(get_cap(vm, "multifd"));
    file_vm_set_cap(vm, "mapped-ram", false);
    g_assert_false(get_cap(vm, "mapped-ram"));

    g_assert_false(get_direct_io(vm));
    file_vm_check_hmp(vm, "info migrate_parameters", "direct-io: off");
    file_vm_set_bool(vm, "direct-io", true);
    g_assert_true(get_direct_io(vm));
    file_vm_check_hmp(vm, "info migrate_parameters", "direct-io: on");
    /* Setting other parameters does not change it. */
    file_vm_set_int(vm, "multifd-channels", 3);
    g_assert_true(get_direct_io(vm));
    file_vm_set_bool(vm, "direct-io", false);
    g_assert_false(get_direct_io(vm));

    file_vm_check_hmp(vm, "migrate_set_parameter direct-io on", "");
    g_assert_true(get_direct_io(vm));
    file_vm_check_hmp(vm, "migrate_set_parameter direct-io off", "");
    g_assert_false(get_direct_io(vm));
    file_vm_check_hmp(vm, "migrate_set_parameter direct-io maybe", "Error");
    file_vm_check_hmp(vm, "migrate_set_capability mapped-ram on", "");
    g_assert_true(get_cap(vm, "mapped-ram"));
    file_vm_check_hmp(vm, "info migrate_capabilities", "mapped-ram: on");

    desc = file_vm_refuse(vm, "{ 'execute': 'migrate-set-parameters',"
                          " 'arguments': { 'direct-io': 1 } }");
    g_assert_nonnull(strstr(desc, "direct-io"));
    g_assert_false(get_direct_io(vm));
}

static void test_globals(void)
{
    g_autoptr(FileVM) vm = file_vm_start("source", "-global "
                                         "migration.direct-io=on -global "
                                         "migration."
                                         FILE_BASE_MAPPED_RAM_PROPERTY "=on");

    g_assert_true(get_direct_io(vm));
    g_assert_true(get_cap(vm, "mapped-ram"));
}

/* What users and programs are told about each way to save */
static void test_tells(void)
{
    static const FileWay tell[] = {
        { .mapped = false, .channels = 0, .direct = false },
        { .mapped = false, .channels = 0, .direct = true },
        { .mapped = true, .channels = 0, .direct = true },
        { .mapped = true, .channels = 2, .direct = false },
        { .mapped = true, .channels = 2, .direct = true },
    };
    g_autofree char *path = file_test_path("image");
    FileTarget target = { .path = path };
    g_autoptr(FileVM) vm = file_vm_start_source();

    for (unsigned i = 0; i < G_N_ELEMENTS(tell); i++) {
        g_autofree char *log = NULL;

        if (is_direct(&tell[i]) && !file_test_direct()) {
            g_test_message("no O_DIRECT here: one way not tried");
            continue;
        }
        file_vm_save(vm, &tell[i], &target);
        check_direct_io(vm, &tell[i]);
        log = file_vm_log(vm);
        g_assert_cmpint(strstr(log, "direct-io has no effect") != NULL, ==,
                        i > 0);
        if (is_direct(&tell[i])) {
            file_vm_check_hmp(vm, "info migrate",
                              "direct-io: active, alignment ");
            file_vm_check_hmp(vm, "info migrate",
                              " kbytes direct, 0 kbytes buffered");
        } else if (tell[i].mapped || tell[i].direct) {
            file_vm_check_hmp(vm, "info migrate",
                              "direct-io: inactive, because ");
        }
        file_vm_cont(vm);
    }
    file_vm_check_runs(vm);
    unlink(path);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);
    file_test_init();

    qtest_add_func("migration-file/round-trips", test_round_trips);
    qtest_add_func("migration-file/globals", test_globals);
    qtest_add_func("migration-file/tells", test_tells);
    qtest_add_func("migration-file/past-cache", test_past_cache);
    qtest_add_data_func("migration-file/descriptors/path", NULL,
                        test_descriptors);
    qtest_add_data_func("migration-file/descriptors/fdset", "fdset",
                        test_descriptors);
    qtest_add_func("migration-file/fdset-unused-direct",
                   test_fdset_unused_direct);
    qtest_add_func("migration-file/incoming-option", test_incoming_option);
    qtest_add_data_func("migration-file/fd/mapped", NULL, test_fd);
    qtest_add_data_func("migration-file/fd/multifd", GUINT_TO_POINTER(2),
                        test_fd);
    qtest_add_data_func("migration-file/old-content/buffered", NULL,
                        test_old_content);
    qtest_add_data_func("migration-file/old-content/direct", "direct",
                        test_old_content);
    qtest_add_data_func("migration-file/zero-later/mapped", NULL,
                        test_zero_later);
    qtest_add_data_func("migration-file/zero-later/multifd",
                        GUINT_TO_POINTER(4), test_zero_later);
    file_faults_add();
    file_status_add();
    if (g_test_slow()) {
        add_all();
    } else {
        add_choice();
    }

    ret = g_test_run();
    file_test_cleanup();
    return ret;
}
