/*
 * Saving to a file: deferring writes while the BQL is held
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "file-queue.h"
#include "qemu/iov.h"
#include "qemu/units.h"

/*
 * More than this is written at once.  Few machines have so much state outside
 * of RAM: those with a VFIO device, whose state may be larger than the host's
 * free memory.
 */
#define DEFER_MAX (64 * MiB)

/* In place of an offset: write at the channel's position */
#define AT_POSITION ((off_t)-1)

typedef struct Write {
    off_t offset;
    GByteArray *data;
} Write;

/* For the saving thread only; other threads see another @ioc, or none */
static struct {
    QIOChannel *ioc;
    bool defer;
    GQueue writes;
    /* Bytes in @writes */
    size_t kept;
} queue = { .writes = G_QUEUE_INIT };

static void write_free(Write *w)
{
    queue.kept -= w->data->len;
    g_byte_array_unref(w->data);
    g_free(w);
}

void file_queue_begin(QIOChannel *ioc)
{
    file_queue_drop();
    queue.defer = true;
    qatomic_set(&queue.ioc, ioc);
}

void file_queue_defer(bool defer)
{
    queue.defer = defer;
}

void file_queue_drop(void)
{
    Write *w;

    qatomic_set(&queue.ioc, NULL);
    while ((w = g_queue_pop_head(&queue.writes))) {
        write_free(w);
    }
}

static bool do_write(QIOChannel *ioc, const Write *w, Error **errp)
{
    const char *data = (const char *)w->data->data;

    if (w->offset == AT_POSITION) {
        return !qio_channel_write_all(ioc, data, w->data->len, errp);
    }
    return !qio_channel_pwrite_all(ioc, data, w->data->len, w->offset, errp);
}

/* Writes all deferred data; later writes are still deferred. */
static bool write_kept(QIOChannel *ioc, Error **errp)
{
    Write *w;
    bool ok = true;

    while (ok && (w = g_queue_pop_head(&queue.writes))) {
        ok = do_write(ioc, w, errp);
        write_free(w);
    }
    return ok;
}

bool file_queue_flush(Error **errp)
{
    bool ok = !queue.ioc || write_kept(queue.ioc, errp);

    file_queue_drop();
    return ok;
}

/* The buffer for the next bytes at @offset: the last write's, or a new one */
static GByteArray *keep_at(off_t offset)
{
    Write *w = g_queue_peek_tail(&queue.writes);

    if (!w || w->offset != AT_POSITION || offset != AT_POSITION) {
        w = g_new(Write, 1);
        w->offset = offset;
        w->data = g_byte_array_new();
        g_queue_push_tail(&queue.writes, w);
    }
    return w->data;
}

static void keep(off_t offset, const void *data, size_t len)
{
    g_byte_array_append(keep_at(offset), data, len);
    queue.kept += len;
}

static bool can_defer(size_t len)
{
    return queue.defer && len <= DEFER_MAX - queue.kept;
}

int file_queue_writev_all(QIOChannel *ioc, const struct iovec *iov,
                          size_t niov, Error **errp)
{
    if (ioc != qatomic_read(&queue.ioc)) {
        return qio_channel_writev_all(ioc, iov, niov, errp);
    }
    if (!can_defer(iov_size(iov, niov))) {
        return write_kept(ioc, errp) ?
               qio_channel_writev_all(ioc, iov, niov, errp) : -1;
    }
    for (size_t i = 0; i < niov; i++) {
        keep(AT_POSITION, iov[i].iov_base, iov[i].iov_len);
    }
    return 0;
}

int file_queue_pwrite_all(QIOChannel *ioc, const void *buf, size_t len,
                          off_t offset, Error **errp)
{
    if (ioc != qatomic_read(&queue.ioc)) {
        return qio_channel_pwrite_all(ioc, buf, len, offset, errp);
    }
    if (!can_defer(len)) {
        return write_kept(ioc, errp) ?
               qio_channel_pwrite_all(ioc, buf, len, offset, errp) : -1;
    }
    keep(offset, buf, len);
    return 0;
}
