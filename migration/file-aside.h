/*
 * Restoring from a file: reads that do not hold the BQL
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The coroutine that loads a guest runs in the main loop.  A read may take as
 * long as the disk likes, and QMP would wait for it.  So a thread of the pool
 * reads, and the coroutine yields meanwhile, as it does with sockets.
 */

#ifndef QEMU_MIGRATION_FILE_ASIDE_H
#define QEMU_MIGRATION_FILE_ASIDE_H

#include "io/channel.h"

/* Read @ioc, the channel of the main stream, aside.  Main thread. */
void file_aside_begin(QIOChannel *ioc);

/* The load has ended.  Main thread. */
void file_aside_end(void);

/**
 * file_aside_read: as qio_channel_read(), aside if called for
 * @ioc: any channel
 * @buf: where to put the bytes
 * @len: how many bytes at most
 * @errp: where to put errors
 *
 * Returns: as qio_channel_read()
 */
ssize_t file_aside_read(QIOChannel *ioc, char *buf, size_t len, Error **errp);

/**
 * file_aside_pread_all: as qio_channel_pread_all(), aside if called for
 * @ioc: any channel
 * @buf: where to put the bytes
 * @len: how many bytes
 * @offset: where in the file
 * @errp: where to put errors
 *
 * Returns: 0, or -1 on error
 */
int file_aside_pread_all(QIOChannel *ioc, void *buf, size_t len, off_t offset,
                         Error **errp);

#endif /* QEMU_MIGRATION_FILE_ASIDE_H */
