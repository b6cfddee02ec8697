/*
 * What file-save.c needs of this version of QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_FILE_SAVE_COMPAT_H
#define QEMU_MIGRATION_FILE_SAVE_COMPAT_H

#include "migration.h"
#include "migration/misc.h"
#include "options.h"
#include "qapi/qapi-commands-migration.h"
#include "qemu/main-loop.h"
#include "ram.h"
#include "system/cpu-throttle.h"
#include "system/runstate.h"

static inline void file_save_compat_lock_bql(void)
{
    bql_lock();
}

static inline void file_save_compat_unlock_bql(void)
{
    bql_unlock();
}

static inline bool file_save_compat_running(void)
{
    return migration_is_running();
}

/* The guest gets @state if the migration does not succeed. */
static inline void file_save_compat_stay_stopped(MigrationState *s,
                                                 RunState state)
{
    s->vm_old_state = state;
}

/* Ends the limit of the migration.  Migration thread; drops the BQL. */
static inline void file_save_compat_end_dirty_limit(void)
{
    if (migrate_dirty_limit()) {
        qmp_cancel_vcpu_dirty_limit(false, -1, NULL);
    }
}

#endif
