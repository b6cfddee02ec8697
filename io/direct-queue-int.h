/*
 * Direct queue: what the core, its engines and their tests share
 *
 * The core (direct-queue.c) knows what callers want: it cuts transfers into
 * requests, goes on after short ones, keeps the error and counts.  An engine
 * (direct-queue-*.c) only hands one request to the kernel and tells when the
 * kernel is through with it, and how that ended.  Nothing of the kernel's
 * interface gets beyond the engine's file.
 *
 * All slots of an engine are called by the queue's thread.
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
 * The first four members say what is left to do, all an engine needs.  The core
 * changes them only between a completion and the next submission.
 */
typedef struct DirectRequest DirectRequest;
struct DirectRequest {
    uint8_t *buf;
    size_t len;                 /* 0 < len <= INT_MAX */
    uint64_t offset;            /* offset + len <= INT64_MAX */
    bool is_write;

    /* The engine's own, from submission to completion. */
    union {
        void *opaque;
        uint64_t number;
    } engine;

    /* The core's. */
    uint64_t first_offset;      /* before any short transfer */
    int64_t start_us;           /* of the first submission */
    unsigned refusals;          /* how often EAGAIN came back */
    bool stalled;               /* the last transfer got nowhere */
    bool use_sync;              /* the engine refused it */
    QSIMPLEQ_ENTRY(DirectRequest) next;
};

typedef enum DirectSubmit {
    /* The transfer is over, *result says how. */
    DIRECT_SUBMIT_DONE,

    /* The kernel has it; reap() will deliver it, once. */
    DIRECT_SUBMIT_QUEUED,

    /*
     * The kernel can't take it now; nothing has happened.  The core tries
     * again when another request has come back, or does the transfer itself,
     * synchronously, if none is out.
     */
    DIRECT_SUBMIT_BUSY,
} DirectSubmit;

typedef struct DirectQueueEngine {
    /* For people, messages and scripts: a word. */
    const char *name;

    /*
     * Get ready for up to @depth requests at once on @config's descriptor.
     * @config is the caller's and goes away.  On success @state is what the
     * other slots get; it may be left NULL.  On failure nothing is left
     * behind, and @errp says what is missing here and what to do about it, as
     * a phrase without the engine's name: it ends up in a list of reasons.
     * It must fail if this host can't do requests, rather than each of them.
     */
    bool (*open)(const DirectQueueConfig *config, unsigned depth,
                 void **state, Error **errp);

    /* Nothing is in flight.  Free all that open() made. */
    void (*close)(void *state);

    /*
     * Start @req.  At most depth requests are out at a time.  @req stays where
     * it is until it is back.  @result, to be set only with
     * DIRECT_SUBMIT_DONE, is a number of bytes, at most @req's length, or a
     * negative errno value.  Errors of all kinds are results: the core knows
     * which of them to try again.
     */
    DirectSubmit (*submit)(void *state, DirectRequest *req, ssize_t *result);

    /*
     * Fetch one request that the kernel is through with: set @req to it and
     * @result as in submit().  Called only while there are requests out.  If
     * there is none to fetch yet, wait for one if @wait, else return false at
     * once.  With @wait the answer is always true: interruptions are handled
     * here.  NULL if submit() never queues.
     */
    bool (*reap)(void *state, bool wait, DirectRequest **req, ssize_t *result);
} DirectQueueEngine;

/*
 * The engines.  CONFIG_DIRECT_QUEUE_URING and CONFIG_DIRECT_QUEUE_AIO tell
 * whether the first two are built.
 */
extern const DirectQueueEngine direct_queue_engine_uring;
extern const DirectQueueEngine direct_queue_engine_aio;
extern const DirectQueueEngine direct_queue_engine_sync;

/*
 * Transfer @req with one system call, in this thread.  The synchronous
 * engine, and the way out of others.
 *
 * Returns: bytes or a negative errno value
 */
ssize_t direct_queue_transfer_sync(int fd, const DirectRequest *req);

/*
 * As direct_queue_new(), but with @ops whatever @config's engine says: the
 * door for tests that make the kernel fail.
 */
DirectQueue *direct_queue_new_with_engine(const DirectQueueConfig *config,
                                          const DirectQueueEngine *ops,
                                          Error **errp);

#endif /* QIO_DIRECT_QUEUE_INT_H */
