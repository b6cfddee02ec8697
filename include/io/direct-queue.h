/*
 * Direct queue: many large transfers in flight on one file descriptor
 *
 * A queue moves data between memory and absolute offsets of one file.  It is
 * made for a thread that has much to move and keeps the disk busy meanwhile:
 *
 *     q = direct_queue_new(&config, errp);
 *     for each extent:
 *         direct_queue_write(q, extent.ram, extent.len, extent.pos, errp)
 *     direct_queue_drain(q, errp);         now the memory may be reused
 *     direct_queue_free(q);
 *
 * Guarantees
 *
 * - Whole transfers.  The kernel may transfer less than it was asked for; the
 *   queue then continues the transfer.  Interrupted and refused requests are
 *   retried.  A transfer that can't be completed is an error.
 *
 * - The first error counts.  It is kept, with the file, the offset and the
 *   cause.  No request is started after it: each later call fails at once
 *   with the same message.  No failed request is reported as done: after
 *   direct_queue_drain() has returned true, every byte was transferred.
 *
 * - No order.  Requests complete in any order.  Two requests in flight must
 *   not overlap, neither in memory (for reads) nor in the file (if one of
 *   them is a write); put a direct_queue_drain() between them.
 *
 * - No durability.  A written byte has left the buffer, no more.  The caller
 *   must call fdatasync() after the drain.
 *
 * - No allocation per request: all memory is allocated in direct_queue_new().
 *   The one exception is direct_queue_write() of memory that changes.
 *
 * Threads: a queue belongs to one thread at a time and has no locks.  Only
 * direct_queue_cancel(), direct_queue_get_stats(), direct_queue_engine_name()
 * and direct_queue_engine_reason() may be called from other threads, as long
 * as the queue exists.  Calls block while the disk is busy: keep them out of
 * the main loop and out of coroutines.
 *
 * Alignment: with limits that require alignment (direct_io_probe()), buffers,
 * lengths and offsets must obey them; otherwise an assertion fails.  Limits of
 * 1 (direct_io_limits_buffered()) make the queue work on buffered descriptors.
 *
 * Signals: writing beyond RLIMIT_FSIZE raises SIGXFSZ in the calling thread,
 * which is deadly unless blocked (as in all threads that qemu_thread_create()
 * makes) or ignored; then it is an error like any other.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QIO_DIRECT_QUEUE_H
#define QIO_DIRECT_QUEUE_H

#include "qapi/qapi-types-direct-io-engine.h"
#include "qemu/direct-io.h"

/* Requests in flight: the default if the configuration says 0, and the most. */
#define DIRECT_QUEUE_DEPTH_DEFAULT  64
#define DIRECT_QUEUE_DEPTH_MAX      1024

/*
 * Bytes in flight, unless the configuration sets the depth or the bytes.  Small
 * requests need many in flight to keep a disk busy; large ones do not,
 * and a drain or a cancel has to wait for all of them.  There is always room
 * for one request, whatever its size.
 */
#define DIRECT_QUEUE_BYTES_DEFAULT  (32 * 1024 * 1024)

/**
 * DirectQueueConfig: how to create a queue; everything is copied.
 *
 * @fd: the descriptor, open for the transfers that will be requested.  The
 *      caller owns it and closes it after direct_queue_free().  Its file
 *      position is neither used nor changed.
 * @name: the file's name for messages
 * @limits: constraints on transfers through @fd
 * @engine: which engine to use.  All but AUTO fail if it does not work here.
 *          AUTO takes the first of the others that works, in the order of the
 *          enumeration.  io_uring needs Linux 5.6 and a sandbox that permits
 *          it; AUTO does not take it on FUSE, where it would corrupt data after
 *          short writes.  linux-aio blocks in the submission if @fd does not
 *          have O_DIRECT.
 * @depth: how many requests may be in flight, at most DIRECT_QUEUE_DEPTH_MAX;
 *         0 for DIRECT_QUEUE_DEPTH_DEFAULT
 * @bytes: how many bytes they may have in total; 0 for no limit, or for
 *         DIRECT_QUEUE_BYTES_DEFAULT if @depth is 0, too
 */
typedef struct DirectQueueConfig {
    int fd;
    const char *name;
    DirectIOLimits limits;
    DirectIoEngine engine;
    unsigned depth;
    uint64_t bytes;
} DirectQueueConfig;

/* Bucket 0 is below 2 us, bucket n from 2^n us, the last has no upper end. */
#define DIRECT_QUEUE_LATENCY_BUCKETS 24

/**
 * DirectQueueStats: what a queue did since it was created.
 *
 * A request is what the queue hands to its engine: a call of
 * direct_queue_read() or direct_queue_write() is one or several, depending on
 * its length and the limits' opt_transfer.  The continuation of a short
 * transfer belongs to the same request, and to its time.
 */
typedef struct DirectQueueStats {
    /* Bytes transferred, also by requests that failed later on. */
    uint64_t bytes_read;
    uint64_t bytes_written;

    /* Requests that have ended, successfully or not. */
    uint64_t requests;

    /* How often the kernel transferred less than it was asked to. */
    uint64_t short_transfers;

    /* How often a request was retried (EINTR, EAGAIN, engine busy). */
    uint64_t retries;

    /* The most requests in flight at once. */
    uint64_t max_in_flight;

    /* How long the successful requests took. */
    uint64_t latency[DIRECT_QUEUE_LATENCY_BUCKETS];

    /* The slowest of them, in microseconds, and its offset in the file. */
    uint64_t slowest_us;
    uint64_t slowest_offset;
} DirectQueueStats;

