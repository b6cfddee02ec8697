/*
 * What file-save.c needs of this version of QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_FILE_SAVE_COMPAT_H
#define QEMU_MIGRATION_FILE_SAVE_COMPAT_H

#include "migration.h"
#include "qemu/main-loop.h"
#include "ram.h"
#include "sysemu/cpu-throttle.h"
#include "sysemu/runstate.h"

static inline void file_save_compat_lock_bql(void)
{
    qemu_mutex_lock_iothread();
}

static inline void file_save_compat_unlock_bql(void)
{
    qemu_mutex_unlock_iothread();
}

static inline bool file_save_compat_running(void)
{
    return migration_is_running(migrate_get_current()->state);
}

/* The guest gets @state if the migration does not succeed. */
static inline void file_save_compat_stay_stopped(MigrationState *s,
                                                 RunState state)
{
    s->vm_was_running = false;
    s->vm_stopped_state = state;
}

/* There is no capability dirty-limit. */
static inline void file_save_compat_end_dirty_limit(void)
{
}

#endif
