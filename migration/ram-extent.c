/*
 * Extents: moving guest RAM to and from a mapped-ram file, in large requests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The channels and how they are fed are here; what a channel does with one
 * extent is in ram-extent-io.c.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "migration/ram-extent.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/lockable.h"
#include "qemu/thread.h"
#include "ram-extent-int.h"
#include "trace.h"

/* How many extents may wait for each channel: enough that none runs dry. */
#define WAITING_PER_CHANNEL 2

typedef struct RamExtentThread {
    RamExtentPool *pool;
    QemuThread thread;
    /* the last drain that this channel has done; under the pool's lock */
    unsigned drained;
    /* only for this thread, but for cancelling */
    RamExtentChannel channel;
} RamExtentThread;

struct RamExtentPool {
    /* written only before the threads start */
    unsigned channels;
    RamExtentThread *threads;
    const char *engine;
    const char *engine_reason;

    /* all below is under this lock */
    QemuMutex lock;
    /* signals the threads: there is an extent, a drain, or the end */
    QemuCond work;
    /* signals who feeds them: an extent has been done, or a drain */
    QemuCond done;
    /* the same, when that one is a coroutine */
    Coroutine *waiter;

    /* extents to be saved, a ring */
    RamExtent *ring;
    unsigned ring_size, ring_head, ring_used;
    /* the block that is being loaded, and its first page not yet begun */
    RamExtentBlock *loading;
    unsigned long next_page;

    /* how many threads are at an extent */
    unsigned busy;
    /* how many drains have been asked for */
    unsigned drains;
    bool stop;
    /* the first error of any channel */
    Error *err;
    RamExtentCounts counts;
};

/* Called with the lock held. */
static void wake_feeder(RamExtentPool *pool)
{
    qemu_cond_broadcast(&pool->done);
    if (pool->waiter) {
        Coroutine *co = pool->waiter;

        pool->waiter = NULL;
        aio_co_wake(co);
    }
}

/* Called with the lock held, which it drops while it waits. */
static void wait_for_channels(RamExtentPool *pool)
{
    if (qemu_in_coroutine()) {
        pool->waiter = qemu_coroutine_self();
        qemu_mutex_unlock(&pool->lock);
        qemu_coroutine_yield();
        qemu_mutex_lock(&pool->lock);
    } else {
        qemu_cond_wait(&pool->done, &pool->lock);
    }
}

/* Keeps the first error, and drops all others.  Called with the lock held. */
static void latch_error(RamExtentPool *pool, Error *err)
{
    if (pool->err) {
        error_free(err);
    } else {
        trace_ram_extent_error(error_get_pretty(err));
        pool->err = err;
    }
}

/* Called with the lock held. */
static bool check_error(RamExtentPool *pool, Error **errp)
{
    if (pool->err) {
        error_propagate(errp, error_copy(pool->err));
        return false;
    }
    return true;
}

/* Takes the next extent of the block being loaded.  Called with the lock. */
static bool next_loading(RamExtentPool *pool, RamExtent *extent)
{
    RamExtentBlock *block = pool->loading;
    unsigned long pages;

    if (!block) {
        return false;
    }
    pages = mapped_ram_layout_pages(&block->layout) - pool->next_page;
    extent->block = block;
    extent->first = pool->next_page;
    extent->pages = MIN(pages, RAM_EXTENT_PAGES);
    pool->next_page += extent->pages;
    if (extent->pages == pages) {
        pool->loading = NULL;
    }
    return true;
}

/* Takes the next extent of either kind.  Called with the lock held. */
static bool next_extent(RamExtentPool *pool, RamExtent *extent, bool *saving)
{
    if (pool->err) {
        /* Nothing more is moved: whoever waits learns of the error. */
        pool->ring_used = 0;
        pool->loading = NULL;
        return false;
    }
    *saving = pool->ring_used > 0;
    if (!*saving) {
        return next_loading(pool, extent);
    }
    *extent = pool->ring[pool->ring_head];
    pool->ring_head = (pool->ring_head + 1) % pool->ring_size;
    pool->ring_used--;
    return true;
}

static void add_counts(RamExtentCounts *sum, const RamExtentCounts *counts)
{
    sum->normal += counts->normal;
    sum->zero += counts->zero;
    sum->direct_bytes += counts->direct_bytes;
    sum->buffered_bytes += counts->buffered_bytes;
    sum->requests += counts->requests;
}

