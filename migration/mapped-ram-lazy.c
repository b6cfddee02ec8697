/*
 * Instant restore: the object, its blocks and its threads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See include/migration/mapped-ram-lazy.h.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "mapped-ram-lazy-int.h"
#include "trace.h"

/* How often to try again to read pages that threads wait for. */
#define RETRY_US (1000 * 1000)

/* A read that takes longer may never end. */
#define HANGS_US (1000 * 1000)

/*
 * The kernel makes each range a mapping of its own and limits the number of
 * mappings (vm.max_map_count, 65530).  Ranges close to each other are joined
 * until there are no more than this.
 */
#define RANGES_MAX 2048
/* Likewise for all blocks together, apart from one range for each */
#define RANGES_TOTAL 16384

static void unregister(MappedRamLazy *l, LazyBlock *b, unsigned ranges)
{
    for (unsigned i = 0; i < ranges; i++) {
        LazyRange *range = &g_array_index(b->ranges, LazyRange, i);

        mapped_ram_uffd_unregister(l->uffd, range->host, range->len);
    }
}

static void unregister_all(MappedRamLazy *l)
{
    for (unsigned i = 0; i < l->blocks->len; i++) {
        LazyBlock *b = g_ptr_array_index(l->blocks, i);

        unregister(l, b, b->ranges->len);
        g_array_set_size(b->ranges, 0);
    }
}

/*
 * When all pages are loaded, absent pages no longer need to be served, so the
 * memory can be unregistered.  Late reads may still be in flight.
 */
void lazy_count_down(MappedRamLazy *l, uint64_t count)
{
    if (!count || qatomic_sub_fetch(&l->remaining, count)) {
        return;
    }
    unregister_all(l);
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        /* Of a page that another thread has loaded after all */
        g_clear_pointer(&l->err, error_free);
        l->stop = true;
        qemu_cond_broadcast(&l->retry);
    }
    event_notifier_set(&l->notifier);
}

/*
 * Keeps the first error.  Takes ownership of @err.  Returns whether to report
 * it.  When all pages are there, a late read may fail, which does not matter.
 * Called with the lock held.
 */
static bool latch_error(MappedRamLazy *l, Error *err)
{
    trace_mapped_ram_error(error_get_pretty(err));
    if (l->err || l->stop || !qatomic_read(&l->remaining)) {
        error_free(err);
        return false;
    }
    l->err = err;
    return l->started;
}

/*
 * An error before the start stays: zeros may have been placed for pages that
 * could not be read.  Called with the lock held.
 */
static void retry(MappedRamLazy *l)
{
    if (l->started) {
        g_clear_pointer(&l->err, error_free);
    }
    l->retries++;
    for (unsigned i = 0; i < l->parked->len; i++) {
        g_array_index(l->parked, LazyParked, i).due = 0;
    }
    qemu_cond_broadcast(&l->retry);
}

void mapped_ram_lazy_retry(MappedRamLazy *l)
{
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        retry(l);
    }
    event_notifier_set(&l->notifier);
}

Error *mapped_ram_lazy_error(MappedRamLazy *l)
{
    QEMU_LOCK_GUARD(&l->lock);
    return l->err ? error_copy(l->err) : NULL;
}

/* Whether a read hangs for whose page @thread waits.  With the lock held. */
static bool waits_for_hung_read(MappedRamLazy *l, uint64_t thread)
{
    int64_t now = g_get_monotonic_time();

    for (unsigned i = 0; i < FAULT_THREADS; i++) {
        LazyThread *t = &l->thread[i];
        unsigned long page;
        LazyBlock *b;

        if (!t->serves || t->fault.thread != thread ||
            now - t->since < HANGS_US) {
            continue;
        }
        b = lazy_find_page(l, t->fault.address, &page);
        if (b && !lazy_is_placed(b, page)) {
            return true;
        }
    }
    return false;
}

