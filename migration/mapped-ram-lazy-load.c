/*
 * Instant restore: reading pages and placing them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram-lazy-int.h.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"
#include "qemu/madvise.h"
#include "mapped-ram-lazy-int.h"
#include "trace.h"

/*
 * A fault reads the page and its neighbors within this aligned window.  A disk
 * reads it in little more time than a page, and a guest is likely to touch it
 * next.
 */
#define FAULT_WINDOW (64 * KiB)

/* Updates @us to the mean of its old value and the time since @start */
static void note_cost(uint64_t *us, int64_t start)
{
    uint64_t now = MAX(g_get_monotonic_time() - start, 1);

    *us = *us ? (*us + now) / 2 : now;
}

bool lazy_should_move(LazyCosts *costs)
{
    bool cheaper = costs->buffer_us <= costs->copy_us || !costs->copy_us;

    return is_power_of_2(costs->pages++) ? !cheaper : cheaper;
}

/* A fault comes first, and does not wait for a turn. */
static void begin_turn(MappedRamLazy *l, LazySlot *slot)
{
    if (!slot->fault) {
        qemu_sem_wait(&l->turns);
    }
}

static void end_turn(MappedRamLazy *l, LazySlot *slot)
{
    if (!slot->fault) {
        qemu_sem_post(&l->turns);
    }
}

/*
 * Allocates a buffer whose pages can be moved: a mapping of its own, in huge
 * pages, which no child shares.  A fault's window is copied, and needs no huge
 * page.
 */
static bool alloc_buf(LazySlot *slot, Error **errp)
{
    int64_t start = g_get_monotonic_time();

    slot->buf = qemu_anon_ram_alloc(MAPPED_RAM_LAZY_EXTENT, NULL, false, false);
    if (!slot->buf) {
        error_setg_errno(errp, errno, "unable to allocate a buffer of 2 MiB to "
                         "read RAM into");
        return false;
    }
    qemu_madvise(slot->buf, MAPPED_RAM_LAZY_EXTENT, QEMU_MADV_DONTFORK);
    /* It has guest memory, which may have to stay out of core dumps. */
    qemu_madvise(slot->buf, MAPPED_RAM_LAZY_EXTENT, QEMU_MADV_DONTDUMP);
    if (!slot->fault) {
        qemu_madvise(slot->buf, MAPPED_RAM_LAZY_EXTENT, QEMU_MADV_HUGEPAGE);
        /* The read would populate it, too, but here that can be measured. */
        for (size_t i = 0; i < MAPPED_RAM_LAZY_EXTENT;
             i += qemu_real_host_page_size()) {
            slot->buf[i] = 0;
        }
        note_cost(&slot->costs.buffer_us, start);
    }
    return true;
}

void lazy_slot_free_buf(LazySlot *slot)
{
    if (slot->buf) {
        qemu_anon_ram_free(slot->buf, MAPPED_RAM_LAZY_EXTENT);
        slot->buf = NULL;
    }
}

bool lazy_slot_init(MappedRamLazy *l, LazySlot *slot, Error **errp)
{
    MappedRamPoolConfig config = l->config.file;
    MappedRamWorker worker = {};

    config.workers = l->config.file.workers * l->reads;
    config.depth = DIV_ROUND_UP(l->config.file.depth, l->reads);
    if (slot->fault) {
        /* With one read at a time, nothing is faster than a system call. */
        config.engine = DIRECT_IO_ENGINE_SYNC;
        config.depth = 1;
    }
    if (slot->fault && !slot->buf && !alloc_buf(slot, errp)) {
        return false;
    }
    if (!mapped_ram_worker_init(&worker, &config, errp)) {
        mapped_ram_worker_destroy(&worker);
        return false;
    }
    /* mapped_ram_lazy_info() reads the queues from other threads. */
    QEMU_LOCK_GUARD(&l->lock);
    slot->worker = worker;
    return true;
}

