/*
 * Saving to a file: stable storage before the guest is stopped
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A save is completed only when all of it is on stable storage, and the guest
 * is stopped until then.  So the page cache is written back earlier, while the
 * guest runs, and the time that the rest will take counts as downtime.
 */

#ifndef QEMU_MIGRATION_FILE_EARLY_SYNC_H
#define QEMU_MIGRATION_FILE_EARLY_SYNC_H

/* The most times that a save delays its last stage for an early sync. */
#define FILE_EARLY_SYNC_MAX 8

/*
 * State of the early syncs of one save; all zero when the save begins.  For the
 * migration thread only.
 */
typedef struct FileEarlySync {
    /* bytes that had been written when the last sync began */
    uint64_t synced;
    /* bytes that the last sync covered, and how long it took */
    uint64_t bytes;
    int64_t us;
    /* how often the last stage was delayed */
    unsigned waits;
} FileEarlySync;

/**
 * file_early_sync_wanted: decide whether the guest would be stopped too long
 * @e: the state of the early syncs
 * @written: bytes written since the save began
 * @pending: bytes that remain to be written
 * @threshold: bytes that can be written within the downtime limit
 * @downtime_ms: the downtime limit
 *
 * The last stage writes @pending and syncs it, together with what was written
 * since the last sync, at the rate of the last sync.  If that takes longer than
 * the limit, the last stage is delayed, but at most FILE_EARLY_SYNC_MAX times,
 * lest a save on a slow disk never end.  Pure function, exported for tests.
 *
 * Returns: whether to sync, and then to decide again
 */
bool file_early_sync_wanted(const FileEarlySync *e, uint64_t written,
                            uint64_t pending, uint64_t threshold,
                            uint64_t downtime_ms);

/**
 * file_early_sync: sync before the guest is stopped for the last stage
 * @e: the state of the early syncs
 * @written: bytes written since the save began
 * @pending: bytes that remain to be written
 * @threshold: bytes that can be written within the downtime limit
 * @downtime_ms: the downtime limit
 * @errp: where to put errors
 *
 * Syncs the file if necessary, which may take long.  Migration thread, without
 * the BQL.
 *
 * Returns: true if the last stage must not begin yet, because the guest ran on
 *          during the sync; also on errors, with @errp set
 */
bool file_early_sync(FileEarlySync *e, uint64_t written, uint64_t pending,
                     uint64_t threshold, uint64_t downtime_ms, Error **errp);

#endif /* QEMU_MIGRATION_FILE_EARLY_SYNC_H */
