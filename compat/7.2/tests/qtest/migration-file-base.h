/*
 * What is specific to QEMU 7.2 in the tests that save guests to files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_FILE_BASE_H
#define MIGRATION_FILE_BASE_H

/* The guest of migration-test */
#define FILE_BASE_BOOT_BLOCK "tests/migration/i386/a-b-bootblock.h"

/* The property of the migration object for the capability mapped-ram */
#define FILE_BASE_MAPPED_RAM_PROPERTY "x-mapped-ram"

/* Descriptors that were taken out of a set stay open until a guest runs */
#define FILE_BASE_KEEPS_REMOVED_FDS true

/* Capabilities that can't be combined with mapped-ram */
#define FILE_BASE_REFUSED_CAPS \
    "xbzrle", "compress", "postcopy-ram", "x-colo", "zero-copy-send", \
    "rdma-pin-all", "background-snapshot"

#endif