void lazy_slot_destroy(MappedRamLazy *l, LazySlot *slot)
{
    MappedRamWorker worker;

    WITH_QEMU_LOCK_GUARD(&l->lock) {
        worker = slot->worker;
        slot->worker = (MappedRamWorker) {};
        if (worker.buffered) {
            mapped_ram_worker_stats(&worker, &l->stats);
        }
    }
    mapped_ram_worker_destroy(&worker);
}

static bool is_done(LazyBlock *b, unsigned long page)
{
    return qatomic_read(&b->done[BIT_WORD(page)]) & BIT_MASK(page);
}

/* Returns whether one of these pages is in the file and not placed yet. */
static bool is_wanted(LazyBlock *b, unsigned long first, unsigned long pages)
{
    for (unsigned long i = first; i < first + pages; i++) {
        if (test_bit(i, b->present) && !is_done(b, i)) {
            return true;
        }
    }
    return false;
}

/* Sets which of the slot's pages to read: whole pages of the host. */
static void find_wanted(LazySlot *slot)
{
    LazyBlock *b = slot->block;

    bitmap_zero(slot->wanted, MAPPED_RAM_EXTENT_PAGES);
    for (unsigned long unit = 0; unit < slot->pages; unit += b->unit) {
        unsigned long pages = MIN(b->unit, slot->pages - unit);

        if (!is_wanted(b, slot->first + unit, pages)) {
            continue;
        }
        for (unsigned long i = unit; i < unit + pages; i++) {
            if (test_bit(slot->first + i, b->present)) {
                set_bit(i, slot->wanted);
            }
        }
    }
}

static void say_where(const LazySlot *slot, Error **errp)
{
    error_prepend(errp, "RAM block '%s', pages from 0x%" PRIx64 " on: ",
                  slot->block->name, (uint64_t)slot->first *
                  slot->block->layout.page_size);
}

bool lazy_slot_begin(MappedRamLazy *l, LazySlot *slot, Error **errp)
{
    LazyBlock *b = slot->block;
    MappedRamExtent extent = { .block = &slot->view, .pages = slot->pages };
    MappedRamCounts counts = {};
    bool ok = true;

    find_wanted(slot);
    if (bitmap_empty(slot->wanted, slot->pages)) {
        return true;
    }
    if (!slot->buf) {
        begin_turn(l, slot);
        ok = alloc_buf(slot, errp);
        end_turn(l, slot);
    }
    if (!ok) {
        say_where(slot, errp);
        return false;
    }
    slot->view = (MappedRamBlock) {
        .name = b->name,
        .host = slot->buf,
        .layout = b->layout,
        .present = slot->wanted,
        .backing = { .fd = -1, .is_private = true },
    };
    slot->view.layout.pages_offset += slot->first * b->layout.page_size;
    slot->view.layout.length = slot->pages * b->layout.page_size;
    /* An error has freed the queues. */
    if ((!slot->worker.buffered && !lazy_slot_init(l, slot, errp)) ||
        !mapped_ram_worker_load(&slot->worker, &extent, &counts, errp)) {
        say_where(slot, errp);
        return false;
    }
    return true;
}

/* Returns how many of the pages are in the file and were not marked yet. */
static uint64_t mark_done(LazyBlock *b, unsigned long first,
                          unsigned long pages)
{
    unsigned long end = first + pages;
    uint64_t count = 0;

    while (first < end) {
        unsigned long word = BIT_WORD(first);
        unsigned long next = MIN((word + 1) * BITS_PER_LONG, end);
        unsigned long mask = BITMAP_FIRST_WORD_MASK(first) &
                             BITMAP_LAST_WORD_MASK(next);
        unsigned long old = qatomic_fetch_or(&b->done[word], mask);

        count += ctpopl(mask & ~old & b->present[word]);
        first = next;
    }
    return count;
}

/*
 * Places @len bytes of pages at @host, with the content of @buf, or zeros if
 * @buf is NULL.
 */
