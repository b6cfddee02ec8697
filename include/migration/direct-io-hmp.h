/*
 * HMP: the direct-io section of info migrate
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DIRECT_IO_HMP_H
#define MIGRATION_DIRECT_IO_HMP_H

#include "monitor/monitor.h"
#include "qapi/qapi-types-migration.h"

/**
 * hmp_info_direct_io:
 * @mon: the monitor to print to
 * @migration: what QMP's query-migrate returns
 *
 * Prints its member direct-io, if there is one, and why an instant restore has
 * stopped the guest.
 */
void hmp_info_direct_io(Monitor *mon, const MigrationInfo *migration);

#endif
