/*
 * mapped-ram: for files of QEMU that only handle RAM in streams and snapshots
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * To be included last.  mapped-ram-*.c move the RAM of a mapped-ram file, past
 * the files that include this.  For these the capability is off, and upstream's
 * own code for mapped-ram is unreachable, unless there is a snapshot: upstream
 * saves it with mapped-ram, too, but it has no descriptor.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_STREAMS_H
#define QEMU_MIGRATION_MAPPED_RAM_STREAMS_H

#include "mapped-ram.h"
#include "migration.h"
#include "options.h"

/* Whether a snapshot with mapped-ram is being saved or loaded. */
static inline bool mapped_ram_in_snapshot(void)
{
    QEMUFile *f;

    if (!migrate_mapped_ram()) {
        return false;
    }
    f = migration_incoming_get_current()->from_src_file ?:
        migrate_get_current()->to_dst_file;
    return f && !mapped_ram_wanted(f);
}

#define migrate_mapped_ram() mapped_ram_in_snapshot()
#define migrate_multifd() migrate_multifd_packets()
#define migrate_postcopy_ram() mapped_ram_postcopy_by_stream()

#endif
