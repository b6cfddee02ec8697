/*
 * Direct queue: the synchronous engine
 *
 * A request is done when its submission returns, so nothing is ever in flight
 * and there is nothing to reap.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "direct-queue-int.h"

typedef struct SyncState {
    int fd;
} SyncState;

ssize_t direct_queue_transfer_sync(int fd, const DirectRequest *req)
{
    ssize_t ret;

#ifdef CONFIG_POSIX
    if (req->is_write) {
        ret = pwrite(fd, req->buf, req->len, req->offset);
    } else {
        ret = pread(fd, req->buf, req->len, req->offset);
    }
#else
    ret = -1;
    errno = ENOSYS;
#endif
    return ret < 0 ? -errno : ret;
}

static bool sync_open(const DirectQueueConfig *config, unsigned depth,
                      void **state, Error **errp)
{
#ifdef CONFIG_POSIX
    SyncState *s = g_new(SyncState, 1);

    s->fd = config->fd;
    *state = s;
    return true;
#else
    error_setg(errp, "this host has no pread() and pwrite()");
    return false;
#endif
}

static void sync_close(void *state)
{
    g_free(state);
}

static DirectSubmit sync_submit(void *state, DirectRequest *req,
                                ssize_t *result)
{
    SyncState *s = state;

    *result = direct_queue_transfer_sync(s->fd, req);
    return DIRECT_SUBMIT_DONE;
}

const DirectQueueEngine direct_queue_engine_sync = {
    .name = "sync",
    .open = sync_open,
    .close = sync_close,
    .submit = sync_submit,
};
