/*
 * What mapped-ram needs of this version of QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The same names have the same meaning in every version.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_COMPAT_H
#define QEMU_MIGRATION_MAPPED_RAM_COMPAT_H

#include "migration.h"
#include "migration/blocker.h"
#include "qapi/error.h"
#include "qemu-file.h"
#include "qemu/main-loop.h"
#include "ram.h"
#include "sysemu/sysemu.h"

/* Whether RAM of @rb is left out of the file. */
static inline bool mapped_ram_compat_is_ignored(RAMBlock *rb)
{
    return ramblock_is_ignored(rb);
}

/* Adds to the pages and bytes in query-migrate, and to the used bandwidth. */
static inline void mapped_ram_compat_account(QEMUFile *f, uint64_t normal,
                                             uint64_t zero, uint64_t bytes)
{
    ram_counters.normal += normal;
    ram_counters.duplicate += zero;
    qemu_file_credit_transfer(f, bytes);
    qemu_file_acct_rate_limit(f, bytes);
}

/* Bytes per period, or UINT64_MAX. */
static inline uint64_t mapped_ram_compat_rate_limit(QEMUFile *f)
{
    int64_t limit = qemu_file_get_rate_limit(f);

    return limit > 0 ? limit : UINT64_MAX;
}

/* Whether the period's bytes are used up, including @claimed more. */
static inline bool mapped_ram_compat_rate_exceeded(QEMUFile *f,
                                                   uint64_t claimed)
{
    bool exceeded;

    qemu_file_acct_rate_limit(f, claimed);
    exceeded = qemu_file_rate_limit(f);
    qemu_file_acct_rate_limit(f, -(int64_t)claimed);
    return exceeded;
}

/* Only for ram.c.  @last: whether the guest is stopped for good. */
#define mapped_ram_compat_sync_precopy(rs, last) \
    migration_bitmap_sync_precopy(rs)

/* The setup stage is called without the BQL. */
static inline void mapped_ram_compat_setup_lock(void)
{
}

static inline void mapped_ram_compat_setup_unlock(void)
{
}

/* Reports why a load has failed; takes ownership of @err. */
static inline void mapped_ram_compat_load_failed(QEMUFile *f, Error *err)
{
    /* query-migrate shows the error of the stream */
    qemu_file_set_error_obj(f, -EINVAL, err);
}

/* This version has no parameter zero-page-detection. */
static inline bool mapped_ram_compat_keep_zeros(void)
{
    return false;
}

/* This version has no query-migrationthreads. */
static inline void *mapped_ram_compat_thread_started(const char *name)
{
    return NULL;
}

static inline void mapped_ram_compat_thread_ended(void *thread)
{
}

/* Whether all memory of the process is locked. */
static inline bool mapped_ram_compat_memory_locked(void)
{
    return enable_mlock;
}

/*
 * Finishes a migration that has just ended.  Returns false with @errp set if
 * one is running.
 */
static inline bool mapped_ram_compat_finish_migration(Error **errp)
{
    return migrate_fd_cleanup_finish(migrate_get_current(), errp);
}

/* Blocks saving the machine because of @reason, which it takes over. */
static inline bool mapped_ram_compat_block(Error **reason, Error **errp)
{
    if (migrate_add_blocker_internal(*reason, errp) < 0) {
        g_clear_pointer(reason, error_free);
        return false;
    }
    return true;
}

/* Allows saving the machine again. */
static inline void mapped_ram_compat_unblock(Error **reason)
{
    if (*reason) {
        migrate_del_blocker(*reason);
        g_clear_pointer(reason, error_free);
    }
}

#endif
