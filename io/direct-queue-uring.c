/*
 * Direct queue: the io_uring engine
 *
 * Each request is one submission.  A ring belongs to one queue, and so to one
 * thread.  Neither files nor memory are registered: with requests of a
 * megabyte that gives no measurable gain, and registered memory would count
 * against RLIMIT_MEMLOCK.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "direct-queue-int.h"
#include "trace.h"

#include <liburing.h>

/* How long to wait if the kernel lacks memory even for a submission. */
#define NO_MEMORY_WAIT_US   1000

/*
 * The kernel hands requests that would block, such as a write into a hole of a
 * file, to threads of its own.  It has been seen (Linux 6.18) to strand such
 * requests, with no thread at all, until another one is submitted.  So after
 * each second without a completion a no-op is submitted.  A disk may really
 * take that long, so the number of no-ops in flight is limited.
 */
#define NUDGE_AFTER_S       1
#define NUDGES_MAX          4

typedef struct UringState {
    struct io_uring ring;
    int fd;
    unsigned nudges;            /* no-ops in flight */
} UringState;

/* Explain why io_uring is not available; mostly it is disabled on purpose. */
static void uring_explain(int err, Error **errp)
{
    switch (err) {
    case ENOSYS:
        error_setg(errp, "not available in this kernel or sandbox");
        break;
    case EPERM:
    case EACCES:
        error_setg(errp, "not permitted (by the sysctl "
                   "kernel.io_uring_disabled, or by a seccomp filter)");
        break;
    case ENOMEM:
        error_setg(errp, "not enough memory may be locked (raise "
                   "RLIMIT_MEMLOCK, or lower the depth)");
        break;
    default:
        error_setg(errp, "%s", strerror(err));
        break;
    }
}

/* The operations used here are newer than io_uring itself. */
static bool uring_has_operations(struct io_uring *ring, Error **errp)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool ok;

    if (!probe) {
        error_setg(errp, "this kernel's io_uring does not say what it can do; "
                   "Linux is older than 5.6, or a seccomp filter forbids it");
        return false;
    }
    ok = io_uring_opcode_supported(probe, IORING_OP_READ) &&
         io_uring_opcode_supported(probe, IORING_OP_WRITE);
    /* Not free(): liburing may have an allocator of its own. */
    io_uring_free_probe(probe);
    if (!ok) {
        error_setg(errp, "this kernel's io_uring cannot read and write; that "
                   "needs Linux 5.6 or later");
    }
    return ok;
}

/* A seccomp filter may allow creating a ring but not using it. */
static bool uring_try(struct io_uring *ring, Error **errp)
{
    struct io_uring_cqe *cqe;
    int ret;

    io_uring_prep_nop(io_uring_get_sqe(ring));
    do {
        ret = io_uring_submit_and_wait(ring, 1);
    } while (ret == -EINTR);
    if (ret >= 0) {
        ret = io_uring_peek_cqe(ring, &cqe);
    }
    if (ret < 0) {
        uring_explain(-ret, errp);
        return false;
    }
    io_uring_cqe_seen(ring, cqe);
    return true;
}

/*
 * io_uring does not return short transfers: it continues them by itself, from
 * where the file system left the position and the iterator.  FUSE (seen with
 * Linux 6.18) leaves one of these behind and the other ahead of what its server
 * accepted, so wrong bytes would end up in the file, and success would be
 * reported.  No flag turns this off.  Few servers do short writes, but there is
 * no way to tell which.
 */
static bool uring_suits(int fd, Error **errp)
{
    g_autofree char *fs = direct_io_fs_name(fd);

    if (g_str_equal(fs, "fuse")) {
        error_setg(errp, "not safe on FUSE, where after a short write the "
                   "kernel continues at the wrong offset");
        return false;
    }
    return true;
}