bool mapped_ram_lazy_waits(MappedRamLazy *l, uint64_t thread)
{
    QEMU_LOCK_GUARD(&l->lock);
    if (waits_for_hung_read(l, thread)) {
        return true;
    }
    for (unsigned i = 0; i < l->parked->len; i++) {
        LazyParked *parked = &g_array_index(l->parked, LazyParked, i);

        if (parked->fault.thread == thread &&
            !lazy_is_placed(parked->block, parked->page)) {
            return true;
        }
    }
    return false;
}

bool mapped_ram_lazy_others_wait(MappedRamLazy *l,
                                 bool (*leave_out)(uint64_t thread))
{
    QEMU_LOCK_GUARD(&l->lock);
    /* All fault threads may be waiting for the disk. */
    if (mapped_ram_uffd_pending(l->uffd)) {
        return true;
    }
    for (unsigned i = 0; i < FAULT_THREADS; i++) {
        LazyThread *t = &l->thread[i];

        if (t->serves && mapped_ram_uffd_own_thread(t->fault.thread) &&
            !leave_out(t->fault.thread)) {
            return true;
        }
    }
    for (unsigned i = 0; i < l->parked->len; i++) {
        LazyParked *parked = &g_array_index(l->parked, LazyParked, i);

        if (!lazy_is_placed(parked->block, parked->page) &&
            mapped_ram_uffd_own_thread(parked->fault.thread) &&
            !leave_out(parked->fault.thread)) {
            return true;
        }
    }
    return false;
}

/* Returns the index of @fault, or -1.  Called with the lock held. */
static int find_parked(MappedRamLazy *l, const MappedRamFault *fault)
{
    unsigned long page;
    LazyBlock *b = lazy_find_page(l, fault->address, &page);

    for (unsigned i = 0; i < l->parked->len; i++) {
        LazyParked *parked = &g_array_index(l->parked, LazyParked, i);

        if (parked->fault.thread == fault->thread && parked->block == b &&
            parked->page == page) {
            return i;
        }
    }
    return -1;
}

/*
 * Returns whether this is a parked fault that has come again.  A thread with a
 * pending signal does not wait for a page that it touches in the kernel: it
 * touches it again and again.  Called with the lock held.
 */
static bool is_parked(MappedRamLazy *l, const MappedRamFault *fault)
{
    LazyParked *parked;
    int i = find_parked(l, fault);

    if (i < 0) {
        return false;
    }
    /* If the page has been placed meanwhile, serve the fault to wake waiters */
    parked = &g_array_index(l->parked, LazyParked, i);
    return !lazy_is_placed(parked->block, parked->page);
}

/* Forgets @fault, which has been served. */
static void unpark(MappedRamLazy *l, const MappedRamFault *fault)
{
    int i;

    QEMU_LOCK_GUARD(&l->lock);
    i = find_parked(l, fault);
    if (i >= 0) {
        g_array_remove_index_fast(l->parked, i);
    }
}

/*
 * Takes a parked fault that is due.  If there is none, sets @timeout to the
 * milliseconds until one is due, or to -1.
 */
static bool take_parked(MappedRamLazy *l, MappedRamFault *fault, int *timeout)
{
    int64_t now = g_get_monotonic_time();
    int64_t next = INT64_MAX;

    QEMU_LOCK_GUARD(&l->lock);
    for (unsigned i = 0; i < l->parked->len; i++) {
        LazyParked *parked = &g_array_index(l->parked, LazyParked, i);

        if (parked->retried) {
            continue;
        }
        if (parked->due <= now) {
            *fault = parked->fault;
            parked->retried = true;
            return true;
        }
        next = MIN(next, parked->due);
    }
    *timeout = next == INT64_MAX ? -1 : (next - now) / 1000 + 1;
    return false;
}

static bool should_stop(MappedRamLazy *l)
{
    QEMU_LOCK_GUARD(&l->lock);
    return l->stop;
}

/*
 * Receives a new fault.  In one step, so that it is always known who waits: see
 * mapped_ram_lazy_others_wait().
 */