static bool place_bytes(MappedRamLazy *l, LazyBlock *b, uint8_t *host,
                        const uint8_t *buf, size_t len, Error **errp)
{
    for (size_t pos = 0; pos < len; ) {
        ssize_t ret = buf ? mapped_ram_uffd_copy(l->uffd, host + pos,
                                                 buf + pos, len - pos) :
                            mapped_ram_uffd_zero(l->uffd, host + pos,
                                                 len - pos);

        if (ret == -EEXIST) {
            /* Another thread has placed it, and may not have woken waiters. */
            ret = MIN(b->page_size, len - pos);
            mapped_ram_uffd_wake(l->uffd, host + pos, ret);
        } else if (ret < 0 && qatomic_read(&l->remaining) == 0) {
            /* All pages are loaded; the memory is no longer registered. */
            return true;
        } else if (ret < 0) {
            error_setg_errno(errp, -ret, "unable to place a page of RAM");
            return false;
        }
        pos += ret;
    }
    return true;
}

/* Places @pages pages, starting at page @first of the slot. */
static bool place(MappedRamLazy *l, LazySlot *slot, unsigned long first,
                  unsigned long pages, uint64_t *placed, Error **errp)
{
    LazyBlock *b = slot->block;
    size_t page_size = b->layout.page_size;

    if (!place_bytes(l, b, b->host + (slot->first + first) * page_size,
                     slot->buf + first * page_size, pages * page_size, errp)) {
        return false;
    }
    *placed += mark_done(b, slot->first + first, pages);
    return true;
}

/* Returns the run of pages to place that contains or follows @page. */
static unsigned long next_run(LazySlot *slot, unsigned long page,
                              unsigned long *end)
{
    unsigned long unit = slot->block->unit;
    unsigned long start = find_next_bit(slot->wanted, slot->pages, page);

    if (start >= slot->pages) {
        return slot->pages;
    }
    if (unit > 1) {
        start = QEMU_ALIGN_DOWN(start, unit);
        *end = MIN(start + unit, slot->pages);
    } else {
        *end = find_next_zero_bit(slot->wanted, slot->pages, start);
    }
    return start;
}

/* Returns whether the slot's pages make up a whole huge page. */
static bool is_whole(LazySlot *slot)
{
    LazyBlock *b = slot->block;
    size_t page_size = b->layout.page_size;

    if (slot->pages * page_size != MAPPED_RAM_LAZY_EXTENT ||
        !QEMU_PTR_IS_ALIGNED(b->host + slot->first * page_size,
                             MAPPED_RAM_LAZY_EXTENT) ||
        !bitmap_full(slot->wanted, slot->pages)) {
        return false;
    }
    for (unsigned long i = 0; i < slot->pages; i++) {
        if (is_done(b, slot->first + i)) {
            return false;
        }
    }
    return true;
}

/*
 * Moves the slot's pages to the RAM block, except for those that have to be
 * copied: all if they are not a huge page or the kernel can't move them, some
 * if a page is already present.  Returns how many pages were placed.
 *
 * Random reads from huge pages take two thirds of the time that they take from
 * small ones; the figures are in docs/devel/migration/direct-io.rst.
 */
static uint64_t move(MappedRamLazy *l, LazySlot *slot)
{
    LazyBlock *b = slot->block;
    size_t page_size = b->layout.page_size;
    unsigned long pages;
    ssize_t ret;

    ret = mapped_ram_uffd_move(l->uffd, b->host + slot->first * page_size,
                               slot->buf, MAPPED_RAM_LAZY_EXTENT);
    if (ret < 0) {
        if (ret != -EEXIST && ret != -EBUSY && ret != -ENOMEM) {
            qatomic_set(&b->can_move, false);
        }
        return 0;
    }
    pages = ret / page_size;
    bitmap_clear(slot->wanted, 0, pages);
    WITH_QEMU_LOCK_GUARD(&l->lock) {
        l->moved_pages += pages;
    }
    return mark_done(b, slot->first, pages);
}

