/*
 * The settings of a migration, by the names that later versions use
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_OPTIONS_H
#define QEMU_MIGRATION_OPTIONS_H

#include "migration.h"

static inline bool migrate_colo(void)
{
    return migrate_colo_enabled();
}

static inline bool migrate_multifd(void)
{
    return migrate_use_multifd();
}

static inline bool migrate_return_path(void)
{
    return migrate_use_return_path();
}

static inline bool migrate_tls(void)
{
    return migrate_use_tls();
}

#endif
