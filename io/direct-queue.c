/*
 * Direct queue: the core
 *
 * Which file holds what:
 *
 *   include/io/direct-queue.h  the interface, and the queue's guarantees
 *   io/direct-queue.c          this file: requests from start to end, short
 *                              transfers, the error, the choice of an engine
 *   io/direct-queue-int.h      the interface between core and engines
 *   io/direct-queue-sync.c     engine: pread() and pwrite()
 *   io/direct-queue-uring.c    engine: io_uring, where there is liburing
 *   io/direct-queue-aio.c      engine: linux-aio, where there is libaio
 *   tests/unit/test-direct-queue*.c
 *
 * A request is always in one of three places:
 *
 *   q->unused  <------------------ request_end() <----+
 *      |                                              |
 *      | direct_queue_transfer()                      |
 *      v                                              |
 *   q->ready ----- start_request() ----> in flight ---+-- request_result()
 *      ^                                              |
 *      +-- short, interrupted, refused or copied -----+
 *
 * Requests "in flight" are with the engine; the core only counts them.  After
 * an error, requests leave q->ready only to end.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/direct-io.h"
#include "qemu/host-utils.h"
#include "qemu/memalign.h"
#include "qemu/stats64.h"
#include "qapi/error.h"
#include "direct-queue-int.h"
#include "trace.h"

/* Far above any opt_transfer, far below the limit of one system call. */
#define REQUEST_SIZE_MAX    (1u << 30)

/* After this many refusals, a millisecond apart, EAGAIN is an error. */
#define REFUSALS_MAX        1000
#define REFUSAL_WAIT_US     1000

struct DirectQueue {
    int fd;
    char *name;
    DirectIOLimits limits;
    uint32_t align;             /* of offsets where a transfer may continue */
    size_t request_size;

    const DirectQueueEngine *ops;
    void *state;
    char *reason;

    DirectRequest *requests;
    QSIMPLEQ_HEAD(, DirectRequest) unused;
    QSIMPLEQ_HEAD(, DirectRequest) ready;
    unsigned in_flight;
    /* Total bytes of the requests that are not in @unused, and the limit. */
    uint64_t bytes_queued;
    uint64_t bytes_max;

    /* The first error, set once. */
    Error *error;

    /* Shared with other threads: atomic, or Stat64. */
    bool cancelled;
    Stat64 bytes_read;
    Stat64 bytes_written;
    Stat64 requests_ended;
    Stat64 short_transfers;
    Stat64 retries;
    Stat64 max_in_flight;
    Stat64 latency[DIRECT_QUEUE_LATENCY_BUCKETS];
    Stat64 slowest_us;
    Stat64 slowest_offset;
};

/* The error */

/* Keep @msg (freed here) as the queue's error if it is the first. */
static void queue_fail(DirectQueue *q, char *msg)
{
    trace_direct_queue_error(q, msg);
    if (!q->error) {
        error_setg(&q->error, "%s", msg);
    }
    g_free(msg);
}

/* Explain @err for a transfer, and how to mend it. */
static char *explain(DirectQueue *q, const DirectRequest *req, int err)
{
    switch (err) {
    case ENOSPC:
        return g_strdup("no space left on the file system or device");
    case EFBIG:
        return g_strdup("the file would become larger than allowed (by "
                        "RLIMIT_FSIZE, or by its file system)");
    case EBADF:
        return g_strdup_printf("the descriptor is not open for %s",
                               req->is_write ? "writing" : "reading");
    case EINVAL:
        return g_strdup_printf("the file system or device refuses it, though "
                               "memory is aligned to %" PRIu32 " and offset "
                               "and length to %" PRIu32 " bytes",
                               q->limits.mem_align, q->limits.offset_align);
    default:
        return g_strdup(strerror(err));
    }
}

