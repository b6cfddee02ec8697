/*
 * Extents: moving guest RAM to and from a mapped-ram file, in large requests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * This file has the pool, which feeds the workers; what a worker does with one
 * extent is in mapped-ram-worker.c.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "migration/mapped-ram-pool.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/lockable.h"
#include "qemu/thread.h"
#include "mapped-ram-worker.h"
#include "trace.h"

/* How many extents may wait per worker, so that none runs out of work */
#define WAITING_PER_WORKER 2

/* What to do with an extent */
typedef enum MappedRamTask {
    TASK_SAVE,
    TASK_COUNT,
    TASK_LOAD,
} MappedRamTask;

typedef struct MappedRamItem {
    MappedRamTask task;
    MappedRamExtent extent;
} MappedRamItem;

typedef struct MappedRamThread {
    MappedRamPool *pool;
    QemuThread thread;
    char *name;
    /* the last drain that this worker has done; under the pool's lock */
    unsigned drained;
    /* only for this thread, except for cancelling */
    MappedRamWorker worker;
} MappedRamThread;

struct MappedRamPool {
    /* written only before the threads start */
    unsigned workers;
    MappedRamThread *threads;
    const char *engine;
    const char *engine_reason;
    void *(*thread_started)(const char *name);
    void (*thread_ended)(void *thread);

    /* everything below is protected by this lock */
    QemuMutex lock;
    /* wakes the threads: there is an extent, a drain, or the end */
    QemuCond work;
    /* wakes the feeding thread: an extent or a drain is done */
    QemuCond done;
    /* the feeder to wake if it is a coroutine */
    Coroutine *waiter;

    /* extents to be saved or counted, a ring */
    MappedRamItem *ring;
    unsigned ring_size, ring_head, ring_used;
    /* the block being loaded, and its first page that is not begun yet */
    MappedRamBlock *loading;
    unsigned long next_page;

    /* how many threads are working on an extent */
    unsigned busy;
    /* whether anything was handed over since the last drain */
    bool undrained;
    /* how many drains have been requested */
    unsigned drains;
    bool stop;
    /* the first error of any worker */
    Error *err;
    MappedRamCounts counts;
};

/* Called with the lock held. */
static void wake_feeder(MappedRamPool *pool)
{
    qemu_cond_broadcast(&pool->done);
    if (pool->waiter) {
        Coroutine *co = pool->waiter;

        pool->waiter = NULL;
        aio_co_wake(co);
    }
}

/* Called with the lock held, which it drops while it waits. */
static void wait_for_workers(MappedRamPool *pool)
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

/* Keeps the first error and drops all others.  Called with the lock held. */
static void latch_error(MappedRamPool *pool, Error *err)
{
    if (pool->err) {
        error_free(err);
    } else {
        trace_mapped_ram_error(error_get_pretty(err));
        pool->err = err;
    }
}

/* Called with the lock held. */
static bool check_error(MappedRamPool *pool, Error **errp)
{
    if (pool->err) {
        error_propagate(errp, error_copy(pool->err));
        return false;
    }
    return true;
}

/* Takes the next extent of the block being loaded.  With the lock held. */
static bool next_loading(MappedRamPool *pool, MappedRamItem *item)
{
    MappedRamBlock *block = pool->loading;
    MappedRamExtent *extent = &item->extent;
    unsigned long pages;

    if (!block) {
        return false;
    }
    pages = mapped_ram_layout_pages(&block->layout) - pool->next_page;
    item->task = TASK_LOAD;
    extent->block = block;
    extent->first = pool->next_page;
    extent->pages = MIN(pages, MAPPED_RAM_EXTENT_PAGES);
    pool->next_page += extent->pages;
    if (extent->pages == pages) {
        pool->loading = NULL;
    }
    return true;
}

/* Takes the next extent of any kind.  Called with the lock held. */
static bool next_item(MappedRamPool *pool, MappedRamItem *item)
{
    if (pool->err) {
        /* Move nothing more; waiting callers get the error. */
        pool->ring_used = 0;
        pool->loading = NULL;
        return false;
    }
    if (!pool->ring_used) {
        return next_loading(pool, item);
    }
    *item = pool->ring[pool->ring_head];
    pool->ring_head = (pool->ring_head + 1) % pool->ring_size;
    pool->ring_used--;
    return true;
}

static void add_counts(MappedRamCounts *sum, const MappedRamCounts *counts)
{
    sum->normal += counts->normal;
    sum->zero += counts->zero;
    sum->direct_bytes += counts->direct_bytes;
    sum->buffered_bytes += counts->buffered_bytes;
    sum->requests += counts->requests;
    sum->counted += counts->counted;
    sum->counted_data += counts->counted_data;
}

