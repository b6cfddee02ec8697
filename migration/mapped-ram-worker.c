/*
 * Extents: what a worker does with each of them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest RAM goes through the O_DIRECT descriptor when there is one.  On nearly
 * all devices its alignment is at most a page, so every request fits.  If a
 * device needs more, requests are rounded out to its unit with neighboring
 * pages of the same extent:
 *
 *  - when saving, a neighbor that need not be written has the same content as
 *    the file, or is dirty again and so will be written again;
 *  - when loading, a neighbor that is not in the file is zero, and is zeroed
 *    after the read.
 *
 * Short gaps between pages to be moved are bridged in the same way.
 *
 * Only the rest at the end of a RAM block, less than one unit of the device,
 * goes through the buffered descriptor.
 */

#include "qemu/osdep.h"
#include "migration/mapped-ram-pool.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "mapped-ram-worker.h"
#include "trace.h"

/*
 * Gaps of up to this many bytes are bridged: moving them takes less time than
 * one more request, both of the disk and of the host's CPUs.  The price is
 * space in the file, never more than RAM has.
 *
 * Measured with fio, which writes and reads every second run of 4 GiB, to a
 * file of final size, on ext4 on a virtio disk that does all of it in 2.4 and
 * 2.0 s: in runs of 16 KiB 3.6 and 2.2 s, of 32 KiB 2.4 and 1.8 s, of 64 KiB
 * 1.8 and 1.2 s.  So leaving out runs of zeros begins to pay at 32 KiB, in
 * space at once, then in time.
 */
#define GAP_BYTES (16 * KiB)

/*
 * The workers share a limit on bytes in flight, lest a drain take long on a
 * slow disk: this many bytes for each request that they may have, by default
 * 32 MiB in total.  But each worker may always have two large requests.
 */
#define IN_FLIGHT_PER_REQUEST \
    (DIRECT_QUEUE_BYTES_DEFAULT / DIRECT_QUEUE_DEPTH_DEFAULT)
#define IN_FLIGHT_MIN (4 * MiB)

/* An extent with pages that were read through and must become zero. */
typedef struct ReadThrough {
    const MappedRamBlock *block;
    unsigned long first;
    unsigned long pages;
} ReadThrough;

typedef bool TransferFunc(DirectQueue *q, uint8_t *buf, size_t len,
                          uint64_t offset, Error **errp);

static bool do_write(DirectQueue *q, uint8_t *buf, size_t len,
                     uint64_t offset, Error **errp)
{
    return direct_queue_write(q, buf, len, offset, errp);
}

static bool do_read(DirectQueue *q, uint8_t *buf, size_t len,
                    uint64_t offset, Error **errp)
{
    return direct_queue_read(q, buf, len, offset, errp);
}

uint64_t mapped_ram_worker_bytes(unsigned depth, unsigned workers)
{
    uint64_t bytes = depth ? (uint64_t)depth * IN_FLIGHT_PER_REQUEST :
                     DIRECT_QUEUE_BYTES_DEFAULT / workers;

    return MAX(bytes, IN_FLIGHT_MIN);
}

static DirectQueue *new_queue(const MappedRamPoolConfig *config, int fd,
                              const DirectIOLimits *limits,
                              DirectIoEngine engine, Error **errp)
{
    DirectQueueConfig queue = {
        .fd = fd,
        .name = config->name,
        .limits = *limits,
        .engine = engine,
        .depth = config->depth,
        .bytes = mapped_ram_worker_bytes(config->depth, config->workers),
    };

    return direct_queue_new(&queue, errp);
}

bool mapped_ram_worker_init(MappedRamWorker *w,
                            const MappedRamPoolConfig *config, Error **errp)
{
    g_autofree char *fs = direct_io_fs_name(config->fd);
    DirectIOLimits buffered;

    w->keep_zeros = config->keep_zeros;
    /*
     * Before Linux 6.15, btrfs fails to read what the guest has changed while
     * it was written directly.  Such a page is written again, but if it has
     * become zero, not by all versions that write images, see find_healed():
     * so do not read where no page is.
     */
    w->read_gap = g_str_equal(fs, "btrfs") ? 0 : GAP_BYTES;
    mapped_ram_memory_open(&w->memory);
    w->read_through = g_array_new(false, false, sizeof(ReadThrough));
    direct_io_limits_buffered(&buffered);
    if (config->direct_fd >= 0) {
        w->limits = config->direct_limits;
        w->direct = new_queue(config, config->direct_fd, &w->limits,
                              config->engine, errp);
        if (!w->direct) {
            return false;
        }
    }
    /* The page cache answers at once, so asynchronous I/O gains nothing. */
    w->buffered = new_queue(config, config->fd, &buffered,
                            DIRECT_IO_ENGINE_SYNC, errp);
    return w->buffered != NULL;
}