typedef struct DirectQueue DirectQueue;

/**
 * direct_queue_new:
 * @config: the configuration
 * @errp: pointer to a NULL-initialized error object
 *
 * With DIRECT_IO_ENGINE_AUTO this fails only if not even the synchronous
 * engine works; direct_queue_engine_name() tells which engine is in use and
 * direct_queue_engine_reason() why no preferred engine is.
 *
 * Returns: a queue for direct_queue_free(); NULL on failure
 */
DirectQueue *direct_queue_new(const DirectQueueConfig *config, Error **errp);

/**
 * direct_queue_write:
 * @q: the queue
 * @buf: the data, aligned to the limits' mem_align.  The queue uses it until
 *       the next direct_queue_drain() or direct_queue_free() returns, whatever
 *       this function returns.
 * @len: bytes, a multiple of the limits' offset_align; 0 does nothing
 * @offset: file offset in bytes, a multiple of offset_align
 * @errp: pointer to a NULL-initialized error object
 *
 * Start writing @buf.  Waits while the queue is full.
 *
 * The memory may change while it is being written, as a running guest's
 * does; the file then gets any mixture of old and new data.  Some storage
 * computes a checksum first and then refuses data that has changed (OpenZFS,
 * disks with protection information): the write is repeated from a copy.
 *
 * Returns: true if the request was accepted.  It can still fail, which the
 * next call or the drain reports.  False if the queue has an error, from this
 * request or an earlier one, or was cancelled.
 */
bool direct_queue_write(DirectQueue *q, const void *buf, size_t len,
                        uint64_t offset, Error **errp);

/**
 * direct_queue_read:
 * @q: the queue
 * @buf: where to put the data, as in direct_queue_write().  Its content is
 *       undefined until a drain has returned true.
 * @len: bytes, a multiple of the limits' offset_align; 0 does nothing
 * @offset: file offset in bytes, a multiple of offset_align
 * @errp: pointer to a NULL-initialized error object
 *
 * Start reading into @buf.  If the file ends before @offset + @len, that is an
 * error, which says where the file ends and how much is missing.  This also
 * applies to a last block that the file fills only in part: read it through a
 * buffered descriptor.
 *
 * Returns: as direct_queue_write()
 */
bool direct_queue_read(DirectQueue *q, void *buf, size_t len,
                       uint64_t offset, Error **errp);

/**
 * direct_queue_wait:
 * @q: the queue
 * @errp: pointer to a NULL-initialized error object
 *
 * Wait until at least one of the requests in flight is done.  For a caller that
 * has nothing to transfer but needs to notice errors, and to keep the
 * statistics current.  Returns at once if nothing is in flight.
 *
 * Returns: as direct_queue_write()
 */
bool direct_queue_wait(DirectQueue *q, Error **errp);

/**
 * direct_queue_busy:
 * @q: the queue
 *
 * Returns: whether there are requests that have not ended yet.
 */
bool direct_queue_busy(const DirectQueue *q);

/**
 * direct_queue_drain:
 * @q: the queue
 * @errp: pointer to a NULL-initialized error object
 *
 * Wait until nothing is in flight.  Then the caller may reuse all buffers,
 * also if this returns false.
 *
 * Returns: true if all requests since the queue was created were transferred in
 * full; false if one failed or the queue was cancelled.
 */
bool direct_queue_drain(DirectQueue *q, Error **errp);

/**
 * direct_queue_cancel:
 * @q: the queue
 *
 * Make the queue stop: requests not yet given to the kernel are dropped, and
 * all later calls fail with a message that says "cancelled".  Requests within
 * the kernel can't be called back; the drain still waits for them.
 *
 * May be called from any thread, or from a signal handler.  It does not wait.
 */
void direct_queue_cancel(DirectQueue *q);

/**
 * direct_queue_get_stats:
 * @q: the queue
 * @stats: filled in
 *
 * May be called from any thread.  While the queue works, each figure is exact
 * by itself, but they may be of slightly different moments.  After a drain they
 * are exact.
 */
void direct_queue_get_stats(DirectQueue *q, DirectQueueStats *stats);

/**
 * direct_queue_engine_name:
 * @q: the queue
 *
 * Returns: "io_uring", "linux-aio" or "sync"; a constant.  Any thread.
 */
const char *direct_queue_engine_name(const DirectQueue *q);

/**
 * direct_queue_engine_reason:
 * @q: the queue
 *
 * Why the automatic choice is not the preferred engine, for example "io_uring:
 * not permitted (by the sysctl kernel.io_uring_disabled, or by a seccomp
 * filter); linux-aio: not built in".
 *
 * Returns: a string that lives as long as the queue; NULL if the preferred
 * engine is in use or the engine was asked for by name.  Any thread.
 */
const char *direct_queue_engine_reason(const DirectQueue *q);

/**
 * direct_queue_free:
 * @q: the queue or NULL
 *
 * Wait until nothing is in flight and free the queue.  Requests not yet given
 * to the kernel are dropped, and so are errors: call direct_queue_drain() first
 * if they matter.
 */
void direct_queue_free(DirectQueue *q);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(DirectQueue, direct_queue_free)

#endif /* QIO_DIRECT_QUEUE_H */
