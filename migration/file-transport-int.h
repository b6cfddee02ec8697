/*
 * Migration to and from a file: what its files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Private to migration/file-*.c.  file-transport.c creates the object, owns it
 * for as long as the migration lasts, and frees it; file-image.c invalidates,
 * commits and discards the image.
 */

#ifndef QEMU_MIGRATION_FILE_TRANSPORT_INT_H
#define QEMU_MIGRATION_FILE_TRANSPORT_INT_H

#include "file-direct.h"
#include "file-early-sync.h"
#include "file-transport.h"
#include "io/channel-file.h"

#define FILE_NO_PHASE MIGRATION_FILE_PHASE__MAX

typedef struct FileTransport {
    /* Constant from the start to the end */

    char *name;
    uint64_t offset;
    bool outgoing;
    /* A regular file; otherwise a block device */
    bool regular;
    /* Passed by fd:, so never truncated: data may follow the image */
    bool adopted;
    /* Opened by QEMU itself, as a file that had a name */
    bool has_name;
    /* A duplicate of the main stream's descriptor */
    int fd;
    /* And a channel for what the transport itself writes */
    QIOChannelFile *ioc;
    /* Whether the file's entry in its directory is new */
    bool is_new;
    /* That directory, or -1 if the entry is not new or it can't be opened */
    int dir_fd;
    /* The descriptor for guest RAM */
    FileDirect direct;

    /* Protected by the BQL */

    bool locked;
    /* Whether the guest was stopped by the save; see file-last-stage.h */
    bool has_guest;
    /* Whether the save is about to stop the guest */
    bool stops_guest;
    /* Whether the image is valid, or about to be */
    bool committed;

    /* Owned by the migration thread while there is one, then the main thread */

    /* Whether this migration created the file, and has not begun to use it */
    bool created;
    /* Another duplicate, to be closed when all is written, or -1 */
    int close_fd;
    /* Whether the file may contain an unfinished image */
    bool begun;
    /* Whether the image is still invalid: its magic number is missing */
    bool invalidated;
    FileEarlySync early;
    /* of file_save_pending(): its last argument, if there was one */
    bool has_pending;
    uint64_t pending;

    /* Atomic: a MigrationFilePhase, or FILE_NO_PHASE */
    MigrationFilePhase phase;
} FileTransport;

/*
 * Returns: the transport of the migration to or from a file, or NULL.  Only for
 *          threads that file_transport_cleanup() has to wait for.
 */
FileTransport *file_transport_get(void);

/*
 * Releases the lock, if there is one.  Closing the descriptor is not enough: a
 * file passed from outside may share its open file description, which holds
 * the lock, with other processes.
 */
void file_transport_release_lock(FileTransport *t);

/* Removes the new file @path, if it is still the one that @fd has open. */
void file_transport_remove(const char *path, int fd);

/* Removes the file if this migration created it and has not written to it. */
void file_image_remove_unused(FileTransport *t);

#endif /* QEMU_MIGRATION_FILE_TRANSPORT_INT_H */