/* Copies the slot's pages to the RAM block, the run with @urgent first. */
static bool copy(MappedRamLazy *l, LazySlot *slot, unsigned long urgent,
                 uint64_t *placed, Error **errp)
{
    unsigned long start, end;
    bool ok = true;

    if (urgent - slot->first < slot->pages) {
        start = next_run(slot, urgent - slot->first, &end);
        ok = start >= slot->pages ||
             place(l, slot, start, end - start, placed, errp);
    }
    for (start = next_run(slot, 0, &end); ok && start < slot->pages;
         start = next_run(slot, end, &end)) {
        ok = place(l, slot, start, end - start, placed, errp);
    }
    return ok;
}

/* Places a whole huge page, in the way that costs less. */
static bool place_huge_page(MappedRamLazy *l, LazySlot *slot,
                            uint64_t *placed, Error **errp)
{
    int64_t start;
    bool ok;

    if (!lazy_should_move(&slot->costs)) {
        start = g_get_monotonic_time();
        ok = copy(l, slot, ULONG_MAX, placed, errp);
        note_cost(&slot->costs.copy_us, start);
        return ok;
    }
    *placed += move(l, slot);
    ok = copy(l, slot, ULONG_MAX, placed, errp);
    /* The rest of the buffer may never be a huge page again. */
    lazy_slot_free_buf(slot);
    return ok;
}

/* Reaps requests one by one: after an error others may never complete. */
static bool wait_for_reads(LazySlot *slot, Error **errp)
{
    while (mapped_ram_worker_busy(&slot->worker)) {
        if (!mapped_ram_worker_wait(&slot->worker, errp)) {
            return false;
        }
    }
    return mapped_ram_worker_drain(&slot->worker, errp);
}

bool lazy_slot_finish(MappedRamLazy *l, LazySlot *slot, unsigned long urgent,
                      uint64_t *placed, Error **errp)
{
    bool ok;

    *placed = 0;
    if (bitmap_empty(slot->wanted, slot->pages)) {
        return true;
    }
    if (!wait_for_reads(slot, errp)) {
        say_where(slot, errp);
        return false;
    }
    begin_turn(l, slot);
    ok = qatomic_read(&slot->block->can_move) && is_whole(slot) ?
         place_huge_page(l, slot, placed, errp) :
         copy(l, slot, urgent, placed, errp);
    end_turn(l, slot);
    if (!ok) {
        say_where(slot, errp);
    }
    lazy_count_down(l, *placed);
    return ok;
}

LazyBlock *lazy_find_page(MappedRamLazy *l, uint64_t address,
                          unsigned long *page)
{
    for (unsigned i = 0; i < l->blocks->len; i++) {
        LazyBlock *b = g_ptr_array_index(l->blocks, i);
        uint64_t offset = address - (uintptr_t)b->host;

        if (offset < b->layout.length) {
            *page = QEMU_ALIGN_DOWN(offset / b->layout.page_size, b->unit);
            return b;
        }
    }
    return NULL;
}

static LazyBlock *find_page(MappedRamLazy *l, const MappedRamFault *fault,
                            unsigned long *page)
{
    QEMU_LOCK_GUARD(&l->lock);
    return lazy_find_page(l, fault->address, page);
}

static bool is_absent(LazyBlock *b, unsigned long page)
{
    return find_next_bit(b->present, page + b->unit, page) >= page + b->unit;
}

bool lazy_is_placed(LazyBlock *b, unsigned long page)
{
    return !is_absent(b, page) && !is_wanted(b, page, b->unit);
}

static unsigned long fault_window(const LazyBlock *b)
{
    return MAX(FAULT_WINDOW / b->layout.page_size, b->unit);
}

/* Places zeros for the @pages pages from @page on that have no memory. */
static bool place_zeros(MappedRamLazy *l, LazySlot *slot, LazyBlock *b,
                        unsigned long page, unsigned long pages, Error **errp)
{
    size_t len = pages * b->layout.page_size;

    if (!b->can_zero) {
        memset(slot->buf, 0, len);
    }
    if (!place_bytes(l, b, b->host + page * b->layout.page_size,
                     b->can_zero ? NULL : slot->buf, len, errp)) {
        error_prepend(errp, "RAM block '%s', page at 0x%" PRIx64 ": ", b->name,
                      (uint64_t)page * b->layout.page_size);
        return false;
    }
    return true;
}

