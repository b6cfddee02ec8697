/*
 * Saving guests to files: what must fail, and how
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_FILE_FAULTS_H
#define MIGRATION_FILE_FAULTS_H

/* Adds the tests to those that g_test_run() runs. */
void file_faults_add(void);

#endif
