/*
 * Saving to a file: deferring writes while the BQL is held
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The end of RAM and the state of devices are saved with the BQL held.  A slow
 * write there would block QMP, so data written meanwhile is kept in memory, and
 * goes to the file when the lock has been released.  It is little, since the
 * workers write RAM; what exceeds 64 MiB is written at once.
 *
 * There is at most one queue in a process, and it belongs to the migration
 * thread.
 */

#ifndef QEMU_MIGRATION_FILE_QUEUE_H
#define QEMU_MIGRATION_FILE_QUEUE_H

#include "io/channel.h"

/**
 * file_queue_begin: start deferring writes to @ioc
 * @ioc: the channel of the main stream
 *
 * To be ended by file_queue_flush() or file_queue_drop().
 */
void file_queue_begin(QIOChannel *ioc);

/**
 * file_queue_defer: defer writes, or write them at once
 * @defer: true to defer; false while the BQL is temporarily released
 *
 * With @defer false, writes go to the file, after those that were deferred.
 * Does nothing without file_queue_begin().
 */
void file_queue_defer(bool defer);

/**
 * file_queue_flush: perform the deferred writes, and stop deferring
 * @errp: where to put errors
 *
 * Waits for the disk.  Migration thread, BQL not held.
 *
 * Returns: true on success, also if there is no queue
 */
bool file_queue_flush(Error **errp);

/* Drops the deferred writes, and stops deferring. */
void file_queue_drop(void);

/**
 * file_queue_writev_all: qio_channel_writev_all(), perhaps deferred
 * @ioc: any channel
 * @iov: what to write at the channel's position; copied if deferred
 * @niov: elements of @iov
 * @errp: where to put errors
 *
 * Returns: 0, or -1 on error
 */
int file_queue_writev_all(QIOChannel *ioc, const struct iovec *iov,
                          size_t niov, Error **errp);

/**
 * file_queue_pwrite_all: qio_channel_pwrite_all(), perhaps deferred
 * @ioc: any channel
 * @buf: what to write; copied if deferred
 * @len: bytes of @buf
 * @offset: file offset to write at
 * @errp: where to put errors
 *
 * Returns: 0, or -1 on error
 */
int file_queue_pwrite_all(QIOChannel *ioc, const void *buf, size_t len,
                          off_t offset, Error **errp);

#endif /* QEMU_MIGRATION_FILE_QUEUE_H */