static void request_fail(DirectQueue *q, const DirectRequest *req, int err)
{
    g_autofree char *cause = explain(q, req, err);

    queue_fail(q, g_strdup_printf("%s: cannot %s %zu bytes at offset %" PRIu64
                                  ": %s", q->name,
                                  req->is_write ? "write" : "read",
                                  req->len, req->offset, cause));
}

/*
 * Where the file ends, as far as known from @req getting only @bytes.  With
 * several requests in flight, the first to fail may lie far behind the end.
 */
static uint64_t file_end(DirectQueue *q, const DirectRequest *req,
                         size_t bytes)
{
    uint64_t end = req->offset + bytes;
    struct stat st;

    if (fstat(q->fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size < end) {
        end = st.st_size;
    }
    return end;
}

/* @req got only @bytes, and cannot be continued from there. */
static void request_fail_short(DirectQueue *q, const DirectRequest *req,
                               size_t bytes)
{
    uint64_t end;

    if (req->is_write) {
        queue_fail(q, g_strdup_printf("%s: cannot write %zu bytes at offset %"
                                      PRIu64 ": only %zu of them were written",
                                      q->name, req->len, req->offset, bytes));
    } else {
        end = file_end(q, req, bytes);
        queue_fail(q, g_strdup_printf("%s: the file ended at offset %" PRIu64
                                      ", needed %" PRIu64 " more bytes",
                                      q->name, end,
                                      req->offset + req->len - end));
    }
}

/* Check for a cancel.  Returns whether the queue may continue. */
static bool queue_ok(DirectQueue *q)
{
    if (!q->error && qatomic_read(&q->cancelled)) {
        queue_fail(q, g_strdup_printf("%s: cancelled", q->name));
    }
    return !q->error;
}

static bool queue_report(DirectQueue *q, Error **errp)
{
    if (queue_ok(q)) {
        return true;
    }
    error_propagate(errp, error_copy(q->error));
    return false;
}

/* Requests */

static void count_latency(DirectQueue *q, const DirectRequest *req)
{
    uint64_t us = MAX(g_get_monotonic_time() - req->start_us, 0);
    unsigned bucket = us < 2 ? 0 : 63 - clz64(us);

    bucket = MIN(bucket, DIRECT_QUEUE_LATENCY_BUCKETS - 1);
    stat64_add(&q->latency[bucket], 1);
    if (us >= stat64_get(&q->slowest_us)) {
        stat64_max(&q->slowest_us, us);
        /* Only this thread writes, so minimum and maximum store the value. */
        stat64_min(&q->slowest_offset, req->first_offset);
        stat64_max(&q->slowest_offset, req->first_offset);
    }
    trace_direct_queue_complete(q, req->is_write, req->first_offset, us);
}

/* @bytes of @req have been transferred; advance @req to the rest. */
static void request_advance(DirectQueue *q, DirectRequest *req, size_t bytes)
{
    stat64_add(req->is_write ? &q->bytes_written : &q->bytes_read, bytes);
    req->buf += bytes;
    req->offset += bytes;
    req->len -= bytes;
}

static void request_end(DirectQueue *q, DirectRequest *req)
{
    stat64_add(&q->requests_ended, 1);
    qemu_vfree(req->copy);
    /* The total length: bytes transferred, and, after an error, the rest. */
    q->bytes_queued -= req->offset - req->first_offset + req->len;
    QSIMPLEQ_INSERT_HEAD(&q->unused, req, next);
}

/* Puts @req back, ahead of requests that have not begun. */
static void request_again(DirectQueue *q, DirectRequest *req)
{
    QSIMPLEQ_INSERT_HEAD(&q->ready, req, next);
}

static void request_retry(DirectQueue *q, DirectRequest *req, int err)
{
    stat64_add(&q->retries, 1);
    trace_direct_queue_retry(q, req->is_write, req->offset, req->len, err);
    if (err == EAGAIN) {
        /*
         * An engine may lack resources until a request of another queue
         * completes: do this request synchronously, to its end.  If that is
         * refused, too, all that helps is to wait.
         */
        if (req->refusals == REFUSALS_MAX) {
            request_fail(q, req, err);
            request_end(q, req);
            return;
        }
        if (req->refusals > 0) {
            g_usleep(REFUSAL_WAIT_US);
        }
        req->refusals++;
        req->use_sync = true;
    }
    request_again(q, req);
}

/*
 * @req got @bytes, fewer than it needs.
 *
 * It continues from the last aligned position: with O_DIRECT a transfer may end
 * in the middle of a block (where the file ends, or where space ran out), but
 * none may begin there, so the bytes behind that position are transferred
 * again.  If there is no such position, the next attempt shows the reason: an
 * error or the end of the file.  If it does not, the queue gives up.
 */
static void request_short(DirectQueue *q, DirectRequest *req, size_t bytes)
{
    size_t usable = QEMU_ALIGN_DOWN(bytes, q->align);

    stat64_add(&q->short_transfers, 1);
    trace_direct_queue_short(q, req->is_write, req->offset, req->len, bytes);
    if (bytes == 0 || (usable == 0 && req->stalled)) {
        request_fail_short(q, req, bytes);
        request_end(q, req);
        return;
    }
    req->stalled = usable == 0;
    request_advance(q, req, usable);
    request_again(q, req);
}

/*
 * Whether a write may have failed with @err because its memory was changed
 * meanwhile, so that it did not match the checksum that was taken before:
 * EILSEQ comes from disks with protection information, EIO from OpenZFS 2.3.
 */
static bool is_checksum_error(DirectQueue *q, int err)
{
    g_autofree char *fs = direct_io_fs_name(q->fd);

    return err == EILSEQ || (err == EIO && g_str_equal(fs, "zfs"));
}

/*
 * If that may be why @req has failed with @err, tries again, once, with a copy
 * of its memory.  Returns false if not.
 */
static bool request_copy(DirectQueue *q, DirectRequest *req, int err)
{
    if (!req->is_write || req->copy || !is_checksum_error(q, err)) {
        return false;
    }
    req->copy = qemu_try_memalign(MAX(q->limits.mem_align, sizeof(void *)),
                                  req->len);
    if (!req->copy) {
        return false;
    }
    stat64_add(&q->retries, 1);
    trace_direct_queue_retry(q, req->is_write, req->offset, req->len, err);
    memcpy(req->copy, req->buf, req->len);
    req->buf = req->copy;
    request_again(q, req);
    return true;
}

/* The engine is done with @req: decide how to proceed. */
static void request_result(DirectQueue *q, DirectRequest *req, ssize_t result)
{
    /* A larger result would mean that memory was overwritten. */
    assert(result < 0 || result <= req->len);

    if (result == -EINTR || result == -EAGAIN) {
        request_retry(q, req, -result);
    } else if (result < 0) {
        if (!request_copy(q, req, -result)) {
            request_fail(q, req, -result);
            request_end(q, req);
        }
    } else if (result < req->len) {
        request_short(q, req, result);
    } else {
        request_advance(q, req, result);
        count_latency(q, req);
        request_end(q, req);
    }
}

static void assert_aligned(DirectQueue *q, const void *buf, size_t len,
                           uint64_t offset)
{
    assert(QEMU_PTR_IS_ALIGNED(buf, q->limits.mem_align));
    assert(QEMU_IS_ALIGNED(len, q->limits.offset_align));
    assert(QEMU_IS_ALIGNED(offset, q->limits.offset_align));
}

/*
 * Give @req, the head of q->ready, to the engine.
 *
 * Returns: false if @req must wait for another request to complete
 */
static bool start_request(DirectQueue *q, DirectRequest *req)
{
    DirectSubmit answer = DIRECT_SUBMIT_DONE;
    ssize_t result = 0;

    assert_aligned(q, req->buf, req->len, req->offset);
    if (!req->start_us) {
        req->start_us = g_get_monotonic_time();
    }
    trace_direct_queue_submit(q, req->is_write, req->offset, req->len,
                              q->in_flight);
    if (req->use_sync) {
        result = direct_queue_transfer_sync(q->fd, req);
    } else {
        answer = q->ops->submit(q->state, req, &result);
    }

    if (answer == DIRECT_SUBMIT_BUSY) {
        stat64_add(&q->retries, 1);
        trace_direct_queue_retry(q, req->is_write, req->offset, req->len,
                                 EBUSY);
        req->use_sync = q->in_flight == 0;
        return req->use_sync;
    }
    stat64_max(&q->max_in_flight, q->in_flight + 1);
    QSIMPLEQ_REMOVE_HEAD(&q->ready, next);
    if (answer == DIRECT_SUBMIT_QUEUED) {
        q->in_flight++;
    } else {
        request_result(q, req, result);
    }
    return true;
}

/* Start as many requests as possible; after an error, drop them. */
static void start_requests(DirectQueue *q)
{
    DirectRequest *req;

    while ((req = QSIMPLEQ_FIRST(&q->ready))) {
        if (!queue_ok(q)) {
            QSIMPLEQ_REMOVE_HEAD(&q->ready, next);
            request_end(q, req);
        } else if (!start_request(q, req)) {
            break;
        }
    }
}

/*
 * Start requests that are ready, then reap those that are done.  With @wait, at
 * least one is reaped if any is in flight.
 */
static void queue_run(DirectQueue *q, bool wait)
{
    DirectRequest *req;
    ssize_t result;

    start_requests(q);
    while (q->in_flight > 0 &&
           q->ops->reap(q->state, wait, &req, &result)) {
        q->in_flight--;
        request_result(q, req, result);
        wait = false;
    }
}

bool direct_queue_busy(const DirectQueue *q)
{
    return q->in_flight > 0 || !QSIMPLEQ_EMPTY(&q->ready);
}

static void queue_wait_all(DirectQueue *q)
{
    trace_direct_queue_drain(q, q->in_flight);
    while (direct_queue_busy(q)) {
        queue_run(q, true);
    }
}

/*
 * Waits until a request is unused, and there is room for @len bytes.
 *
 * Returns: NULL after an error; others in flight may never complete
 */
static DirectRequest *take_request(DirectQueue *q, size_t len)
{
    DirectRequest *req;

    while (!(req = QSIMPLEQ_FIRST(&q->unused)) ||
           (q->bytes_queued > 0 && q->bytes_queued + len > q->bytes_max)) {
        queue_run(q, true);
        if (!queue_ok(q)) {
            return NULL;
        }
    }
    QSIMPLEQ_REMOVE_HEAD(&q->unused, next);
    q->bytes_queued += len;
    memset(req, 0, sizeof(*req));
    req->len = len;
    return req;
}

static bool direct_queue_transfer(DirectQueue *q, bool is_write, uint8_t *buf,
                                  size_t len, uint64_t offset, Error **errp)
{
    assert_aligned(q, buf, len, offset);
    if (offset > INT64_MAX || len > INT64_MAX - offset) {
        /* This is not a bug of the caller: offsets also come from files. */
        queue_fail(q, g_strdup_printf("%s: cannot %s %zu bytes at offset %"
                                      PRIu64 ": no file is that large",
                                      q->name, is_write ? "write" : "read",
                                      len, offset));
    }
    while (len > 0 && queue_ok(q)) {
        DirectRequest *req = take_request(q, MIN(len, q->request_size));

        if (!req) {
            break;
        }
        req->is_write = is_write;
        req->buf = buf;
        req->offset = req->first_offset = offset;
        buf += req->len;
        offset += req->len;
        len -= req->len;
        QSIMPLEQ_INSERT_TAIL(&q->ready, req, next);
        /* This also reaps requests, so that errors are noticed early. */
        queue_run(q, false);
    }
    return queue_report(q, errp);
}

/* The interface */

bool direct_queue_write(DirectQueue *q, const void *buf, size_t len,
                        uint64_t offset, Error **errp)
{
    return direct_queue_transfer(q, true, (uint8_t *)buf, len, offset, errp);
}

bool direct_queue_read(DirectQueue *q, void *buf, size_t len,
                       uint64_t offset, Error **errp)
{
    return direct_queue_transfer(q, false, buf, len, offset, errp);
}

bool direct_queue_wait(DirectQueue *q, Error **errp)
{
    queue_run(q, true);
    return queue_report(q, errp);
}

bool direct_queue_drain(DirectQueue *q, Error **errp)
{
    queue_wait_all(q);
    return queue_report(q, errp);
}

void direct_queue_cancel(DirectQueue *q)
{
    qatomic_set(&q->cancelled, true);
}

const char *direct_queue_engine_name(const DirectQueue *q)
{
    return q->ops->name;
}

const char *direct_queue_engine_reason(const DirectQueue *q)
{
    return q->reason;
}

void direct_queue_get_stats(DirectQueue *q, DirectQueueStats *stats)
{
    int i;

    stats->bytes_read = stat64_get(&q->bytes_read);
    stats->bytes_written = stat64_get(&q->bytes_written);
    stats->requests = stat64_get(&q->requests_ended);
    stats->short_transfers = stat64_get(&q->short_transfers);
    stats->retries = stat64_get(&q->retries);
    stats->max_in_flight = stat64_get(&q->max_in_flight);
    stats->slowest_us = stat64_get(&q->slowest_us);
    stats->slowest_offset = stat64_get(&q->slowest_offset);
    for (i = 0; i < DIRECT_QUEUE_LATENCY_BUCKETS; i++) {
        stats->latency[i] = stat64_get(&q->latency[i]);
    }
}

/* Creating and freeing a queue */

#ifdef CONFIG_DIRECT_QUEUE_URING
#define ENGINE_URING (&direct_queue_engine_uring)
#else
#define ENGINE_URING NULL
#endif

#ifdef CONFIG_DIRECT_QUEUE_AIO
#define ENGINE_AIO (&direct_queue_engine_aio)
#else
#define ENGINE_AIO NULL
#endif

/* NULL for engines that are not built in, and for AUTO */
static const DirectQueueEngine *const engines[DIRECT_IO_ENGINE__MAX] = {
    [DIRECT_IO_ENGINE_IO_URING] = ENGINE_URING,
    [DIRECT_IO_ENGINE_LINUX_AIO] = ENGINE_AIO,
    [DIRECT_IO_ENGINE_SYNC] = &direct_queue_engine_sync,
};

/* Open @engine for @q; on failure @errp is a phrase, see engine's open(). */
static bool open_engine(DirectQueue *q, const DirectQueueConfig *config,
                        DirectIoEngine engine, unsigned depth, Error **errp)
{
    const DirectQueueEngine *ops = engines[engine];

    if (!ops) {
        error_setg(errp, "not built in");
        return false;
    }
    if (!ops->open(config, depth, &q->state, errp)) {
        return false;
    }
    q->ops = ops;
    return true;
}

/* Open the first engine that works; keep the reason why others do not. */
static bool open_best_engine(DirectQueue *q, const DirectQueueConfig *config,
                             unsigned depth, Error **errp)
{
    g_autoptr(GString) reason = g_string_new(NULL);
    int engine;

    for (engine = DIRECT_IO_ENGINE_AUTO + 1;
         engine < DIRECT_IO_ENGINE__MAX; engine++) {
        Error *err = NULL;

        if (open_engine(q, config, engine, depth, &err)) {
            if (reason->len > 0) {
                q->reason = g_strdup(reason->str);
            }
            return true;
        }
        g_string_append_printf(reason, "%s%s: %s", reason->len ? "; " : "",
                               DirectIoEngine_str(engine),
                               error_get_pretty(err));
        error_free(err);
    }
    error_setg(errp, "%s: no engine for direct I/O works here: %s",
               config->name, reason->str);
    return false;
}

static DirectQueue *queue_alloc(const DirectQueueConfig *config,
                                unsigned depth)
{
    const DirectIOLimits *limits = &config->limits;
    DirectQueue *q = g_new0(DirectQueue, 1);
    unsigned i;

    assert(is_power_of_2(limits->mem_align) &&
           is_power_of_2(limits->offset_align) &&
           is_power_of_2(limits->opt_transfer));

    q->fd = config->fd;
    q->name = g_strdup(config->name);
    q->limits = *limits;
    q->align = MAX(limits->mem_align, limits->offset_align);
    q->request_size = MAX(MIN(limits->opt_transfer, REQUEST_SIZE_MAX),
                          q->align);
    assert(q->request_size <= REQUEST_SIZE_MAX);
    q->bytes_max = config->bytes ?:
                   (config->depth ? UINT64_MAX : DIRECT_QUEUE_BYTES_DEFAULT);

    QSIMPLEQ_INIT(&q->unused);
    QSIMPLEQ_INIT(&q->ready);
    q->requests = g_new0(DirectRequest, depth);
    for (i = 0; i < depth; i++) {
        QSIMPLEQ_INSERT_TAIL(&q->unused, &q->requests[i], next);
    }
    return q;
}

static void queue_dispose(DirectQueue *q)
{
    error_free(q->error);
    g_free(q->requests);
    g_free(q->reason);
    g_free(q->name);
    g_free(q);
}

/* Create a queue with engine @ops, or with @config's engine if it is NULL. */
static DirectQueue *queue_new(const DirectQueueConfig *config,
                              const DirectQueueEngine *ops, Error **errp)
{
    unsigned depth = config->depth ?: DIRECT_QUEUE_DEPTH_DEFAULT;
    DirectQueue *q;
    Error *err = NULL;
    bool ok;

    if (depth > DIRECT_QUEUE_DEPTH_MAX) {
        error_setg(errp, "%s: a depth of %u requests is too much, the limit "
                   "is %d", config->name, depth, DIRECT_QUEUE_DEPTH_MAX);
        return NULL;
    }
    q = queue_alloc(config, depth);
    if (ops) {
        q->ops = ops;
        ok = ops->open(config, depth, &q->state, errp);
    } else if (config->engine == DIRECT_IO_ENGINE_AUTO) {
        ok = open_best_engine(q, config, depth, errp);
    } else {
        ok = open_engine(q, config, config->engine, depth, &err);
        if (!ok) {
            error_setg(errp, "%s: the %s engine for direct I/O does not work "
                       "here: %s", config->name,
                       DirectIoEngine_str(config->engine),
                       error_get_pretty(err));
            error_free(err);
        }
    }
    if (!ok) {
        queue_dispose(q);
        return NULL;
    }
    trace_direct_queue_new(q, q->name, q->ops->name, q->reason ?: "",
                           depth, q->limits.mem_align, q->limits.offset_align,
                           q->request_size);
    return q;
}

DirectQueue *direct_queue_new(const DirectQueueConfig *config, Error **errp)
{
    return queue_new(config, NULL, errp);
}

DirectQueue *direct_queue_new_with_engine(const DirectQueueConfig *config,
                                          const DirectQueueEngine *ops,
                                          Error **errp)
{
    return queue_new(config, ops, errp);
}

void direct_queue_free(DirectQueue *q)
{
    if (!q) {
        return;
    }
    direct_queue_cancel(q);
    queue_wait_all(q);
    q->ops->close(q->state);
    queue_dispose(q);
}
