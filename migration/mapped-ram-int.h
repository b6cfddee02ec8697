/*
 * mapped-ram: definitions shared by its files, and private to them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One MappedRam is a running save or load.  mapped-ram.c creates, publishes
 * and frees it; mapped-ram-save.c and mapped-ram-load.c fill it;
 * mapped-ram-info.c reports on it.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_INT_H
#define QEMU_MIGRATION_MAPPED_RAM_INT_H

#include "mapped-ram-loop.h"
#include "mapped-ram.h"
#include "mapped-ram-space.h"
#include "qemu/thread.h"

/*
 * The thread that migrates owns the object: the migration thread of a save, or
 * the main thread of a load.  After the migration thread has ended, the holder
 * of the BQL owns it.  Other threads reach it only under mapped_ram_lock.
 */
struct MappedRam {
    /* constant after mapped_ram_new() */
    bool load;
    unsigned workers;
    unsigned depth;
    /* 0 when RAM moves through the buffered descriptor */
    uint32_t alignment;
    /* why it is buffered, if not for settings; a constant string, or NULL */
    const char *buffered_reason;
    /* has a lock of its own; any thread may cancel it and read its counts */
    MappedRamPool *pool;

    /*
     * Maps RAMBlock to MappedRamBlock, which it owns.  For the owner only;
     * changes during the setup of a save, or while blocks are loaded.
     */
    GHashTable *blocks;
    /*
     * Of a save: the blocks' memory regions; each holds a reference.  A device
     * may be unplugged during the save if its guest was asked to release it
     * before.
     */
    GPtrArray *regions;
    /* owner only */
    MappedRamSpaceCheck space;
    /* owner only, of a save: the main stream, and the save loop */
    QEMUFile *stream;
    MappedRamLoop loop;
};

/* Returns the number of threads that move RAM. */
unsigned mapped_ram_workers(void);

/* Protects the two pointers to running objects, and the records of both. */
extern QemuMutex mapped_ram_lock;

/**
 * mapped_ram_new:
 * @f: the main stream, which is a file
 * @load: whether to load RAM, or to save it
 * @errp: pointer to a NULL-initialized error object
 *
 * Starts the workers and publishes the object.  No other save, or other load,
 * may be running.  Called by the thread that migrates.
 *
 * Returns: the object, to be freed by mapped_ram_end(); or NULL with @errp set
 */
MappedRam *mapped_ram_new(QEMUFile *f, bool load, Error **errp);

/**
 * mapped_ram_running:
 * @load: whether to return the load, or the save
 *
 * Returns: the running save or load, or NULL.  Only its owner, or a holder of
 *          mapped_ram_lock, may call this.
 */
MappedRam *mapped_ram_running(bool load);

/*
 * Stops the workers of the running save or load, waiting for their requests
 * in flight, and frees it.  Does nothing if there is none.
 */
void mapped_ram_end(bool load);

/* Keeps the figures of @m for mapped_ram_info().  Under mapped_ram_lock. */
void mapped_ram_record(MappedRam *m);

/**
 * mapped_ram_add_block:
 * @m: the save or load
 * @rb: a RAM block
 * @layout: its layout in the file
 *
 * Replaces the previous entry if @rb is added again.
 *
 * Returns: the block, which @m owns, with empty bitmaps
 */
MappedRamBlock *mapped_ram_add_block(MappedRam *m, RAMBlock *rb,
                                     const MappedRamLayout *layout);

/* Returns the name of @f for messages, that of the file if it is a file. */
const char *mapped_ram_stream_name(QEMUFile *f);

/* Returns the descriptor of @f, which is a file channel. */
int mapped_ram_stream_fd(QEMUFile *f);

/* Checks @f: if it has an error, returns false with @errp set to that error. */
bool mapped_ram_stream_ok(QEMUFile *f, Error **errp);

/*
 * Returns how many bytes workers have handed to their queues and are still in
 * flight.  An extent is counted only when its worker is through with it, while
 * some of its requests may already have completed.
 */
uint64_t mapped_ram_bytes_in_flight(const MappedRamCounts *counts,
                                    const MappedRamStats *stats);

#endif /* QEMU_MIGRATION_MAPPED_RAM_INT_H */
