/*
 * Saving to a file: stable storage before the guest is stopped
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A save is completed when all of it is on stable storage, and until then the
 * guest is stopped.  So what the page cache has is written back before, while
 * the guest runs, and the time that the rest will take counts as downtime.
 */

#ifndef QEMU_MIGRATION_FILE_EARLY_SYNC_H
#define QEMU_MIGRATION_FILE_EARLY_SYNC_H

/* How often at most a save waits with its last stage for an early sync. */
#define FILE_EARLY_SYNC_MAX 8

/*
 * What is known of the file; all zero when a save begins.  Only for the
 * migration thread.
 */
typedef struct FileEarlySync {
    /* how many bytes had been written when the last sync began */
    uint64_t synced;
    /* how many bytes that sync was about, and how long it took */
    uint64_t bytes;
    int64_t us;
    /* how often the last stage had to wait */
    unsigned waits;
} FileEarlySync;

/**
 * file_early_sync_wanted: decide whether the guest would be stopped too long
 * @e: what is known
 * @written: bytes written since the save began
 * @pending: bytes that remain to be written
 * @threshold: bytes that can be written within the downtime limit
 * @downtime_ms: the downtime limit
 *
 * The last stage writes @pending and syncs that and what was written since
 * the last sync, at the rate of the last sync.  It has to wait if that takes
 * longer than the limit, but not more than FILE_EARLY_SYNC_MAX times, lest a
 * save on a slow disk never end.  Pure; for tests.
 *
 * Returns: whether to sync and to look again
 */
bool file_early_sync_wanted(const FileEarlySync *e, uint64_t written,
                            uint64_t pending, uint64_t threshold,
                            uint64_t downtime_ms);

/**
 * file_early_sync: before the guest is stopped for the last stage
 * @e: what is known
 * @written: bytes written since the save began
 * @pending: bytes that remain to be written
 * @threshold: bytes that can be written within the downtime limit
 * @downtime_ms: the downtime limit
 * @errp: where to put errors
 *
 * Syncs the file if need be, which may take long.  Does nothing with
 * file-sync=off.  Migration thread, without the BQL.
 *
 * Returns: true if the last stage must not begin yet, as the guest went on
 *          meanwhile; also on errors, with @errp set
 */
bool file_early_sync(FileEarlySync *e, uint64_t written, uint64_t pending,
                     uint64_t threshold, uint64_t downtime_ms, Error **errp);

#endif /* QEMU_MIGRATION_FILE_EARLY_SYNC_H */
