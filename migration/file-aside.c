/*
 * Restoring from a file: reads that do not hold the BQL
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "file-aside.h"
#include "file-aside-compat.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"

typedef struct Read {
    QIOChannel *ioc;
    char *buf;
    size_t len;
    /* valid if @positioned; the read must then return all of @len */
    off_t offset;
    bool positioned;
    ssize_t ret;
    Error *err;
} Read;

/* Changed and used by the main thread only */
static QIOChannel *aside;

void file_aside_begin(QIOChannel *ioc)
{
    aside = ioc;
}

void file_aside_end(void)
{
    aside = NULL;
}

static int do_read(void *opaque)
{
    Read *r = opaque;

    if (r->positioned) {
        r->ret = qio_channel_pread_all(r->ioc, r->buf, r->len, r->offset,
                                       &r->err);
    } else {
        r->ret = qio_channel_read(r->ioc, r->buf, r->len, &r->err);
    }
    return 0;
}

static ssize_t coroutine_mixed_read(Read *r, Error **errp)
{
    if (qemu_in_coroutine() && r->ioc == aside) {
        /* The channel must stay alive until the read ends */
        object_ref(OBJECT(r->ioc));
        file_aside_submit_co(do_read, r);
        object_unref(OBJECT(r->ioc));
    } else {
        do_read(r);
    }
    error_propagate(errp, r->err);
    return r->ret;
}

ssize_t file_aside_read(QIOChannel *ioc, char *buf, size_t len, Error **errp)
{
    Read r = { .ioc = ioc, .buf = buf, .len = len };

    return coroutine_mixed_read(&r, errp);
}

int file_aside_pread_all(QIOChannel *ioc, void *buf, size_t len, off_t offset,
                         Error **errp)
{
    Read r = { .ioc = ioc, .buf = buf, .len = len, .offset = offset,
               .positioned = true };

    return coroutine_mixed_read(&r, errp);
}
