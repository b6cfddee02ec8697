/*
 * Direct queue: the linux-aio engine
 *
 * This is the older of Linux's asynchronous interfaces.  It is asynchronous
 * only with O_DIRECT: on other descriptors io_submit() returns when the
 * transfer is over, which is slow but correct.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "direct-queue-int.h"

#include <libaio.h>

typedef struct AioState {
    io_context_t context;
    int fd;
    unsigned depth;

    /* Completions fetched from the kernel, not reaped yet: [next, fetched). */
    struct io_event *events;
    unsigned next, fetched;
} AioState;

static void aio_explain(int err, Error **errp)
{
    switch (err) {
    case ENOSYS:
        error_setg(errp, "not available in this kernel or sandbox");
        break;
    case EPERM:
    case EACCES:
        error_setg(errp, "not permitted (by a seccomp filter)");
        break;
    case EAGAIN:
        error_setg(errp, "all requests are in use (raise the sysctl "
                   "fs.aio-max-nr, or lower the depth)");
        break;
    default:
        error_setg(errp, "%s", strerror(err));
        break;
    }
}

/*
 * Fetch completions.  Wait for at least one until @timeout, or indefinitely if
 * it is NULL.  Returns how many were fetched, or -errno.
 */
static int aio_fetch(AioState *s, struct timespec *timeout)
{
    int ret;

    do {
        ret = io_getevents(s->context, 1, s->depth, s->events, timeout);
    } while (ret == -EINTR);
    s->next = 0;
    s->fetched = MAX(ret, 0);
    return ret;
}

static void aio_dispose(AioState *s)
{
    if (s->context) {
        io_destroy(s->context);
    }
    g_free(s->events);
    g_free(s);
}

static bool aio_open(const DirectQueueConfig *config, unsigned depth,
                     void **state, Error **errp)
{
    AioState *s = g_new0(AioState, 1);
    struct timespec short_while = { 0, 1 };
    int ret;

    s->fd = config->fd;
    s->depth = depth;
    s->events = g_new0(struct io_event, depth);
    ret = io_setup(depth, &s->context);
    if (ret == 0) {
        /*
         * A seccomp filter may allow one of the system calls but not the
         * others.  With a timeout of 0 libaio would not enter the kernel.
         */
        ret = aio_fetch(s, &short_while);
    }
    if (ret == 0) {
        ret = io_submit(s->context, 0, NULL);
    }
    if (ret < 0) {
        aio_explain(-ret, errp);
        aio_dispose(s);
        return false;
    }
    *state = s;
    return true;
}

static void aio_close(void *state)
{
    aio_dispose(state);
}

static DirectSubmit aio_submit(void *state, DirectRequest *req,
                               ssize_t *result)
{
    AioState *s = state;
    struct iocb iocb, *list = &iocb;
    int ret;

    /* The kernel copies @iocb; a completion only returns the pointer @req. */
    if (req->is_write) {
        io_prep_pwrite(&iocb, s->fd, req->buf, req->len, req->offset);
    } else {
        io_prep_pread(&iocb, s->fd, req->buf, req->len, req->offset);
    }
    iocb.data = req;

    ret = io_submit(s->context, 1, &list);
    if (ret == 1) {
        return DIRECT_SUBMIT_QUEUED;
    }
    if (ret == 0 || ret == -EAGAIN) {
        return DIRECT_SUBMIT_BUSY;
    }
    *result = ret;
    return DIRECT_SUBMIT_DONE;
}

static bool aio_reap(void *state, bool wait, DirectRequest **req,
                     ssize_t *result)
{
    AioState *s = state;
    struct io_event *event;

    if (s->next == s->fetched) {
        struct timespec now = { 0, 0 };
        int ret = aio_fetch(s, wait ? NULL : &now);

        /* It worked in aio_open(), and the arguments are valid. */
        assert(ret >= 0);
        if (ret == 0) {
            return false;
        }
    }
    event = &s->events[s->next++];
    *req = event->data;
    /* libaio declares res as unsigned. */
    *result = (long)event->res;
    return true;
}

const DirectQueueEngine direct_queue_engine_aio = {
    .name = "linux-aio",
    .open = aio_open,
    .close = aio_close,
    .submit = aio_submit,
    .reap = aio_reap,
};
