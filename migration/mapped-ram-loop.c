/*
 * mapped-ram: the save loop
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram-loop.h.
 */

#include "qemu/osdep.h"
#include "mapped-ram-loop.h"
#include "qapi/error.h"
#include "qemu/timer.h"

/* An extent takes at most this part of a period's bandwidth. */
#define RATE_FRACTION 16

/* Accounts for what the workers did since the last call. */
static void account(MappedRamLoop *loop)
{
    MappedRamCounts now, delta, *reported = &loop->reported;

    mapped_ram_pool_counts(loop->pool, &now);
    delta.queued = now.queued - reported->queued;
    delta.normal = now.normal - reported->normal;
    delta.zero = now.zero - reported->zero;
    delta.direct_bytes = now.direct_bytes - reported->direct_bytes;
    delta.buffered_bytes = now.buffered_bytes - reported->buffered_bytes;
    delta.requests = now.requests - reported->requests;
    *reported = now;

    loop->ops->account(loop->opaque, &delta);
}

static bool rate_exceeded(MappedRamLoop *loop)
{
    uint64_t pages = mapped_ram_counts_unscanned(&loop->reported);

    return loop->ops->rate_exceeded(loop->opaque, pages * loop->page_size);
}

/*
 * Returns whether the bandwidth is used up.  Pages are charged before they are
 * scanned, but zero pages cost nothing, so check again after the scan.
 */
static bool must_wait(MappedRamLoop *loop, Error **errp)
{
    if (!rate_exceeded(loop)) {
        return false;
    }
    if (!mapped_ram_pool_wait_scanned(loop->pool, errp)) {
        return true;
    }
    account(loop);
    return rate_exceeded(loop);
}

/* How many pages to claim at once so as to stay close to max-bandwidth. */
static unsigned long extent_pages(MappedRamLoop *loop)
{
    uint64_t pages = loop->ops->rate_limit(loop->opaque) / RATE_FRACTION /
                     loop->page_size;

    if (pages > MAPPED_RAM_EXTENT_PAGES) {
        return MAPPED_RAM_EXTENT_PAGES;
    }
    return MAX(QEMU_ALIGN_UP(pages, BITS_PER_LONG), BITS_PER_LONG);
}

/* Claims an extent and hands it over.  Returns as mapped_ram_loop_pass(). */
static int save_extent(MappedRamLoop *loop, unsigned long max_pages,
                       Error **errp)
{
    MappedRamExtent extent;
    int64_t pages = loop->ops->claim(loop->opaque, &extent, max_pages, errp);

    if (pages <= 0) {
        return pages < 0 ? -1 : 1;
    }
    if (!loop->space_checked) {
        loop->space_checked = true;
        if (!loop->ops->check_space(loop->opaque, errp)) {
            return -1;
        }
    }
    if (!mapped_ram_pool_save(loop->pool, &extent, errp)) {
        return -1;
    }
    account(loop);
    return 0;
}

int mapped_ram_loop_pass(MappedRamLoop *loop, unsigned limit_ms, Error **errp)
{
    int64_t end = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + limit_ms;
    Error *err = NULL;
    int ret = 0;

    while (!ret && !loop->ops->failed(loop->opaque)) {
        if (limit_ms && (qemu_clock_get_ms(QEMU_CLOCK_REALTIME) > end ||
                         must_wait(loop, &err))) {
            break;
        }
        ret = save_extent(loop, limit_ms ? extent_pages(loop) :
                          MAPPED_RAM_EXTENT_PAGES, &err);
    }
    if (err) {
        error_propagate(errp, err);
        return -1;
    }
    return ret;
}

bool mapped_ram_loop_synchronize(MappedRamLoop *loop, bool stopped,
                                 Error **errp)
{
    uint64_t before, after;

    if (!mapped_ram_pool_drain(loop->pool, errp)) {
        return false;
    }
    before = loop->ops->dirty_pages(loop->opaque);
    loop->ops->lock_bql();
    loop->ops->synchronize(loop->opaque, false);
    loop->ops->unlock_bql();
    after = loop->ops->dirty_pages(loop->opaque);

    /* If nothing was written meanwhile, that proves nothing */
    loop->futile = stopped && before < loop->dirty && after >= loop->dirty;
    loop->dirty = stopped ? after : UINT64_MAX;
    return loop->ops->check_space(loop->opaque, errp);
}

uint64_t mapped_ram_loop_remaining(const MappedRamLoop *loop, bool stopped,
                                   uint64_t threshold)
{
    uint64_t bytes = loop->ops->dirty_pages(loop->opaque) * loop->page_size;

    if (!stopped || !bytes) {
        return bytes;
    }
    return loop->futile ? 0 : MAX(bytes, threshold + 1);
}

/* Writes the pages that the last synchronization found dirty, and bitmaps. */
static bool write_dirty(MappedRamLoop *loop, Error **errp)
{
    if (mapped_ram_loop_pass(loop, 0, errp) < 0 ||
        !mapped_ram_pool_drain(loop->pool, errp)) {
        return false;
    }
    account(loop);
    return loop->ops->write_bitmaps(loop->opaque, errp);
}

/*
 * The guest is stopped, but the main loop need not be: the disk may take its
 * time.  So the BQL is released while waiting for the disk.  Changes that the
 * main loop makes to guest memory meanwhile are found by synchronizing again,
 * until nothing is dirty, or it does not help; from then on the BQL is held
 * until the state of the devices is saved.
 */
bool mapped_ram_loop_finish(MappedRamLoop *loop, Error **errp)
{
    uint64_t dirty, last = UINT64_MAX;
    bool ok;

    loop->ops->unlock_bql();
    ok = mapped_ram_pool_drain(loop->pool, errp);
    loop->ops->lock_bql();

    for (int pass = 0; ok; pass++) {
        loop->ops->synchronize(loop->opaque, true);
        dirty = loop->ops->dirty_pages(loop->opaque);
        if (pass && !dirty) {
            break;
        }
        if (pass == MAPPED_RAM_UNLOCKED_PASSES ||
            dirty >= MAX(last, MAPPED_RAM_MANY_PAGES)) {
            return write_dirty(loop, errp);
        }
        last = dirty;
        loop->ops->unlock_bql();
        ok = write_dirty(loop, errp);
        loop->ops->lock_bql();
    }
    return ok;
}
