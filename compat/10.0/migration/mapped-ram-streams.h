/*
 * mapped-ram: for files of QEMU that are left with RAM in streams
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * To be included last.  RAM of a mapped-ram file is moved by mapped-ram-*.c
 * and passes by these files.  What reaches them is RAM in a stream, also
 * while the capability is set: a snapshot then.  So there the capability
 * counts as off, and upstream's own code for mapped-ram stays, unreachable.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_STREAMS_H
#define QEMU_MIGRATION_MAPPED_RAM_STREAMS_H

#include "options.h"

#define migrate_mapped_ram() false
#define migrate_multifd() migrate_multifd_packets()

#endif