static bool receive_fault(LazyThread *t)
{
    MappedRamLazy *l = t->lazy;

    QEMU_LOCK_GUARD(&l->lock);
    t->serves = mapped_ram_uffd_read(l->uffd, &t->fault) &&
                !is_parked(l, &t->fault);
    if (t->serves) {
        l->last_fault = t->since = g_get_monotonic_time();
    }
    return t->serves;
}

/* Only one fault thread waits at a time, so a fault wakes only one. */
static bool next_fault(LazyThread *t, MappedRamFault *fault, bool *again)
{
    MappedRamLazy *l = t->lazy;
    int timeout;

    QEMU_LOCK_GUARD(&l->fault_lock);
    while (!should_stop(l)) {
        /*
         * New faults first: their pages may be readable, and when reads take
         * longer to fail than RETRY_US, a parked fault is always due.
         */
        *again = false;
        if (receive_fault(t)) {
            *fault = t->fault;
            return true;
        }
        *again = take_parked(l, fault, &timeout);
        if (*again) {
            return true;
        }
        /* At the end no thread waits again, so one event wakes them all. */
        mapped_ram_uffd_wait(l->uffd, &l->notifier, timeout);
    }
    return false;
}

/* Remembers to serve @fault later.  Called with the lock held. */
static void park_locked(MappedRamLazy *l, const MappedRamFault *fault)
{
    LazyParked parked = {
        .fault = *fault,
        .due = g_get_monotonic_time() + RETRY_US,
    };
    int i = find_parked(l, fault);

    parked.block = lazy_find_page(l, fault->address, &parked.page);
    if (i >= 0) {
        g_array_index(l->parked, LazyParked, i) = parked;
    } else {
        g_array_append_val(l->parked, parked);
    }
}

/*
 * Parks @fault, which could not be served, or, if the guest has never run,
 * serves it with zeros.
 */
static void park(LazyThread *t, const MappedRamFault *fault, Error *err)
{
    MappedRamLazy *l = t->lazy;
    bool started, report;

    /*
     * In one step: after an error before the start there is no start, so the
     * guest never sees the zeros.
     */
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        started = l->started;
        t->serves = false;
        report = latch_error(l, err);
        if (started) {
            park_locked(l, fault);
        }
    }
    /* There may be no memory for zeros, either, for example on a full tmpfs. */
    if (!started && !lazy_serve_zeros(l, &t->slot, fault)) {
        WITH_QEMU_LOCK_GUARD(&l->lock) {
            park_locked(l, fault);
        }
    }
    /* The thread that waits for faults must update its timeout. */
    event_notifier_set(&l->notifier);
    if (report) {
        l->config.changed(l->config.opaque);
    }
}

/* The last thread to leave reports that all pages are loaded. */
static void leave(MappedRamLazy *l)
{
    bool last;

    WITH_QEMU_LOCK_GUARD(&l->lock) {
        last = --l->running == 0 && !l->freeing;
    }
    if (last) {
        l->config.ended(l->config.opaque);
    }
}

/* Returns whether the read had seemed to hang. */
static bool served(LazyThread *t)
{
    bool hung;

    QEMU_LOCK_GUARD(&t->lazy->lock);
    hung = t->serves && g_get_monotonic_time() - t->since >= HANGS_US;
    t->serves = false;
    return hung;
}

static void serve_faults(LazyThread *t)
{
    MappedRamLazy *l = t->lazy;
    MappedRamFault fault;
    bool again, hung;

    while (next_fault(t, &fault, &again)) {
        Error *err = NULL;

        if (!lazy_serve_fault(l, &t->slot, &fault, &err)) {
            park(t, &fault, err);
            continue;
        }
        hung = served(t);
        if (again) {
            /* The disk works again. */
            unpark(l, &fault);
            mapped_ram_lazy_retry(l);
        }
        if (again || hung) {
            l->config.changed(l->config.opaque);
        }
    }
}

