/*
 * Whether there is room in the file system for the RAM that is to be saved
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_RAM_SPACE_H
#define MIGRATION_RAM_SPACE_H

/**
 * MappedRamSpaceCheck:
 * @fd: the file that RAM is saved to
 * @name: its name, for messages
 * @blocks: RAMBlock to MappedRamBlock, all that are saved
 * @stop: atomic; set by any thread to end the check, which then succeeds
 * @warned: whether a warning has been given already
 */
typedef struct MappedRamSpaceCheck {
    int fd;
    const char *name;
    GHashTable *blocks;
    bool stop;
    bool warned;
} MappedRamSpaceCheck;

/**
 * mapped_ram_space_check:
 * @check: see there
 * @errp: pointer to a NULL-initialized error object
 *
 * Finds out early that a save would run out of space: while its guest still
 * runs, or before a slow disk has been written for minutes.
 *
 * Pages need new space if they are dirty, were not written before, and are
 * not zero.  If there is room for all dirty pages, which is the rule, none is
 * looked at.  Only if they are in doubt, memory is read to find the zeros; a
 * guest that runs may change it meanwhile, so then this is an estimate.
 *
 * File systems that may compress, or do not know what is left, lead to a
 * warning at most.  Others than regular files have room.
 *
 * Called by the thread that migrates, without the iothread lock, when no
 * worker is busy.
 *
 * Returns: false with @errp set if RAM does not fit.
 */
bool mapped_ram_space_check(MappedRamSpaceCheck *check, Error **errp);

#endif