static bool uring_open(const DirectQueueConfig *config, unsigned depth,
                       void **state, Error **errp)
{
    UringState *s;
    int ret;

    /* A user who asks for io_uring by name is expected to know the server. */
    if (config->engine == DIRECT_IO_ENGINE_AUTO &&
        !uring_suits(config->fd, errp)) {
        return false;
    }
    s = g_new0(UringState, 1);
    ret = io_uring_queue_init(depth, &s->ring, 0);
    if (ret < 0) {
        uring_explain(-ret, errp);
        g_free(s);
        return false;
    }
    if (!uring_has_operations(&s->ring, errp) || !uring_try(&s->ring, errp)) {
        io_uring_queue_exit(&s->ring);
        g_free(s);
        return false;
    }
    s->fd = config->fd;
    *state = s;
    return true;
}

static void uring_close(void *state)
{
    UringState *s = state;

    io_uring_queue_exit(&s->ring);
    g_free(s);
}

static DirectSubmit uring_submit(void *state, DirectRequest *req,
                                 ssize_t *result)
{
    UringState *s = state;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);

    if (!sqe) {
        return DIRECT_SUBMIT_BUSY;
    }
    if (req->is_write) {
        io_uring_prep_write(sqe, s->fd, req->buf, req->len, req->offset);
    } else {
        io_uring_prep_read(sqe, s->fd, req->buf, req->len, req->offset);
    }
    io_uring_sqe_set_data(sqe, req);

    /*
     * An error here says nothing about the request: it is in the ring, and
     * can't be taken back.  uring_reap() submits what remains there.
     */
    io_uring_submit(&s->ring);
    return DIRECT_SUBMIT_QUEUED;
}

/* Make the kernel process requests that it may have stranded. */
static void uring_nudge(UringState *s)
{
    struct io_uring_sqe *sqe;

    if (s->nudges == NUDGES_MAX) {
        return;
    }
    sqe = io_uring_get_sqe(&s->ring);
    if (sqe) {
        trace_direct_queue_uring_nudge(s, s->fd, s->nudges);
        io_uring_prep_nop(sqe);
        io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
        io_uring_sqe_set_data(sqe, NULL);
        s->nudges++;
        io_uring_submit(&s->ring);
    }
}

/* Wait for a completion, or, if that is not possible, for a short time. */
static void uring_wait(UringState *s)
{
    struct __kernel_timespec timeout = { .tv_sec = NUDGE_AFTER_S };
    struct io_uring_cqe *cqe;
    int ret = 0;

    if (io_uring_sq_ready(&s->ring) > 0) {
        ret = io_uring_submit(&s->ring);
    }
    if (ret >= 0) {
        ret = io_uring_wait_cqe_timeout(&s->ring, &cqe, &timeout);
    }
    if (ret == -ETIME) {
        uring_nudge(s);
    } else if (ret < 0 && ret != -EINTR) {
        /* The kernel is short of memory; retry later. */
        g_usleep(NO_MEMORY_WAIT_US);
    }
}

/* Return the next completion of a request, or NULL; drop those of nudges. */
static struct io_uring_cqe *uring_peek(UringState *s)
{
    struct io_uring_cqe *cqe;

    while (io_uring_peek_cqe(&s->ring, &cqe) == 0) {
        if (io_uring_cqe_get_data(cqe)) {
            return cqe;
        }
        s->nudges--;
        io_uring_cqe_seen(&s->ring, cqe);
    }
    return NULL;
}

static bool uring_reap(void *state, bool wait, DirectRequest **req,
                       ssize_t *result)
{
    UringState *s = state;
    struct io_uring_cqe *cqe;

    while (!(cqe = uring_peek(s))) {
        if (!wait) {
            return false;
        }
        uring_wait(s);
    }
    *req = io_uring_cqe_get_data(cqe);
    /*
     * Only the kernel cancels requests here, when it can't start a thread for
     * them because of a signal or a limit.
     */
    *result = cqe->res == -ECANCELED ? -EAGAIN : cqe->res;
    io_uring_cqe_seen(&s->ring, cqe);
    return true;
}

const DirectQueueEngine direct_queue_engine_uring = {
    .name = "io_uring",
    .open = uring_open,
    .close = uring_close,
    .submit = uring_submit,
    .reap = uring_reap,
};
