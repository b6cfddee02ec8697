/*
 * Instant restore: what its files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Private to migration/mapped-ram-lazy*.c.  mapped-ram-lazy.c has the object,
 * its blocks and its threads; mapped-ram-lazy-load.c moves pages for them.
 * See include/migration/mapped-ram-lazy.h.
 */

#ifndef MIGRATION_MAPPED_RAM_LAZY_INT_H
#define MIGRATION_MAPPED_RAM_LAZY_INT_H

#include "mapped-ram-uffd.h"
#include "mapped-ram-worker.h"
#include "migration/mapped-ram-lazy.h"
#include "qemu/event_notifier.h"
#include "qemu/thread.h"

/* Fault threads: as many pages can be read at once ahead of all else. */
#define FAULT_THREADS 4

/*
 * Background threads, at most, and reads that each has in flight.  A fault
 * waits in the disk's queue behind these: while 1 GiB was loaded by two threads
 * with four reads each, half of the faults took more than 9 ms, with two reads
 * each 5 ms, and all was loaded in 0.59 and 0.70 s (medians of three).
 */
#define BACKGROUND_THREADS_MAX 4
#define SLOTS 2

/* Classes of times: eight for each power of two, so the error is below 13 %. */
#define TIME_CLASSES (40 * 8)

/* A range of memory that is registered */
typedef struct LazyRange {
    uint8_t *host;
    size_t len;
} LazyRange;

typedef struct LazyBlock {
    /* constant once the block is in the list, which has it at @index */
    unsigned index;
    char *name;
    uint8_t *host;
    MappedRamLayout layout;
    /* pages that are placed together, since the host's page is larger */
    unsigned long unit;
    /* the host's page size */
    size_t page_size;
    bool can_zero;
    /* but this is atomic: false after the kernel has refused */
    bool can_move;
    unsigned long *present;
    unsigned long extent_pages;
    unsigned long extents;
    GArray *ranges;

    /* which of @present are placed; each bit is set once, atomically */
    unsigned long *done;
    /* extents that a background thread has begun; with the object's lock */
    unsigned long *taken;
} LazyBlock;

/* A fault whose page could not be read */
typedef struct LazyParked {
    MappedRamFault fault;
    /* when to try again, as g_get_monotonic_time() */
    int64_t due;
} LazyParked;

/* What a huge page costs that could be moved, or copied */
typedef struct LazyCosts {
    /* microseconds; 0 until they are known */
    uint64_t buffer_us, copy_us;
    /* how many there were */
    unsigned pages;
} LazyCosts;

/* A buffer, and the way to fill it */
typedef struct LazySlot {
    /* whether it serves faults */
    bool fault;
    /* zeroed while there are no queues, after an error */
    MappedRamWorker worker;
    /* NULL until it is needed, and after its pages have been moved away */
    uint8_t *buf;
    LazyCosts costs;
    /* what is being read: this many pages of @block from @first on */
    LazyBlock *block;
    unsigned long first, pages;
    /* the block as a worker sees it that reads only that, into the buffer */
    MappedRamBlock view;
    DECLARE_BITMAP(wanted, MAPPED_RAM_EXTENT_PAGES);
} LazySlot;

typedef struct LazyThread {
    MappedRamLazy *lazy;
    QemuThread thread;
    char *name;
    bool created;
    /* whether it serves faults, with one slot */
    bool fault;
    unsigned slots;
    LazySlot slot[SLOTS];
} LazyThread;

struct MappedRamLazy {
    /* constant */
    MappedRamLazyConfig config;
    int uffd;
    unsigned threads;
    LazyThread *thread;

    /* pages of @present that are not placed yet, and 1 before the start */
    int64_t remaining;
    /* which fault thread waits for the next fault */
    QemuMutex fault_lock;
    /* wakes it */
    EventNotifier notifier;

    /* all below is under this lock */
    QemuMutex lock;
    /* signals threads that wait for a retry, or the end */
    QemuCond retry;
    /* LazyBlock; only grows, and not after the start */
    GPtrArray *blocks;
    bool started;
    bool stop;
    bool freeing;
    unsigned running;
    /* where the background load goes on */
    unsigned cursor_block;
    unsigned long cursor_extent;
    /* the first error since the last retry, and how many retries there were */
    Error *err;
    unsigned retries;
    /* of LazyParked */
    GArray *parked;

    uint64_t total, length;
    uint64_t fault_pages, background_pages, moved_pages;
    uint64_t faults, zero_faults;
    uint64_t times[TIME_CLASSES];
    uint64_t slowest_us, slowest_offset;
    uint64_t page_size;
    /* of queues that are gone */
    MappedRamStats stats;
};

/*
 * Makes the queues, and the buffer that a fault needs at once.  False with
 * @errp set on failure.
 */
bool lazy_slot_init(MappedRamLazy *l, LazySlot *slot, Error **errp);

/*
 * Frees the queues, waiting for what is in flight.  Fine on a zeroed @slot, as
 * the next one.
 */
void lazy_slot_destroy(MappedRamLazy *l, LazySlot *slot);

/* Frees the buffer. */
void lazy_slot_free_buf(LazySlot *slot);

/*
 * Decides for one more huge page, and counts it.  Moving costs the next buffer,
 * which the kernel clears: on most hosts less than a copy, but several times as
 * much in a virtual machine whose host has taken free memory back.  So it does
 * what costs less, and what costs more now and then, ever more seldom, as that
 * may change.  Pure but for @costs.
 */
bool lazy_should_move(LazyCosts *costs);

/*
 * Begins to read what the file has of the slot's pages, and is not placed.  For
 * one thread at a time, as the other two.  False with @errp set on failure.
 */
bool lazy_slot_begin(MappedRamLazy *l, LazySlot *slot, Error **errp);

/*
 * Waits for it, and places it.  @urgent: a page to be placed first, or any
 * other number.  @placed: set to how many pages this call has placed.
 */
bool lazy_slot_finish(MappedRamLazy *l, LazySlot *slot, unsigned long urgent,
                      uint64_t *placed, Error **errp);

/*
 * Serves @fault with @slot.  Returns whether the page is there; if not, @errp
 * is set, and the fault is still to be served.
 */
bool lazy_serve_fault(MappedRamLazy *l, LazySlot *slot,
                      const MappedRamFault *fault, Error **errp);

/* Gives the page of @fault zeros, whatever the file has. */
void lazy_serve_zeros(MappedRamLazy *l, LazySlot *slot,
                      const MappedRamFault *fault);

/*
 * Notes that @count more pages are placed, in whichever way.  Ends all when
 * these were the last.
 */
void lazy_count_down(MappedRamLazy *l, uint64_t count);

#endif /* MIGRATION_MAPPED_RAM_LAZY_INT_H */
