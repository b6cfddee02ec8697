/*
 * HMP: the direct-io section of info migrate
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_DIRECT_IO_HMP_H
#define MIGRATION_DIRECT_IO_HMP_H

#include "monitor/monitor.h"
#include "qapi/qapi-types-direct-io.h"

/**
 * hmp_info_direct_io:
 * @mon: the monitor to print to
 * @info: the figures to print
 *
 * Prints the member direct-io of QMP's query-migrate.
 */
void hmp_info_direct_io(Monitor *mon, const MigrationDirectIO *info);

#endif
