/*
 * What mapped-ram needs of this version of QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The same names have the same meaning in every version.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_COMPAT_H
#define QEMU_MIGRATION_MAPPED_RAM_COMPAT_H

#include "migration/blocker.h"
#include "migration/misc.h"
#include "migration-stats.h"
#include "migration.h"
#include "options.h"
#include "qemu-file.h"
#include "qemu/main-loop.h"
#include "ram.h"
#include "system/system.h"
#include "threadinfo.h"

/* Whether RAM of @rb is left out of the file. */
static inline bool mapped_ram_compat_is_ignored(RAMBlock *rb)
{
    return migrate_ram_is_ignored(rb);
}

/* Adds to the pages and bytes in query-migrate, and to the used bandwidth. */
static inline void mapped_ram_compat_account(QEMUFile *f, uint64_t normal,
                                             uint64_t zero, uint64_t bytes)
{
    stat64_add(&mig_stats.normal_pages, normal);
    stat64_add(&mig_stats.zero_pages, zero);
    stat64_add(migrate_multifd() ? &mig_stats.multifd_bytes :
               &mig_stats.qemu_file_transferred, bytes);
}

/* Bytes per period, or UINT64_MAX. */
static inline uint64_t mapped_ram_compat_rate_limit(QEMUFile *f)
{
    uint64_t limit = migration_rate_get();

    return limit == RATE_LIMIT_DISABLED ? UINT64_MAX : limit;
}

/* Whether the period's bytes are used up, including @claimed more. */
static inline bool mapped_ram_compat_rate_exceeded(QEMUFile *f,
                                                   uint64_t claimed)
{
    uint64_t used = migration_transferred_bytes() -
                    stat64_get(&mig_stats.rate_limit_start);
    uint64_t limit = mapped_ram_compat_rate_limit(f);

    return limit != UINT64_MAX && used + claimed > limit;
}

/* Only for ram.c.  @last: whether the guest is stopped for good. */
#define mapped_ram_compat_sync_precopy(rs, last) \
    migration_bitmap_sync_precopy(last)

/* The setup stage is called with the BQL held. */
static inline void mapped_ram_compat_setup_lock(void)
{
    bql_lock();
}

static inline void mapped_ram_compat_setup_unlock(void)
{
    bql_unlock();
}

/* Reports why a load has failed; takes ownership of @err. */
static inline void mapped_ram_compat_load_failed(QEMUFile *f, Error *err)
{
    /* query-migrate, and so libvirt, shows the error of the stream */
    qemu_file_set_error_obj(f, -EINVAL, err);
}

/* Whether zero pages must be written like others. */
static inline bool mapped_ram_compat_keep_zeros(void)
{
    return migrate_zero_page_detection() == ZERO_PAGE_DETECTION_NONE;
}

/*
 * Adds the calling thread to query-migrationthreads.  @name must live as long
 * as the thread.  Returns the argument for _thread_ended().
 */
static inline void *mapped_ram_compat_thread_started(const char *name)
{
    return migration_threads_add(name, qemu_get_thread_id());
}

static inline void mapped_ram_compat_thread_ended(void *thread)
{
    migration_threads_remove(thread);
}

/* Whether all memory of the process is locked. */
static inline bool mapped_ram_compat_memory_locked(void)
{
    return should_mlock(mlock_state);
}

/*
 * Finishes a migration that has just ended.  Returns false with @errp set if
 * one is running.
 */
static inline bool mapped_ram_compat_finish_migration(Error **errp)
{
    return migration_cleanup_finish(migrate_get_current(), errp);
}

/* Blocks saving the machine because of @reason, which it takes over. */
static inline bool mapped_ram_compat_block(Error **reason, Error **errp)
{
    return migrate_add_blocker_internal(reason, errp) == 0;
}

/* Allows saving the machine again. */
static inline void mapped_ram_compat_unblock(Error **reason)
{
    migrate_del_blocker(reason);
}

#endif