void mapped_ram_worker_destroy(MappedRamWorker *w)
{
    g_clear_pointer(&w->direct, direct_queue_free);
    g_clear_pointer(&w->buffered, direct_queue_free);
    if (w->read_through) {
        g_clear_pointer(&w->read_through, g_array_unref);
        mapped_ram_memory_close(&w->memory);
    }
}

const char *mapped_ram_worker_engine(MappedRamWorker *w)
{
    return direct_queue_engine_name(w->direct ?: w->buffered);
}

const char *mapped_ram_worker_engine_reason(MappedRamWorker *w)
{
    return w->direct ? direct_queue_engine_reason(w->direct) : NULL;
}

static void add_stats(DirectQueueStats *sum, const DirectQueueStats *stats)
{
    sum->bytes_read += stats->bytes_read;
    sum->bytes_written += stats->bytes_written;
    sum->requests += stats->requests;
    sum->short_transfers += stats->short_transfers;
    sum->retries += stats->retries;
    sum->max_in_flight = MAX(sum->max_in_flight, stats->max_in_flight);
    for (unsigned i = 0; i < DIRECT_QUEUE_LATENCY_BUCKETS; i++) {
        sum->latency[i] += stats->latency[i];
    }
    if (stats->slowest_us > sum->slowest_us) {
        sum->slowest_us = stats->slowest_us;
        sum->slowest_offset = stats->slowest_offset;
    }
}

void mapped_ram_stats_add(MappedRamStats *sum, const MappedRamStats *stats)
{
    add_stats(&sum->direct, &stats->direct);
    add_stats(&sum->buffered, &stats->buffered);
}

static void add_queue_stats(DirectQueueStats *sum, DirectQueue *q)
{
    DirectQueueStats stats;

    direct_queue_get_stats(q, &stats);
    add_stats(sum, &stats);
}

void mapped_ram_worker_stats(MappedRamWorker *w, MappedRamStats *sum)
{
    if (w->direct) {
        add_queue_stats(&sum->direct, w->direct);
    }
    add_queue_stats(&sum->buffered, w->buffered);
}

void mapped_ram_worker_cancel(MappedRamWorker *w)
{
    if (w->direct) {
        direct_queue_cancel(w->direct);
    }
    direct_queue_cancel(w->buffered);
}

/*
 * Fills holes of up to @gap pages between the runs of @plan that lie within
 * @allowed.
 */
static void bridge_gaps(unsigned long *plan, const unsigned long *allowed,
                        unsigned long pages, unsigned long gap)
{
    unsigned long end, next;

    next = find_next_bit(plan, pages, 0);
    while (next < pages) {
        end = find_next_zero_bit(plan, pages, next);
        next = find_next_bit(plan, pages, end);
        if (next < pages && next - end <= gap &&
            find_next_zero_bit(allowed, next, end) >= next) {
            bitmap_set(plan, end, next - end);
        }
    }
}

/* Rounds the runs of @plan out to multiples of @align. */
static void round_out(unsigned long *plan, unsigned long pages,
                      unsigned long align)
{
    unsigned long start, end = 0;

    for (start = find_next_bit(plan, pages, 0); start < pages;
         start = find_next_bit(plan, pages, end)) {
        end = find_next_zero_bit(plan, pages, start);
        start = QEMU_ALIGN_DOWN(start, align);
        end = MIN(QEMU_ALIGN_UP(end, align), pages);
        bitmap_set(plan, start, end - start);
    }
}

void mapped_ram_plan_extent(unsigned long *plan, const unsigned long *wanted,
                            const unsigned long *allowed, unsigned long pages,
                            unsigned long gap, unsigned long align)
{
    bitmap_copy(plan, wanted, pages);
    if (gap) {
        bridge_gaps(plan, allowed, pages, gap);
    }
    if (align > 1) {
        round_out(plan, pages, align);
    }
}

/*
 * Requests are multiples of this many bytes.  They are aligned alike in memory
 * and in the file: pages start at a multiple of MAPPED_RAM_PAGES_ALIGN.
 */
