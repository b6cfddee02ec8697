/*
 * mapped-ram: what is carried from one period of the rate limit to the next
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_CARRY_H
#define QEMU_MIGRATION_MAPPED_RAM_CARRY_H

#include "qemu/units.h"

/*
 * Workers write whole extents, of at least 64 pages, so a period may exceed its
 * limit, and the following ones make up for it: but at most for what may be
 * written within a second, or for one extent.  Otherwise nothing would be
 * written for minutes after the limit has been lowered, to make up for what was
 * written before.  @max: the limit of a period of 0.1 s, in bytes.
 */
#define MAPPED_RAM_CARRY_MAX(max) MAX(10 * (max), 256 * KiB)

#endif /* QEMU_MIGRATION_MAPPED_RAM_CARRY_H */