/* Called with the lock held, which it drops while it works. */
static void do_extent(RamExtentThread *t, const RamExtent *extent, bool saving)
{
    RamExtentPool *pool = t->pool;
    RamExtentCounts counts = {};
    Error *err = NULL;

    pool->busy++;
    qemu_mutex_unlock(&pool->lock);

    if (saving) {
        ram_extent_channel_save(&t->channel, extent, &counts, &err);
    } else {
        ram_extent_channel_load(&t->channel, extent, &counts, &err);
    }

    qemu_mutex_lock(&pool->lock);
    pool->busy--;
    add_counts(&pool->counts, &counts);
    if (err) {
        latch_error(pool, err);
    }
    wake_feeder(pool);
}

/* Called with the lock held, which it drops while it waits for the disk. */
static void do_drain(RamExtentThread *t)
{
    RamExtentPool *pool = t->pool;
    unsigned drains = pool->drains;
    Error *err = NULL;

    qemu_mutex_unlock(&pool->lock);
    ram_extent_channel_drain(&t->channel, &err);
    qemu_mutex_lock(&pool->lock);

    t->drained = drains;
    if (err) {
        latch_error(pool, err);
    }
    wake_feeder(pool);
}

/*
 * Nothing to do but requests in flight: see how they end, so that an error is
 * noticed, and what is still to be written is known, before the next extent
 * comes or a drain.  Called with the lock held, which it drops.
 */
static void do_wait(RamExtentThread *t)
{
    RamExtentPool *pool = t->pool;
    Error *err = NULL;

    qemu_mutex_unlock(&pool->lock);
    ram_extent_channel_wait(&t->channel, &err);
    qemu_mutex_lock(&pool->lock);

    if (err) {
        latch_error(pool, err);
        wake_feeder(pool);
    }
}

static void *channel_thread(void *opaque)
{
    RamExtentThread *t = opaque;
    RamExtentPool *pool = t->pool;
    RamExtent extent;
    bool saving;

    qemu_mutex_lock(&pool->lock);
    while (!pool->stop) {
        if (next_extent(pool, &extent, &saving)) {
            do_extent(t, &extent, saving);
        } else if (t->drained != pool->drains) {
            do_drain(t);
        } else if (ram_extent_channel_busy(&t->channel)) {
            do_wait(t);
        } else {
            qemu_cond_wait(&pool->work, &pool->lock);
        }
    }
    qemu_mutex_unlock(&pool->lock);
    return NULL;
}

bool ram_extent_save(RamExtentPool *pool, const RamExtent *extent,
                     Error **errp)
{
    assert(extent->first % BITS_PER_LONG == 0);
    assert(extent->pages <= RAM_EXTENT_PAGES);

    QEMU_LOCK_GUARD(&pool->lock);
    pool->counts.taken += bitmap_count_one(extent->dirty, extent->pages);
    while (!pool->err && pool->ring_used == pool->ring_size) {
        wait_for_channels(pool);
    }
    if (!check_error(pool, errp)) {
        return false;
    }
    pool->ring[(pool->ring_head + pool->ring_used) % pool->ring_size] =
        *extent;
    pool->ring_used++;
    qemu_cond_signal(&pool->work);
    return true;
}

/*
 * Waits until no thread is at an extent.  Also after an error: whoever calls
 * may free what the threads work on.  Called with the lock held.
 */
static void wait_idle(RamExtentPool *pool)
{
    while (pool->busy || pool->ring_used || pool->loading) {
        if (pool->err) {
            pool->ring_used = 0;
            pool->loading = NULL;
            if (!pool->busy) {
                break;
            }
        }
        wait_for_channels(pool);
    }
}

bool ram_extent_settle(RamExtentPool *pool, Error **errp)
{
    QEMU_LOCK_GUARD(&pool->lock);
    wait_idle(pool);
    return check_error(pool, errp);
}

/* Called with the lock held. */
static bool all_drained(RamExtentPool *pool)
{
    for (unsigned i = 0; i < pool->channels; i++) {
        if (pool->threads[i].drained != pool->drains) {
            return false;
        }
    }
    return true;
}

