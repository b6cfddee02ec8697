/*
 * Checking that the file system has room for the RAM to be saved
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_MAPPED_RAM_SPACE_H
#define MIGRATION_MAPPED_RAM_SPACE_H

/*
 * Expected size of the state of devices, in bytes.  The actual size is only
 * known when the guest has stopped.
 */
#define MAPPED_RAM_DEVICE_STATE (4 * MiB)

/**
 * MappedRamSpaceCheck:
 * @fd: the file that RAM is saved to
 * @name: its name, for messages
 * @kept: bytes of the file before the image, which stay and use space
 * @blocks: maps RAMBlock to MappedRamBlock, for all blocks that are saved
 * @pool: its workers scan for zero pages; cancelling it ends the check, which
 *        then succeeds
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
 * @offset: where in the file an image starts
 *
 * Moves the position of @fd temporarily, so no other thread may use it.
 *
 * Returns: how many bytes of data the file has before @offset
 */
uint64_t mapped_ram_space_kept(int fd, uint64_t offset);

/**
 * mapped_ram_space_check:
 * @check: what to check
 * @errp: pointer to a NULL-initialized error object
 *
 * Detects early that a save would run out of space: while its guest still
 * runs, or before a slow disk has been written for minutes.
 *
 * Pages need new space if they are dirty, were not written before, and are
 * not zero.  Usually there is room for all dirty pages, and none is scanned.
 * Otherwise the workers scan memory for zero pages until the result is known.
 * It is an estimate if the guest runs, because pages may change meanwhile.
 * MAPPED_RAM_DEVICE_STATE bytes are added for what follows RAM.
 *
 * On file systems that may compress, or cannot tell their free space, this
 * warns at most.  Files other than regular ones always pass.
 *
 * Called by the thread that migrates, BQL not held, when no worker is busy.
 *
 * Returns: false with @errp set if RAM does not fit.
 */
bool mapped_ram_space_check(MappedRamSpaceCheck *check, Error **errp);

#endif
