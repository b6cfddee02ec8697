/*
 * Migration to and from a file: what its files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Private to migration/file-*.c.  file-transport.c makes the object, has it for
 * as long as the migration lasts, and frees it; file-image.c makes the file an
 * image.
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
    /* Passed by fd:, so what lies behind the image is not ours to cut */
    bool adopted;
    /* A duplicate of the main stream's descriptor */
    int fd;
    /* And one for what the transport itself writes */
    QIOChannelFile *ioc;
    /* The directory if its entry for the file is new, or -1 */
    int dir_fd;
    /* The descriptor for guest RAM */
    FileDirect direct;

    /* Protected by the BQL */

    bool locked;
    /* Whether this migration has created the file */
    bool created;
    /* Whether the save has the guest, stopped; see file-last-stage.h */
    bool has_guest;

    /* Of the migration thread while there is one, then of the main thread */

    /* Another duplicate, to be closed when all is written, or -1 */
    int close_fd;
    /* Whether the previous contents are lost */
    bool cut;
    /* Whether the file may contain an unfinished image */
    bool begun;
    /* Whether the image's first bytes still have to be put in place */
    bool held;
    FileEarlySync early;

    /* Atomic: a MigrationFilePhase, or FILE_NO_PHASE */
    MigrationFilePhase phase;
} FileTransport;

/*
 * Returns: the transport of the migration to or from a file, or NULL.  For the
 *          threads that file_transport_cleanup() has to wait for.
 */
FileTransport *file_transport_get(void);

/*
 * Gives back the lock, if there is one.  Explicitly, since the open file, which
 * has the lock, may be shared with others when it comes from outside.
 */
void file_transport_release_lock(FileTransport *t);

/* Removes the new file @path, which @fd has open, unless another is there. */
void file_transport_remove(const char *path, int fd);

/* Removes the file if this migration has created it, and not begun to write. */
void file_image_remove_unused(FileTransport *t);

#endif /* QEMU_MIGRATION_FILE_TRANSPORT_INT_H */