/* Takes the next extent that no thread has begun, from the cursor on. */
static bool take_extent(MappedRamLazy *l, LazySlot *slot)
{
    QEMU_LOCK_GUARD(&l->lock);
    if (l->stop) {
        return false;
    }
    /* Visit the first block twice: before and behind the cursor. */
    for (unsigned i = 0; i <= l->blocks->len; i++) {
        LazyBlock *b = g_ptr_array_index(l->blocks, l->cursor_block);
        unsigned long extent = find_next_zero_bit(b->claimed, b->extents,
                                                  l->cursor_extent);

        if (extent < b->extents) {
            set_bit(extent, b->claimed);
            l->cursor_extent = extent;
            slot->block = b;
            slot->first = extent * b->extent_pages;
            slot->pages = MIN(b->extent_pages,
                              mapped_ram_layout_pages(&b->layout) -
                              slot->first);
            return true;
        }
        l->cursor_block = (l->cursor_block + 1) % l->blocks->len;
        l->cursor_extent = 0;
    }
    return false;
}

/*
 * Reports @err, and takes ownership of it.  Returns false when the load ends.
 */
static bool wait_for_retry(MappedRamLazy *l, LazySlot *slot, Error *err)
{
    unsigned retries;
    bool report;

    /* In one step, so that a retry which clears this error ends the wait. */
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        retries = l->retries;
        report = latch_error(l, err);
    }
    if (report) {
        l->config.changed(l->config.opaque);
    }
    /* This waits for the slot's other requests, which may never complete. */
    lazy_slot_destroy(l, slot);
    QEMU_LOCK_GUARD(&l->lock);
    while (!l->stop && l->retries == retries) {
        qemu_cond_wait(&l->retry, &l->lock);
    }
    return !l->stop;
}

static bool try_extent(MappedRamLazy *l, LazySlot *slot, Error **errp)
{
    uint64_t placed = 0;
    bool ok = lazy_slot_begin(l, slot, errp) &&
              lazy_slot_finish(l, slot, ULONG_MAX, &placed, errp);

    QEMU_LOCK_GUARD(&l->lock);
    l->background_pages += placed;
    return ok;
}

/* Loads the slot's pages, retrying as often as necessary. */
static void load_extent(MappedRamLazy *l, LazySlot *slot)
{
    Error *err = NULL;

    while (!try_extent(l, slot, &err)) {
        if (!wait_for_retry(l, slot, err)) {
            return;
        }
        err = NULL;
    }
}

/* Lets an extra thread wait until the guest seems to need no pages. */
static void wait_for_quiet(LazyThread *t)
{
    MappedRamLazy *l = t->lazy;
    int64_t left;

    QEMU_LOCK_GUARD(&l->lock);
    while (t->extra && !l->stop) {
        left = l->last_fault + QUIET_US - g_get_monotonic_time();
        if (left <= 0) {
            break;
        }
        qemu_cond_timedwait(&l->retry, &l->lock, left / 1000 + 1);
    }
}

static bool next_extent(LazyThread *t)
{
    wait_for_quiet(t);
    return take_extent(t->lazy, &t->slot);
}

static void load_rest(LazyThread *t)
{
    while (next_extent(t)) {
        load_extent(t->lazy, &t->slot);
    }
}

static void *lazy_thread(void *opaque)
{
    LazyThread *t = opaque;
    const MappedRamPoolConfig *config = &t->lazy->config.file;
    void *info = config->thread_started ? config->thread_started(t->name) :
                                          NULL;

    if (t->slot.fault) {
        serve_faults(t);
    } else {
        load_rest(t);
    }
    /* Not later by the main thread: to free a linux-aio context takes time. */
    lazy_slot_destroy(t->lazy, &t->slot);
    if (config->thread_ended) {
        config->thread_ended(info);
    }
    leave(t->lazy);
    return NULL;
}

static void start_thread(LazyThread *t)
{
    WITH_QEMU_LOCK_GUARD(&t->lazy->lock) {
        t->lazy->running++;
        t->created = true;
    }
    qemu_thread_create(&t->thread, t->name, lazy_thread, t,
                       QEMU_THREAD_JOINABLE);
}

