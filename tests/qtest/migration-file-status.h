/*
 * Saving guests to files: settings of the engine, and what QEMU reports
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_FILE_STATUS_H
#define MIGRATION_FILE_STATUS_H

/* Adds the tests to those that g_test_run() runs. */
void file_status_add(void);

#endif
