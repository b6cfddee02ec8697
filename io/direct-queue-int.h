/*
 * Direct queue: what the core, its engines and their tests share
 *
 * The core (direct-queue.c) implements the interface: it splits transfers into
 * requests, continues short ones, keeps the first error and counts.  An engine
 * (direct-queue-*.c) only submits requests to the kernel, one by one, and
 * returns them with their results.  No type of the kernel's interface is used
 * outside the engine's file.
 *
 * Only the queue's thread calls the functions of an engine.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QIO_DIRECT_QUEUE_INT_H
#define QIO_DIRECT_QUEUE_INT_H

#include "io/direct-queue.h"
#include "qemu/queue.h"

/*
 * DirectRequest: a transfer of at most the limits' opt_transfer.
 *
 * The first four members describe the rest of the transfer, which is all an
 * engine needs.  The core changes them only between a completion and the next
 * submission.
 */
typedef struct DirectRequest DirectRequest;
struct DirectRequest {
    uint8_t *buf;
    size_t len;                 /* 0 < len <= INT_MAX */
    uint64_t offset;            /* offset + len <= INT64_MAX */
    bool is_write;

    /* For the engine, from submission to completion */
    union {
        void *opaque;
        uint64_t number;
    } engine;

    /* For the core */
    uint64_t first_offset;      /* before any short transfer */
    int64_t start_us;           /* of the first submission */
    unsigned refusals;          /* how often EAGAIN came back */
    bool stalled;               /* the last transfer moved no byte */
    bool use_sync;              /* the engine refused it */
    uint8_t *copy;              /* what is written instead of the memory */
    QSIMPLEQ_ENTRY(DirectRequest) next;
};

typedef enum DirectSubmit {
    /* The transfer has ended; *result is its result. */
    DIRECT_SUBMIT_DONE,

    /* The kernel has the request; reap() will return it, once. */
    DIRECT_SUBMIT_QUEUED,

    /*
     * The kernel cannot take the request now; nothing has happened.  The core
     * retries when another request has completed, or transfers synchronously
     * if none is in flight.
     */
    DIRECT_SUBMIT_BUSY,
} DirectSubmit;

typedef struct DirectQueueEngine {
    /* One word, for messages and scripts */
    const char *name;

    /*
     * Prepare for up to @depth requests in flight on @config's descriptor.
     * @config belongs to the caller and is valid only during the call.  On
     * success, @state is set to what the other functions are passed; it may
     * stay NULL.  On failure, everything is freed, and @errp says what this
     * host lacks and what to do about it, as a phrase without the engine's
     * name: it becomes part of a list of reasons.  If this host cannot do such
     * requests at all, open() must fail, rather than each request.
     */
    bool (*open)(const DirectQueueConfig *config, unsigned depth,
                 void **state, Error **errp);

    /* Free what open() allocated.  Nothing is in flight. */
    void (*close)(void *state);

    /*
     * Start @req.  At most depth requests are in flight at a time.  @req keeps
     * its address until it is returned.  @result is set only with
     * DIRECT_SUBMIT_DONE, to a number of bytes, at most @req's length, or to a
     * negative errno value.  All errors are results: the core decides which
     * of them to retry.
     */
    DirectSubmit (*submit)(void *state, DirectRequest *req, ssize_t *result);

    /*
     * Return one completed request in @req, and its result in @result, as
     * submit() does.  Called only while requests are in flight.  If none has
     * completed yet, wait for one if @wait, else return false at once.  With
     * @wait this always returns true: it handles interruptions itself.  NULL if
     * submit() never queues.
     */
    bool (*reap)(void *state, bool wait, DirectRequest **req, ssize_t *result);
} DirectQueueEngine;

/*
 * The engines.  The first two are built only with CONFIG_DIRECT_QUEUE_URING
 * and CONFIG_DIRECT_QUEUE_AIO.
 */
extern const DirectQueueEngine direct_queue_engine_uring;
extern const DirectQueueEngine direct_queue_engine_aio;
extern const DirectQueueEngine direct_queue_engine_sync;

/*
 * Transfer @req with one system call, in this thread.  Used by the synchronous
 * engine, and by others as a fallback.
 *
 * Returns: bytes or a negative errno value
 */
ssize_t direct_queue_transfer_sync(int fd, const DirectRequest *req);

/*
 * As direct_queue_new(), but with the engine @ops in place of @config's, for
 * tests in which the kernel returns errors.
 */
DirectQueue *direct_queue_new_with_engine(const DirectQueueConfig *config,
                                          const DirectQueueEngine *ops,
                                          Error **errp);

#endif /* QIO_DIRECT_QUEUE_INT_H */
