/*
 * Bytes transferred by a QEMUFile, and its limit, for tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * In this version all files share the counts of the migration.
 */

#ifndef TESTS_QEMUFILE_STATS_H
#define TESTS_QEMUFILE_STATS_H

#include "../migration/migration-stats.h"
#include "../migration/qemu-file.h"

static inline void test_reset_transferred(void)
{
    stat64_set(&mig_stats.qemu_file_transferred, 0);
}

/* Bytes written to @f since test_reset_transferred() */
static inline uint64_t test_transferred(QEMUFile *f)
{
    return qemu_file_transferred(f);
}

/* Limits @f to @bytes, counted from here on */
static inline void test_set_limit(QEMUFile *f, uint64_t bytes)
{
    stat64_set(&mig_stats.rate_limit_max, bytes);
    migration_rate_reset();
}

static inline bool test_limit_exceeded(QEMUFile *f)
{
    return migration_rate_exceeded(f);
}

#endif