static uint32_t unit_of(const MappedRamWorker *w)
{
    return MAX(w->limits.mem_align, w->limits.offset_align);
}

/* Number of pages in one unit of the device; 1 for the page cache. */
static unsigned long align_pages(MappedRamWorker *w, const MappedRamBlock *b)
{
    if (!w->direct) {
        return 1;
    }
    return MAX(unit_of(w) / b->layout.page_size, 1);
}

/*
 * Moves @pages pages, starting at page @first.  The part that is aligned for
 * the device goes direct; the rest, normally nothing, is buffered.
 */
static bool transfer(MappedRamWorker *w, const MappedRamBlock *b,
                     unsigned long first, unsigned long pages,
                     TransferFunc *func, MappedRamCounts *counts, Error **errp)
{
    uint64_t start = b->layout.pages_offset + first * b->layout.page_size;
    uint64_t end = start + pages * b->layout.page_size;
    uint64_t direct_start = end, direct_end = end;
    uint8_t *buf = b->host + first * b->layout.page_size;

    if (w->direct && QEMU_PTR_IS_ALIGNED(b->host, w->limits.mem_align)) {
        direct_start = MIN(ROUND_UP(start, unit_of(w)), end);
        direct_end = MAX(ROUND_DOWN(end, unit_of(w)), direct_start);
    }
    trace_mapped_ram_transfer(b->name, first, pages, start);
    counts->direct_bytes += direct_end - direct_start;
    counts->buffered_bytes += direct_start - start + end - direct_end;
    counts->requests += (direct_start > start) + (direct_end > direct_start) +
                        (end > direct_end);

    return (direct_start == start ||
            func(w->buffered, buf, direct_start - start, start, errp)) &&
           (direct_end == direct_start ||
            func(w->direct, buf + (direct_start - start),
                 direct_end - direct_start, direct_start, errp)) &&
           (end == direct_end ||
            func(w->buffered, buf + (direct_end - start), end - direct_end,
                 direct_end, errp));
}

/* Moves the pages of @plan, run by run. */
static bool transfer_plan(MappedRamWorker *w, const MappedRamExtent *extent,
                          const unsigned long *plan, TransferFunc *func,
                          MappedRamCounts *counts, Error **errp)
{
    unsigned long start, end = 0;

    for (start = find_next_bit(plan, extent->pages, 0); start < extent->pages;
         start = find_next_bit(plan, extent->pages, end)) {
        end = find_next_zero_bit(plan, extent->pages, start);
        if (!transfer(w, extent->block, extent->first + start, end - start,
                      func, counts, errp)) {
            return false;
        }
    }
    return true;
}

/*
 * Sets @untouched for the pages of a range that are zero because they have
 * never been touched.  Returns whether all others have been touched.
 */
static bool find_untouched(MappedRamWorker *w, const MappedRamBlock *b,
                           uint64_t first, uint64_t pages,
                           unsigned long *untouched)
{
    if (b->layout.page_size == qemu_real_host_page_size()) {
        return mapped_ram_memory_untouched(&w->memory, &b->backing, b->host,
                                           first, pages, untouched);
    }
    bitmap_zero(untouched, pages);
    return false;
}

/* Sets @data to the dirty pages of @extent that are not zero. */
static void find_data(MappedRamWorker *w, const MappedRamExtent *extent,
                      unsigned long *data)
{
    const MappedRamBlock *b = extent->block;
    uint64_t page_size = b->layout.page_size;
    uint8_t *host = b->host + extent->first * page_size;
    DECLARE_BITMAP(untouched, MAPPED_RAM_EXTENT_PAGES);
    unsigned long page;

    bitmap_copy(data, extent->dirty, extent->pages);
    data[BIT_WORD(extent->pages - 1)] &= BITMAP_LAST_WORD_MASK(extent->pages);
    if (w->keep_zeros) {
        return;
    }
    find_untouched(w, b, extent->first, extent->pages, untouched);
    bitmap_andnot(data, data, untouched, extent->pages);
    for (page = find_next_bit(data, extent->pages, 0); page < extent->pages;
         page = find_next_bit(data, extent->pages, page + 1)) {
        if (buffer_is_zero(host + page * page_size, page_size)) {
            clear_bit(page, data);
        }
    }
}