/* Called with the lock held, which it drops while it works. */
static void do_item(MappedRamThread *t, const MappedRamItem *item)
{
    MappedRamPool *pool = t->pool;
    MappedRamWorker *worker = &t->worker;
    MappedRamCounts counts = {};
    Error *err = NULL;

    pool->busy++;
    qemu_mutex_unlock(&pool->lock);

    switch (item->task) {
    case TASK_SAVE:
        mapped_ram_worker_save(worker, &item->extent, &counts, &err);
        break;
    case TASK_COUNT:
        mapped_ram_worker_count(worker, &item->extent, &counts);
        break;
    case TASK_LOAD:
        mapped_ram_worker_load(worker, &item->extent, &counts, &err);
        break;
    }

    qemu_mutex_lock(&pool->lock);
    pool->busy--;
    add_counts(&pool->counts, &counts);
    if (err) {
        latch_error(pool, err);
    }
    wake_feeder(pool);
}

/*
 * Reaps requests.  Also called when idle, so that an error is noticed and the
 * number of pending bytes is known before the next extent or drain.  Called
 * with the lock held, which it drops.
 */
static void do_wait(MappedRamThread *t)
{
    MappedRamPool *pool = t->pool;
    Error *err = NULL;

    qemu_mutex_unlock(&pool->lock);
    mapped_ram_worker_wait(&t->worker, &err);
    qemu_mutex_lock(&pool->lock);

    if (err) {
        latch_error(pool, err);
        wake_feeder(pool);
    }
}

/*
 * Requests are reaped one by one: when one has failed, the feeder must not wait
 * for another that may never complete.  Called with the lock held, which it
 * drops while it waits for the disk.
 */
static void do_drain(MappedRamThread *t)
{
    MappedRamPool *pool = t->pool;
    unsigned drains = pool->drains;
    Error *err = NULL;

    while (mapped_ram_worker_busy(&t->worker)) {
        do_wait(t);
    }
    qemu_mutex_unlock(&pool->lock);
    mapped_ram_worker_drain(&t->worker, &err);
    qemu_mutex_lock(&pool->lock);

    t->drained = drains;
    if (err) {
        latch_error(pool, err);
    }
    wake_feeder(pool);
}

static void *worker_thread(void *opaque)
{
    MappedRamThread *t = opaque;
    MappedRamPool *pool = t->pool;
    void *info = pool->thread_started ? pool->thread_started(t->name) : NULL;
    MappedRamItem item;

    qemu_mutex_lock(&pool->lock);
    while (!pool->stop) {
        if (next_item(pool, &item)) {
            do_item(t, &item);
        } else if (t->drained != pool->drains) {
            do_drain(t);
        } else if (mapped_ram_worker_busy(&t->worker)) {
            do_wait(t);
        } else {
            qemu_cond_wait(&pool->work, &pool->lock);
        }
    }
    qemu_mutex_unlock(&pool->lock);
    /* All at once: the kernel takes some 35 ms to free a linux-aio context. */
    mapped_ram_worker_destroy(&t->worker);
    if (pool->thread_ended) {
        pool->thread_ended(info);
    }
    return NULL;
}

/* Called with the lock held, which it drops while the ring is full. */
static bool hand_over(MappedRamPool *pool, MappedRamTask task,
                      const MappedRamExtent *extent, Error **errp)
{
    MappedRamItem *item;

    assert(extent->first % BITS_PER_LONG == 0);
    assert(extent->pages <= MAPPED_RAM_EXTENT_PAGES);

    while (!pool->err && pool->ring_used == pool->ring_size) {
        wait_for_workers(pool);
    }
    if (!check_error(pool, errp)) {
        return false;
    }
    item = &pool->ring[(pool->ring_head + pool->ring_used) % pool->ring_size];
    item->task = task;
    item->extent = *extent;
    pool->ring_used++;
    qemu_cond_signal(&pool->work);
    return true;
}

bool mapped_ram_pool_save(MappedRamPool *pool, const MappedRamExtent *extent,
                          Error **errp)
{
    QEMU_LOCK_GUARD(&pool->lock);
    pool->counts.queued += bitmap_count_one(extent->dirty, extent->pages);
    if (!hand_over(pool, TASK_SAVE, extent, errp)) {
        return false;
    }
    pool->undrained = true;
    return true;
}

bool mapped_ram_pool_count(MappedRamPool *pool, const MappedRamExtent *extent,
                           Error **errp)
{
    QEMU_LOCK_GUARD(&pool->lock);
    return hand_over(pool, TASK_COUNT, extent, errp);
}

/*
 * Waits until no thread is working on an extent, or there is an error.  Called
 * with the lock held.
 */
static void wait_idle(MappedRamPool *pool)
{
    while (!pool->err && (pool->busy || pool->ring_used || pool->loading)) {
        wait_for_workers(pool);
    }
}

bool mapped_ram_pool_wait_scanned(MappedRamPool *pool, Error **errp)
{
    QEMU_LOCK_GUARD(&pool->lock);
    wait_idle(pool);
    return check_error(pool, errp);
}

/* Called with the lock held. */
static bool all_drained(MappedRamPool *pool)
{
    for (unsigned i = 0; i < pool->workers; i++) {
        if (pool->threads[i].drained != pool->drains) {
            return false;
        }
    }
    return true;
}

