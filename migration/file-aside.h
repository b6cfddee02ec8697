/*
 * Restoring from a file: reads that do not hold the BQL
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The coroutine that loads a guest runs in the main loop.  A slow read there
 * would block QMP, so QEMU's thread pool does the read while the coroutine
 * yields, as it does with sockets.
 */

#ifndef QEMU_MIGRATION_FILE_ASIDE_H
#define QEMU_MIGRATION_FILE_ASIDE_H

#include "io/channel.h"

/*
 * From now on, read @ioc, the main stream's channel, in QEMU's thread pool.
 * Called by the main thread.
 */
void file_aside_begin(QIOChannel *ioc);

/* Stop doing so when the load has ended.  Called by the main thread. */
void file_aside_end(void);

/**
 * file_aside_read: like qio_channel_read(), in the thread pool for that channel
 * @ioc: any channel
 * @buf: the buffer to read into
 * @len: the most bytes to read
 * @errp: where to put errors
 *
 * Returns: as qio_channel_read()
 */
ssize_t file_aside_read(QIOChannel *ioc, char *buf, size_t len, Error **errp);

/**
 * file_aside_pread_all: like qio_channel_pread_all(), likewise
 * @ioc: any channel
 * @buf: the buffer to read into
 * @len: how many bytes to read
 * @offset: file offset to read from
 * @errp: where to put errors
 *
 * Returns: 0, or -1 on error
 */
int file_aside_pread_all(QIOChannel *ioc, void *buf, size_t len, off_t offset,
                         Error **errp);

#endif /* QEMU_MIGRATION_FILE_ASIDE_H */