/* Finds the ranges with pages to load, joining them over gaps up to @gap. */
static void find_ranges(LazyBlock *b, unsigned long gap)
{
    unsigned long next = find_next_zero_bit(b->claimed, b->extents, 0);
    size_t size = b->extent_pages * b->layout.page_size;

    g_array_set_size(b->ranges, 0);
    while (next < b->extents) {
        unsigned long start = next, end;
        LazyRange range;

        do {
            end = find_next_bit(b->claimed, b->extents, next);
            next = find_next_zero_bit(b->claimed, b->extents, end);
        } while (next < b->extents && next - end <= gap);
        range.host = b->host + start * size;
        range.len = MIN((uint64_t)end * size, b->layout.length) - start * size;
        g_array_append_val(b->ranges, range);
    }
}

static bool register_ranges(MappedRamLazy *l, LazyBlock *b, Error **errp)
{
    b->can_zero = true;
    for (unsigned i = 0; i < b->ranges->len; i++) {
        LazyRange *range = &g_array_index(b->ranges, LazyRange, i);
        bool can_zero;

        if (!mapped_ram_uffd_register(l->uffd, range->host, range->len,
                                      &can_zero, errp)) {
            error_prepend(errp, "RAM block '%s': ", b->name);
            unregister(l, b, i);
            return false;
        }
        b->can_zero &= can_zero;
    }
    return true;
}

static void lazy_block_free(void *opaque)
{
    LazyBlock *b = opaque;

    g_free(b->name);
    g_free(b->present);
    g_free(b->done);
    g_free(b->claimed);
    g_array_free(b->ranges, true);
    g_free(b);
}

/* Finds the ranges of @b, of which there may be so many in all. */
static void limit_ranges(LazyBlock *b, unsigned used)
{
    unsigned limit = MIN(RANGES_MAX, RANGES_TOTAL - MIN(used, RANGES_TOTAL));
    unsigned long gap = 0;

    b->ranges = g_array_new(false, false, sizeof(LazyRange));
    do {
        find_ranges(b, gap);
        gap = gap * 2 + 1;
    } while (b->ranges->len > MAX(limit, 1));
}

static LazyBlock *lazy_block_new(const MappedRamBlock *block, size_t page_size)
{
    LazyBlock *b = g_new0(LazyBlock, 1);
    unsigned long pages = mapped_ram_layout_pages(&block->layout);

    b->name = g_strdup(block->name);
    b->host = block->host;
    b->layout = block->layout;
    b->page_size = page_size;
    b->unit = MAX(page_size / block->layout.page_size, 1);
    b->can_move = page_size == qemu_real_host_page_size() &&
                  !mapped_ram_uffd_has_policy(b->host);
    b->extent_pages = MIN(MAPPED_RAM_LAZY_EXTENT / block->layout.page_size,
                          MAPPED_RAM_EXTENT_PAGES);
    b->extents = DIV_ROUND_UP(pages, b->extent_pages);
    b->present = bitmap_new(pages);
    bitmap_copy(b->present, block->present, pages);
    b->done = bitmap_new(pages);
    b->claimed = bitmap_new(b->extents);
    for (unsigned long i = 0; i < b->extents; i++) {
        unsigned long start = i * b->extent_pages;
        unsigned long end = MIN(start + b->extent_pages, pages);

        if (find_next_bit(b->present, end, start) >= end) {
            set_bit(i, b->claimed);
        }
    }
    return b;
}

