/*
 * Whether there is room in the file system for the RAM that is to be saved
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_RAM_SPACE_H
#define MIGRATION_RAM_SPACE_H

/*
 * How many bytes the state of devices is expected to need.  Its size is only
 * known when the guest has stopped.
 */
#define MAPPED_RAM_DEVICE_STATE (4 * MiB)

/**
 * MappedRamSpaceCheck:
 * @fd: the file that RAM is saved to
 * @name: its name, for messages
 * @kept: bytes of the file before the image, which stay and take up room
 * @blocks: RAMBlock to MappedRamBlock, all that are saved
 * @pool: its workers look for pages that are zero; cancelling it ends the
 *        check, which then succeeds
 * @keep_zeros: whether zero pages are saved like others
 * @warned: whether a warning has been given already
 */
typedef struct MappedRamSpaceCheck {
    int fd;
    const char *name;
    uint64_t kept;
    GHashTable *blocks;
    MappedRamPool *pool;
    bool keep_zeros;
    bool warned;
} MappedRamSpaceCheck;

/**
 * mapped_ram_space_kept:
 * @fd: a file
 * @offset: where in it an image starts
 *
 * Moves the position of @fd meanwhile, so no other thread may use it.
 *
 * Returns: how many bytes of data the file has before @offset
 */
uint64_t mapped_ram_space_kept(int fd, uint64_t offset);

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
 * looked at.  Else the workers read memory to find the zeros, until the answer
 * is known; a guest that runs may change it meanwhile, so then this is an
 * estimate.  MAPPED_RAM_DEVICE_STATE bytes are added for what follows RAM.
 *
 * File systems that may compress, or do not know what is left, lead to a
 * warning at most.  Others than regular files have room.
 *
 * Called by the thread that migrates, BQL not held, when no
 * worker is busy.
 *
 * Returns: false with @errp set if RAM does not fit.
 */
bool mapped_ram_space_check(MappedRamSpaceCheck *check, Error **errp);

#endif