/*
 * Places zeros for @page, whatever the file has, and for the pages behind it in
 * its window that are not in the file either.
 */
static bool place_window(MappedRamLazy *l, LazySlot *slot, LazyBlock *b,
                         unsigned long page, Error **errp)
{
    unsigned long end = MIN(QEMU_ALIGN_UP(page + 1, fault_window(b)),
                            mapped_ram_layout_pages(&b->layout));
    unsigned long pages = QEMU_ALIGN_DOWN(find_next_bit(b->present, end,
                                                        page) - page, b->unit);

    return place_zeros(l, slot, b, page, MAX(pages, b->unit), errp);
}

static unsigned time_class(uint64_t us)
{
    unsigned power;

    if (us < 8) {
        return us;
    }
    power = 63 - clz64(us);
    return MIN((power - 2) * 8 + ((us >> (power - 3)) & 7), TIME_CLASSES - 1);
}

static void note_fault(MappedRamLazy *l, LazyBlock *b, unsigned long page,
                       uint64_t placed, uint64_t us)
{
    QEMU_LOCK_GUARD(&l->lock);
    l->faults++;
    l->fault_pages += placed;
    l->times[time_class(us)]++;
    if (us > l->slowest_us) {
        l->slowest_us = us;
        l->slowest_offset = b->layout.pages_offset +
                            (uint64_t)page * b->layout.page_size;
    }
}

/* Makes the background load continue from where the guest is. */
static void move_cursor(MappedRamLazy *l, LazyBlock *b, unsigned long page)
{
    QEMU_LOCK_GUARD(&l->lock);
    l->cursor_block = b->index;
    l->cursor_extent = page / b->extent_pages;
}

/* Reads the window around @page, and places @page first. */
static bool load_window(MappedRamLazy *l, LazySlot *slot, LazyBlock *b,
                        unsigned long page, uint64_t *placed, Error **errp)
{
    unsigned long window = fault_window(b);

    slot->block = b;
    slot->first = QEMU_ALIGN_DOWN(page, window);
    slot->pages = MIN(window, mapped_ram_layout_pages(&b->layout) -
                              slot->first);
    return lazy_slot_begin(l, slot, errp) &&
           lazy_slot_finish(l, slot, page, placed, errp);
}

bool lazy_serve_fault(MappedRamLazy *l, LazySlot *slot,
                      const MappedRamFault *fault, Error **errp)
{
    int64_t start = g_get_monotonic_time();
    uint64_t us, placed = 0;
    unsigned long page;
    LazyBlock *b = find_page(l, fault, &page);

    if (!b) {
        return true;
    }
    if (is_absent(b, page)) {
        WITH_QEMU_LOCK_GUARD(&l->lock) {
            l->zero_faults++;
        }
        return place_window(l, slot, b, page, errp);
    }
    /*
     * A page that has been placed is there, unless it has been discarded since,
     * by a device or after a memory error.  Then it reads as zero, and the file
     * must not be read again: only this keeps the page from faulting for ever.
     */
    if (lazy_is_placed(b, page)) {
        return place_zeros(l, slot, b, page, b->unit, errp);
    }
    if (!load_window(l, slot, b, page, &placed, errp)) {
        WITH_QEMU_LOCK_GUARD(&l->lock) {
            l->fault_pages += placed;
        }
        lazy_slot_destroy(l, slot);
        return false;
    }
    /* Another thread may have placed it without waking the waiters. */
    mapped_ram_uffd_wake(l->uffd, b->host + page * b->layout.page_size,
                         b->unit * b->layout.page_size);
    us = g_get_monotonic_time() - start;
    trace_mapped_ram_fault(b->name, page, placed, us);
    note_fault(l, b, page, placed, us);
    move_cursor(l, b, page);
    return true;
}

bool lazy_serve_zeros(MappedRamLazy *l, LazySlot *slot,
                      const MappedRamFault *fault)
{
    unsigned long page;
    LazyBlock *b = find_page(l, fault, &page);

    return !b || place_window(l, slot, b, page, NULL);
}
