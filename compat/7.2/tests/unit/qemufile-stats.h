/*
 * Bytes transferred by a QEMUFile, and its limit, for tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * In this version each QEMUFile has its own counts.
 */

#ifndef TESTS_QEMUFILE_STATS_H
#define TESTS_QEMUFILE_STATS_H

#include "../migration/qemu-file.h"

static inline void test_reset_transferred(void)
{
}

/* Bytes written to @f so far */
static inline uint64_t test_transferred(QEMUFile *f)
{
    return qemu_file_total_transferred_fast(f);
}

/* Limits @f to @bytes, counted from here on */
static inline void test_set_limit(QEMUFile *f, uint64_t bytes)
{
    qemu_file_set_rate_limit(f, bytes);
}

static inline bool test_limit_exceeded(QEMUFile *f)
{
    return qemu_file_rate_limit(f);
}

#endif