static bool check_page_size(const MappedRamBlock *block, size_t page_size,
                            Error **errp)
{
    if (page_size > MAPPED_RAM_LAZY_EXTENT ||
        page_size > MAPPED_RAM_EXTENT_PAGES * block->layout.page_size) {
        error_setg(errp, "RAM block '%s': its pages of %zu bytes are too large "
                   "to be loaded one by one", block->name, page_size);
        return false;
    }
    if (!QEMU_PTR_IS_ALIGNED(block->host, page_size) ||
        !QEMU_IS_ALIGNED(block->layout.length, page_size)) {
        error_setg(errp, "RAM block '%s': it does not consist of whole pages "
                   "of %zu bytes", block->name, page_size);
        return false;
    }
    return true;
}

bool mapped_ram_lazy_check(MappedRamLazy *l, const MappedRamBlock *block,
                           size_t page_size, Error **errp)
{
    bool can_zero;

    if (!check_page_size(block, page_size, errp)) {
        return false;
    }
    if (!mapped_ram_uffd_register(l->uffd, block->host, page_size, &can_zero,
                                  errp)) {
        error_prepend(errp, "RAM block '%s': ", block->name);
        return false;
    }
    mapped_ram_uffd_unregister(l->uffd, block->host, page_size);
    return true;
}

bool mapped_ram_lazy_add(MappedRamLazy *l, const MappedRamBlock *block,
                         size_t page_size, Error **errp)
{
    uint64_t count;
    LazyBlock *b;

    if (!check_page_size(block, page_size, errp)) {
        return false;
    }
    b = lazy_block_new(block, page_size);
    limit_ranges(b, l->ranges);
    l->ranges += b->ranges->len;
    count = bitmap_count_one(b->present,
                             mapped_ram_layout_pages(&b->layout));
    /* Add the block first, so that a fault finds it. */
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        assert(!l->started);
        b->index = l->blocks->len;
        g_ptr_array_add(l->blocks, b);
    }
    qatomic_add(&l->remaining, count);
    if (!register_ranges(l, b, errp)) {
        qatomic_sub(&l->remaining, count);
        WITH_QEMU_LOCK_GUARD(&l->lock) {
            g_ptr_array_remove(l->blocks, b);
        }
        return false;
    }
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        l->page_size = b->layout.page_size;
        l->total += count * b->layout.page_size;
        l->length += b->layout.length;
    }
    trace_mapped_ram_lazy_block(b->name, count, b->ranges->len, b->page_size);
    return true;
}

bool mapped_ram_lazy_start(MappedRamLazy *l, Error **errp)
{
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        if (l->err) {
            error_propagate(errp, error_copy(l->err));
            return false;
        }
        l->started = true;
        /* A guest that begins to run needs pages at once. */
        l->last_fault = MAX(l->last_fault, g_get_monotonic_time());
    }
    if (l->blocks->len) {
        for (unsigned i = FAULT_THREADS; i < l->threads; i++) {
            start_thread(&l->thread[i]);
        }
    }
    lazy_count_down(l, 1);
    return true;
}

/* Returns the longest time of the fastest @share of all faults. */
static uint64_t fault_time(MappedRamLazy *l, double share)
{
    uint64_t count = 0;

    for (unsigned i = 0; i < TIME_CLASSES; i++) {
        count += l->times[i];
        if (count && count >= share * l->faults) {
            /* The longest time in this class */
            return i < 8 ? i :
                   ((uint64_t)(8 + i % 8 + 1) << (i / 8 - 1)) - 1;
        }
    }
    return 0;
}

void mapped_ram_lazy_info(MappedRamLazy *l, MappedRamLazyInfo *info)
{
    QEMU_LOCK_GUARD(&l->lock);
    *info = (MappedRamLazyInfo) {
        .workers = l->config.file.workers,
        .total = l->total,
        .fault_bytes = l->fault_pages * l->page_size,
        .background_bytes = l->background_pages * l->page_size,
        .moved_bytes = l->moved_pages * l->page_size,
        .faults = l->faults,
        .zero_faults = l->zero_faults,
        .median_us = MIN(fault_time(l, 0.5), l->slowest_us),
        .p99_us = MIN(fault_time(l, 0.99), l->slowest_us),
        .slowest_us = l->slowest_us,
        .slowest_offset = l->slowest_offset,
        .length = l->length,
        .missing = (uint64_t)(qatomic_read(&l->remaining) - !l->started) *
                   l->page_size,
        .stats = l->stats,
    };
    for (unsigned i = 0; i < l->threads; i++) {
        MappedRamWorker *worker = &l->thread[i].slot.worker;

        if (worker->buffered) {
            mapped_ram_worker_stats(worker, &info->stats);
        }
    }
}

