/*
 * mapped-ram: for files of QEMU that are left with RAM in streams
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * To be included last.  RAM of a mapped-ram file is moved by mapped-ram-*.c
 * and passes by these files.  What reaches them is RAM in a stream, also
 * while the capability is set: a snapshot then.  So there multifd is on only
 * for packets.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_STREAMS_H
#define QEMU_MIGRATION_MAPPED_RAM_STREAMS_H

#include "migration.h"

#define migrate_use_multifd() migrate_multifd_packets()

#endif