/*
 * Sets @healed to the dirty pages that are zero, but were written before, and
 * that can be read without allocating memory.  The guest may have changed one
 * while it was written, and then its checksum may be wrong, on file systems and
 * devices that have some.  Whoever read it, because it shares a unit with other
 * pages or lies between them, would get an error.  That can happen in any
 * write: in one that heals, or of a zero page because of its neighbors, too.
 * So being present is not what matters.
 */
static void find_healed(MappedRamWorker *w, const MappedRamExtent *extent,
                        const unsigned long *data, unsigned long *healed)
{
    const MappedRamBlock *b = extent->block;
    DECLARE_BITMAP(untouched, MAPPED_RAM_EXTENT_PAGES);

    bitmap_zero(healed, MAPPED_RAM_EXTENT_PAGES);
    if (!w->direct) {
        return;
    }
    bitmap_and(healed, extent->dirty, b->written + BIT_WORD(extent->first),
               extent->pages);
    bitmap_andnot(healed, healed, data, extent->pages);
    if (b->keep_absent && !bitmap_empty(healed, extent->pages)) {
        find_untouched(w, b, extent->first, extent->pages, untouched);
        bitmap_andnot(healed, healed, untouched, extent->pages);
    }
}

/*
 * Records in the block's bitmap which dirty pages have data.  A page that has
 * become zero since it was written is no longer in the file, whatever the file
 * contains at its offset.
 */
static void update_present(const MappedRamExtent *extent,
                           const unsigned long *data, MappedRamCounts *counts)
{
    unsigned long *present = extent->block->present + BIT_WORD(extent->first);
    unsigned long normal = bitmap_count_one(data, extent->pages);

    for (unsigned long i = 0; i < BITS_TO_LONGS(extent->pages); i++) {
        present[i] = (present[i] & ~extent->dirty[i]) | data[i];
    }
    counts->normal += normal;
    counts->zero += bitmap_count_one(extent->dirty, extent->pages) - normal;
}

/* Records which pages are written, for find_healed(). */
static void update_written(MappedRamWorker *w, const MappedRamExtent *extent,
                           const unsigned long *plan)
{
    unsigned long *written;

    /* The page cache takes a copy, whose checksum is right. */
    if (w->direct) {
        written = extent->block->written + BIT_WORD(extent->first);
        bitmap_or(written, written, plan, extent->pages);
    }
}

void mapped_ram_worker_count(MappedRamWorker *w, const MappedRamExtent *extent,
                             MappedRamCounts *counts)
{
    DECLARE_BITMAP(data, MAPPED_RAM_EXTENT_PAGES);

    find_data(w, extent, data);
    counts->counted += bitmap_count_one(extent->dirty, extent->pages);
    counts->counted_data += bitmap_count_one(data, extent->pages);
}

bool mapped_ram_worker_save(MappedRamWorker *w, const MappedRamExtent *extent,
                            MappedRamCounts *counts, Error **errp)
{
    const MappedRamBlock *b = extent->block;
    DECLARE_BITMAP(data, MAPPED_RAM_EXTENT_PAGES) = {};
    DECLARE_BITMAP(allowed, MAPPED_RAM_EXTENT_PAGES);
    DECLARE_BITMAP(plan, MAPPED_RAM_EXTENT_PAGES) = {};
    DECLARE_BITMAP(wanted, MAPPED_RAM_EXTENT_PAGES);

    find_data(w, extent, data);
    find_healed(w, extent, data, wanted);
    bitmap_or(wanted, wanted, data, extent->pages);
    update_present(extent, data, counts);
    /*
     * A clean page that is in the file may be written again: either it has not
     * changed, or it will be found dirty, and written in the next pass.  But
     * it may have been discarded; then reading it would allocate it.
     */
    bitmap_copy(allowed, extent->dirty, extent->pages);
    if (!b->keep_absent) {
        bitmap_or(allowed, allowed, b->present + BIT_WORD(extent->first),
                  extent->pages);
    }
    mapped_ram_plan_extent(plan, wanted, allowed, extent->pages,
                           GAP_BYTES / b->layout.page_size, align_pages(w, b));
    update_written(w, extent, plan);
    return transfer_plan(w, extent, plan, do_write, counts, errp);
}