bool ram_extent_drain(RamExtentPool *pool, Error **errp)
{
    QEMU_LOCK_GUARD(&pool->lock);
    wait_idle(pool);
    pool->drains++;
    qemu_cond_broadcast(&pool->work);
    while (!all_drained(pool)) {
        wait_for_channels(pool);
    }
    return check_error(pool, errp);
}

bool ram_extent_load_block(RamExtentPool *pool, RamExtentBlock *block,
                           Error **errp)
{
    WITH_QEMU_LOCK_GUARD(&pool->lock) {
        assert(!pool->loading);
        if (block->layout.length) {
            pool->loading = block;
            pool->next_page = 0;
            qemu_cond_broadcast(&pool->work);
        }
    }
    return ram_extent_drain(pool, errp);
}

void ram_extent_counts(RamExtentPool *pool, RamExtentCounts *counts)
{
    QEMU_LOCK_GUARD(&pool->lock);
    *counts = pool->counts;
}

void ram_extent_stats(RamExtentPool *pool, RamExtentStats *stats)
{
    *stats = (RamExtentStats) {};
    for (unsigned i = 0; i < pool->channels; i++) {
        ram_extent_channel_stats(&pool->threads[i].channel, stats);
    }
}

const char *ram_extent_engine_name(RamExtentPool *pool)
{
    return pool->engine;
}

const char *ram_extent_engine_reason(RamExtentPool *pool)
{
    return pool->engine_reason;
}

void ram_extent_cancel(RamExtentPool *pool)
{
    Error *err = NULL;

    error_setg(&err, "cancelled");
    QEMU_LOCK_GUARD(&pool->lock);
    latch_error(pool, err);
    for (unsigned i = 0; i < pool->channels; i++) {
        ram_extent_channel_cancel(&pool->threads[i].channel);
    }
    qemu_cond_broadcast(&pool->work);
    wake_feeder(pool);
}

/* @started: how many of the threads run */
static void pool_destroy(RamExtentPool *pool, unsigned started)
{
    WITH_QEMU_LOCK_GUARD(&pool->lock) {
        pool->stop = true;
        qemu_cond_broadcast(&pool->work);
    }
    for (unsigned i = 0; i < started; i++) {
        qemu_thread_join(&pool->threads[i].thread);
    }
    for (unsigned i = 0; i < pool->channels; i++) {
        ram_extent_channel_destroy(&pool->threads[i].channel);
    }
    assert(!pool->waiter);
    error_free(pool->err);
    qemu_cond_destroy(&pool->done);
    qemu_cond_destroy(&pool->work);
    qemu_mutex_destroy(&pool->lock);
    g_free(pool->ring);
    g_free(pool->threads);
    g_free(pool);
}

RamExtentPool *ram_extent_pool_new(const RamExtentConfig *config,
                                   Error **errp)
{
    RamExtentPool *pool = g_new0(RamExtentPool, 1);
    RamExtentChannel *last;

    pool->channels = config->channels;
    pool->threads = g_new0(RamExtentThread, config->channels);
    pool->ring_size = config->channels * WAITING_PER_CHANNEL;
    pool->ring = g_new0(RamExtent, pool->ring_size);
    qemu_mutex_init(&pool->lock);
    qemu_cond_init(&pool->work);
    qemu_cond_init(&pool->done);

    for (unsigned i = 0; i < pool->channels; i++) {
        pool->threads[i].pool = pool;
        if (!ram_extent_channel_init(&pool->threads[i].channel, config,
                                     errp)) {
            pool_destroy(pool, 0);
            return NULL;
        }
    }
    /* What has run out is lacking to those that were made last. */
    last = &pool->threads[pool->channels - 1].channel;
    pool->engine = ram_extent_channel_engine(last);
    pool->engine_reason = ram_extent_channel_engine_reason(last);
    for (unsigned i = 0; i < pool->channels; i++) {
        g_autofree char *name = g_strdup_printf("%s_%u", config->thread_name,
                                                i);

        qemu_thread_create(&pool->threads[i].thread, name, channel_thread,
                           &pool->threads[i], QEMU_THREAD_JOINABLE);
    }
    trace_ram_extent_start(config->name, pool->channels, pool->engine,
                           pool->engine_reason ?: "no better one",
                           config->direct_fd >= 0);
    return pool;
}

void ram_extent_pool_free(RamExtentPool *pool)
{
    if (pool) {
        pool_destroy(pool, pool->channels);
    }
}
