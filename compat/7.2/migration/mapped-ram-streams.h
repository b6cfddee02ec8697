/*
 * mapped-ram: for files of QEMU that only handle RAM in streams
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * To be included last.  mapped-ram-*.c move the RAM of a mapped-ram file, past
 * the files that include this.  These only see RAM in a stream, even if the
 * capability is set: then it is a snapshot.  So for them multifd is on only
 * for packets.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_STREAMS_H
#define QEMU_MIGRATION_MAPPED_RAM_STREAMS_H

#include "mapped-ram.h"
#include "migration.h"

#define migrate_use_multifd() migrate_multifd_packets()
#define migrate_postcopy_ram() mapped_ram_postcopy_by_stream()

#endif