/* @always: wait for all workers even after an error. */
static bool drain(MappedRamPool *pool, bool always, Error **errp)
{
    QEMU_LOCK_GUARD(&pool->lock);
    wait_idle(pool);
    pool->drains++;
    qemu_cond_broadcast(&pool->work);
    while (!all_drained(pool) && (always || !pool->err)) {
        wait_for_workers(pool);
    }
    if (all_drained(pool)) {
        pool->undrained = false;
    }
    return check_error(pool, errp);
}

bool mapped_ram_pool_drain(MappedRamPool *pool, Error **errp)
{
    return drain(pool, false, errp);
}

bool mapped_ram_pool_drained(MappedRamPool *pool)
{
    QEMU_LOCK_GUARD(&pool->lock);
    return !pool->undrained;
}

bool mapped_ram_pool_load_block(MappedRamPool *pool, MappedRamBlock *block,
                                Error **errp)
{
    WITH_QEMU_LOCK_GUARD(&pool->lock) {
        assert(!pool->loading);
        if (block->layout.length) {
            pool->loading = block;
            pool->next_page = 0;
            pool->undrained = true;
            qemu_cond_broadcast(&pool->work);
        }
    }
    /* Workers write to the block, which the caller may free afterwards. */
    return drain(pool, true, errp);
}

void mapped_ram_pool_counts(MappedRamPool *pool, MappedRamCounts *counts)
{
    QEMU_LOCK_GUARD(&pool->lock);
    *counts = pool->counts;
}

void mapped_ram_pool_stats(MappedRamPool *pool, MappedRamStats *stats)
{
    *stats = (MappedRamStats) {};
    for (unsigned i = 0; i < pool->workers; i++) {
        mapped_ram_worker_stats(&pool->threads[i].worker, stats);
    }
}

const char *mapped_ram_pool_engine_name(MappedRamPool *pool)
{
    return pool->engine;
}

const char *mapped_ram_pool_engine_reason(MappedRamPool *pool)
{
    return pool->engine_reason;
}

void mapped_ram_pool_cancel(MappedRamPool *pool)
{
    Error *err = NULL;

    error_setg(&err, "cancelled");
    QEMU_LOCK_GUARD(&pool->lock);
    latch_error(pool, err);
    for (unsigned i = 0; i < pool->workers; i++) {
        mapped_ram_worker_cancel(&pool->threads[i].worker);
    }
    qemu_cond_broadcast(&pool->work);
    wake_feeder(pool);
}

/* @started: how many threads have been started */
static void pool_destroy(MappedRamPool *pool, unsigned started)
{
    WITH_QEMU_LOCK_GUARD(&pool->lock) {
        pool->stop = true;
        qemu_cond_broadcast(&pool->work);
    }
    for (unsigned i = 0; i < started; i++) {
        qemu_thread_join(&pool->threads[i].thread);
    }
    for (unsigned i = 0; i < pool->workers; i++) {
        mapped_ram_worker_destroy(&pool->threads[i].worker);
        g_free(pool->threads[i].name);
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

MappedRamPool *mapped_ram_pool_new(const MappedRamPoolConfig *config,
                                   Error **errp)
{
    MappedRamPool *pool = g_new0(MappedRamPool, 1);
    MappedRamWorker *last;

    pool->workers = config->workers;
    pool->thread_started = config->thread_started;
    pool->thread_ended = config->thread_ended;
    pool->threads = g_new0(MappedRamThread, config->workers);
    pool->ring_size = config->workers * WAITING_PER_WORKER;
    pool->ring = g_new0(MappedRamItem, pool->ring_size);
    qemu_mutex_init(&pool->lock);
    qemu_cond_init(&pool->work);
    qemu_cond_init(&pool->done);

    for (unsigned i = 0; i < pool->workers; i++) {
        pool->threads[i].pool = pool;
        if (!mapped_ram_worker_init(&pool->threads[i].worker, config,
                                    errp)) {
            pool_destroy(pool, 0);
            return NULL;
        }
    }
    /* If a resource runs out, the worker created last lacks it. */
    last = &pool->threads[pool->workers - 1].worker;
    pool->engine = mapped_ram_worker_engine(last);
    pool->engine_reason = mapped_ram_worker_engine_reason(last);
    for (unsigned i = 0; i < pool->workers; i++) {
        MappedRamThread *t = &pool->threads[i];

        t->name = g_strdup_printf("%s_%u", config->thread_name, i);
        qemu_thread_create(&t->thread, t->name, worker_thread, t,
                           QEMU_THREAD_JOINABLE);
    }
    trace_mapped_ram_start(config->name, pool->workers, pool->engine,
                           pool->engine_reason ?: "no better one",
                           config->direct_fd >= 0);
    return pool;
}

void mapped_ram_pool_free(MappedRamPool *pool)
{
    if (pool) {
        pool_destroy(pool, pool->workers);
    }
}