static void make_threads(MappedRamLazy *l)
{
    MappedRamPoolConfig *file = &l->config.file;

    /* The page cache reads ahead. */
    l->reads = file->direct_fd < 0 ? 1 :
               MIN(READS_QUIET, file->depth ?: READS_QUIET);
    l->threads = FAULT_THREADS + file->workers * l->reads;
    l->thread = g_new0(LazyThread, l->threads);
    for (unsigned i = 0; i < l->threads; i++) {
        LazyThread *t = &l->thread[i];
        bool fault = i < FAULT_THREADS;

        t->lazy = l;
        t->slot.fault = fault;
        t->extra = i >= FAULT_THREADS + file->workers * READS;
        t->name = g_strdup_printf("mapped-%s_%u", fault ? "fault" : "rest",
                                  fault ? i : i - FAULT_THREADS);
    }
}

static bool make_slots(MappedRamLazy *l, Error **errp)
{
    for (unsigned i = 0; i < l->threads; i++) {
        if (!lazy_slot_init(l, &l->thread[i].slot, errp)) {
            return false;
        }
    }
    return true;
}

MappedRamLazy *mapped_ram_lazy_new(const MappedRamLazyConfig *config,
                                   Error **errp)
{
    MappedRamLazy *l = g_new0(MappedRamLazy, 1);
    int ret;

    l->config = *config;
    l->config.file.workers = MIN(config->file.workers, WORKERS_MAX);
    l->remaining = 1;
    qemu_sem_init(&l->turns, l->config.file.workers);
    qemu_mutex_init(&l->lock);
    qemu_mutex_init(&l->fault_lock);
    qemu_cond_init(&l->retry);
    l->blocks = g_ptr_array_new_with_free_func(lazy_block_free);
    l->parked = g_array_new(false, false, sizeof(LazyParked));
    ret = event_notifier_init(&l->notifier, false);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "unable to create an event descriptor");
    }
    l->uffd = ret < 0 ? -1 : mapped_ram_uffd_open(errp);
    if (l->uffd >= 0) {
        make_threads(l);
    }
    if (l->uffd < 0 || !make_slots(l, errp)) {
        mapped_ram_lazy_free(l);
        return NULL;
    }
    for (unsigned i = 0; i < FAULT_THREADS; i++) {
        start_thread(&l->thread[i]);
    }
    return l;
}

static void free_thread(LazyThread *t)
{
    mapped_ram_worker_destroy(&t->slot.worker);
    lazy_slot_free_buf(&t->slot);
    g_free(t->name);
}

void mapped_ram_lazy_free(MappedRamLazy *l)
{
    if (!l) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        l->stop = l->freeing = true;
        qemu_cond_broadcast(&l->retry);
    }
    event_notifier_set(&l->notifier);
    for (unsigned i = 0; i < l->threads; i++) {
        if (l->thread[i].created) {
            qemu_thread_join(&l->thread[i].thread);
        }
    }
    for (unsigned i = 0; i < l->threads; i++) {
        free_thread(&l->thread[i]);
    }
    unregister_all(l);
    if (l->uffd >= 0) {
        close(l->uffd);
    }
    event_notifier_cleanup(&l->notifier);
    g_ptr_array_free(l->blocks, true);
    g_array_free(l->parked, true);
    error_free(l->err);
    qemu_sem_destroy(&l->turns);
    qemu_cond_destroy(&l->retry);
    qemu_mutex_destroy(&l->fault_lock);
    qemu_mutex_destroy(&l->lock);
    g_free(l->thread);
    g_free(l);
}