/* Zeroes the pages of @which, whose bits are counted from @first. */
static void zero_pages(const MappedRamBlock *b, unsigned long first,
                       unsigned long pages, const unsigned long *which)
{
    uint64_t page_size = b->layout.page_size;
    unsigned long page;

    for (page = find_next_bit(which, pages, 0); page < pages;
         page = find_next_bit(which, pages, page + 1)) {
        uint8_t *host = b->host + (first + page) * page_size;

        /* Check before writing: anonymous memory shall stay unallocated. */
        if (!buffer_is_zero(host, page_size)) {
            memset(host, 0, page_size);
        }
    }
}

/*
 * Finds which pages of a stretch are in the file, and which to read: @plan also
 * has those that are read through.
 */
static void plan_load(MappedRamWorker *w, const MappedRamBlock *b,
                      unsigned long first, unsigned long pages,
                      unsigned long *present, unsigned long *plan)
{
    DECLARE_BITMAP(all, MAPPED_RAM_EXTENT_PAGES);

    bitmap_fill(all, MAPPED_RAM_EXTENT_PAGES);
    bitmap_copy(present, b->present + BIT_WORD(first), pages);
    if (b->keep_absent) {
        bitmap_copy(plan, present, pages);
    } else {
        mapped_ram_plan_extent(plan, present, all, pages,
                               w->read_gap / b->layout.page_size,
                               align_pages(w, b));
    }
}

/*
 * Zeroes the pages of @extent that are not in @plan, unless they are known to
 * be zero.  Those that may be discarded are left alone if the kernel does not
 * tell: even reading them would allocate them.
 */
static void zero_absent(MappedRamWorker *w, const MappedRamExtent *extent,
                        const unsigned long *plan)
{
    const MappedRamBlock *b = extent->block;
    DECLARE_BITMAP(absent, MAPPED_RAM_EXTENT_PAGES);
    DECLARE_BITMAP(untouched, MAPPED_RAM_EXTENT_PAGES);

    bitmap_complement(absent, plan, extent->pages);
    if (bitmap_empty(absent, extent->pages)) {
        return;
    }
    if (find_untouched(w, b, extent->first, extent->pages, untouched) ||
        !b->keep_absent) {
        bitmap_andnot(absent, absent, untouched, extent->pages);
        zero_pages(b, extent->first, extent->pages, absent);
    }
}

bool mapped_ram_worker_load(MappedRamWorker *w, const MappedRamExtent *extent,
                            MappedRamCounts *counts, Error **errp)
{
    const MappedRamBlock *b = extent->block;
    ReadThrough read_through = { b, extent->first, extent->pages };
    DECLARE_BITMAP(present, MAPPED_RAM_EXTENT_PAGES) = {};
    DECLARE_BITMAP(plan, MAPPED_RAM_EXTENT_PAGES) = {};
    unsigned long normal;

    plan_load(w, b, extent->first, extent->pages, present, plan);
    normal = bitmap_count_one(present, extent->pages);
    counts->normal += normal;
    if (!transfer_plan(w, extent, plan, do_read, counts, errp)) {
        return false;
    }
    counts->zero += extent->pages - normal;
    /* Pages that are read through are zeroed after the read. */
    if (!bitmap_equal(plan, present, extent->pages)) {
        g_array_append_val(w->read_through, read_through);
    }
    zero_absent(w, extent, plan);
    return true;
}

/* Zeroes pages that were read through, after all reads have ended. */
static void zero_read_through(MappedRamWorker *w)
{
    for (unsigned i = 0; i < w->read_through->len; i++) {
        ReadThrough *o = &g_array_index(w->read_through, ReadThrough, i);
        DECLARE_BITMAP(present, MAPPED_RAM_EXTENT_PAGES) = {};
        DECLARE_BITMAP(plan, MAPPED_RAM_EXTENT_PAGES) = {};

        plan_load(w, o->block, o->first, o->pages, present, plan);
        bitmap_andnot(plan, plan, present, o->pages);
        zero_pages(o->block, o->first, o->pages, plan);
    }
    g_array_set_size(w->read_through, 0);
}

/* The buffered queue never has requests in flight between calls. */
bool mapped_ram_worker_busy(const MappedRamWorker *w)
{
    return w->direct && direct_queue_busy(w->direct);
}

bool mapped_ram_worker_wait(MappedRamWorker *w, Error **errp)
{
    return direct_queue_wait(w->direct, errp);
}

bool mapped_ram_worker_drain(MappedRamWorker *w, Error **errp)
{
    if ((w->direct && !direct_queue_drain(w->direct, errp)) ||
        !direct_queue_drain(w->buffered, errp)) {
        return false;
    }
    zero_read_through(w);
    return true;
}
