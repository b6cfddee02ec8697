/*
 * Tests of early syncs, before a live save stops the guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "../../migration/file-early-sync.h"
#include "../../migration/file-transport.h"
#include "../../migration/options.h"

/* 1 GB/s, and a guest that may be stopped for 300 ms */
#define DOWNTIME_MS 300
#define THRESHOLD (300ULL * 1000 * 1000)

/* Stubs for the code under test. */

bool file_transport_sync_early(Error **errp)
{
    return true;
}

const char *file_transport_name(void)
{
    return "file";
}

static bool wanted(const FileEarlySync *e, uint64_t written, uint64_t pending)
{
    return file_early_sync_wanted(e, written, pending, THRESHOLD, DOWNTIME_MS);
}

static void test_first(void)
{
    FileEarlySync e = {};

    /* With no figures of the disk yet: always, if anything is written */
    g_assert_false(wanted(&e, 0, 0));
    g_assert_true(wanted(&e, 4096, 0));
    g_assert_true(wanted(&e, GiB, 0));
}

static void test_rest(void)
{
    /* 1 GB took 10 s: 100 MB/s, of which 30 MB fit into the downtime */
    FileEarlySync e = {
        .synced = 1000 * 1000 * 1000,
        .bytes = 1000 * 1000 * 1000,
        .us = 10 * 1000 * 1000,
        .waits = 1,
    };

    g_assert_false(wanted(&e, e.synced, 0));
    g_assert_false(wanted(&e, e.synced + 29 * 1000 * 1000, 0));
    g_assert_true(wanted(&e, e.synced + 31 * 1000 * 1000, 0));
    /* Pending data is written, which takes time by itself, and synced */
    g_assert_false(wanted(&e, e.synced + 1, 27 * 1000 * 1000));
    g_assert_true(wanted(&e, e.synced + 1, 28 * 1000 * 1000));
}

/* A save ends even on a disk that is always too slow. */
static void test_limit(void)
{
    FileEarlySync e = { .synced = MiB, .bytes = MiB, .us = 1000 * 1000 };

    e.waits = FILE_EARLY_SYNC_MAX - 1;
    g_assert_true(wanted(&e, 2 * MiB, 0));
    e.waits = FILE_EARLY_SYNC_MAX;
    g_assert_false(wanted(&e, 2 * MiB, 0));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/file-early-sync/first", test_first);
    g_test_add_func("/file-early-sync/rest", test_rest);
    g_test_add_func("/file-early-sync/limit", test_limit);
    return g_test_run();
}
