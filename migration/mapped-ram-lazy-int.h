/*
 * Instant restore: definitions shared by its files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Private to migration/mapped-ram-lazy*.c.  mapped-ram-lazy.c implements the
 * object, its blocks and its threads; mapped-ram-lazy-load.c moves pages for
 * them.  See include/migration/mapped-ram-lazy.h.
 */

#ifndef MIGRATION_MAPPED_RAM_LAZY_INT_H
#define MIGRATION_MAPPED_RAM_LAZY_INT_H

#include "mapped-ram-uffd.h"
#include "mapped-ram-worker.h"
#include "migration/mapped-ram-lazy.h"
#include "qemu/event_notifier.h"
#include "qemu/thread.h"

/* Fault threads; this many pages can be read at once, before all others. */
#define FAULT_THREADS 4

/*
 * How many workers load in the background, at most, and how many reads each has
 * in flight while the guest needs pages, and otherwise.  A fault waits in the
 * disk's queue behind these: while 1 GiB was loaded by two workers with four
 * reads each, half of the faults took more than 9 ms, with two reads each 5 ms;
 * the load took 0.59 and 0.70 s (medians of three).
 *
 * Each of these reads has a thread of its own, which waits for nothing else: so
 * a read that never ends delays neither the other pages nor the report of an
 * error.  No more of them use a CPU at a time than there are workers.
 */
#define WORKERS_MAX 4
#define READS 2
#define READS_QUIET 4
/* So long after a fault the guest is taken to need no pages. */
#define QUIET_US (100 * 1000)

/* Classes of times, eight for each power of two: the error is below 13 %. */
#define TIME_CLASSES (40 * 8)

/* A registered range of memory */
typedef struct LazyRange {
    uint8_t *host;
    size_t len;
} LazyRange;

typedef struct LazyBlock {
    /* constant once the block is in the list, at position @index */
    unsigned index;
    char *name;
    uint8_t *host;
    MappedRamLayout layout;
    /* number of pages placed together, if the host's page is larger */
    unsigned long unit;
    /* the host's page size */
    size_t page_size;
    bool can_zero;
    /* atomic: cleared when the kernel has refused to move pages */
    bool can_move;
    unsigned long *present;
    unsigned long extent_pages;
    unsigned long extents;
    GArray *ranges;

    /*
     * pages of @present that are placed; each bit is set once, atomically, and
     * not before the page is there: see lazy_serve_fault()
     */
    unsigned long *done;
    /* extents claimed by a background thread; under the object's lock */
    unsigned long *claimed;
} LazyBlock;

/* A fault whose page could not be read; one for each thread and page */
typedef struct LazyParked {
    MappedRamFault fault;
    LazyBlock *block;
    unsigned long page;
    /* when to try again, compared to g_get_monotonic_time() */
    int64_t due;
    /* whether a fault thread is trying again */
    bool retried;
} LazyParked;

/* The costs of placing a huge page by moving it, or by copying it */
typedef struct LazyCosts {
    /* microseconds; 0 until measured */
    uint64_t buffer_us, copy_us;
    /* number of huge pages so far */
    unsigned pages;
} LazyCosts;

/* A buffer, and the queues to fill it */
typedef struct LazySlot {
    /* whether it serves faults */
    bool fault;
    /* zeroed after an error, when there are no queues */
    MappedRamWorker worker;
    /* NULL until needed, and after its pages have been moved away */
    uint8_t *buf;
    LazyCosts costs;
    /* what is being read: @pages pages of @block, starting at @first */
    LazyBlock *block;
    unsigned long first, pages;
    /* the block for the worker, limited to these pages and to the buffer */
    MappedRamBlock view;
    DECLARE_BITMAP(wanted, MAPPED_RAM_EXTENT_PAGES);
} LazySlot;

typedef struct LazyThread {
    MappedRamLazy *lazy;
    QemuThread thread;
    char *name;
    bool created;
    /* whether it only reads when no fault has come for QUIET_US */
    bool extra;
    LazySlot slot;
    /* the fault that it serves, and since when; under the object's lock */
    bool serves;
    MappedRamFault fault;
    int64_t since;
} LazyThread;

struct MappedRamLazy {
    /* constant */
    MappedRamLazyConfig config;
    int uffd;
    /* The first FAULT_THREADS of these serve faults. */
    unsigned threads;
    LazyThread *thread;
    /* how many reads, and thus threads, each worker has at most */
    unsigned reads;
    /* number of ranges of all blocks; for the thread that adds them */
    unsigned ranges;
    /* taken by background threads to use a CPU; as many as there are workers */
    QemuSemaphore turns;

    /*
     * Pages of @present that are not placed yet, plus 1 before the start;
     * atomic, so no wider than a pointer
     */
    size_t remaining;
    /* held by the fault thread that waits for the next fault */
    QemuMutex fault_lock;
    /* wakes that thread */
    EventNotifier notifier;

    /* all below is under this lock */
    QemuMutex lock;
    /* wakes threads that wait for a retry, or for the end */
    QemuCond retry;
    /* array of LazyBlock; only grows, and not after the start */
    GPtrArray *blocks;
    bool started;
    bool stop;
    bool freeing;
    unsigned running;
    /* when the last fault came, in microseconds of the monotonic clock */
    int64_t last_fault;
    /* where the background load continues */
    unsigned cursor_block;
    unsigned long cursor_extent;
    /* the first error since the last retry, and the number of retries */
    Error *err;
    unsigned retries;
    /* array of LazyParked */
    GArray *parked;

    uint64_t total, length;
    uint64_t fault_pages, background_pages, moved_pages;
    uint64_t faults, zero_faults;
    uint64_t times[TIME_CLASSES];
    uint64_t slowest_us, slowest_offset;
    uint64_t page_size;
    /* of queues that have been freed */
    MappedRamStats stats;
};

/*
 * Creates the queues, and for faults the buffer, too.  Returns false with @errp
 * set on failure.
 */
bool lazy_slot_init(MappedRamLazy *l, LazySlot *slot, Error **errp);

/*
 * Frees the queues, waiting for requests in flight.  @slot may be zeroed, also
 * for the next function.
 */
void lazy_slot_destroy(MappedRamLazy *l, LazySlot *slot);

/* Frees the buffer. */
void lazy_slot_free_buf(LazySlot *slot);

/*
 * Decides whether to move the next huge page or to copy it, and counts it.
 * Moving costs a new buffer, which the kernel clears: on most hosts that takes
 * less than a copy, but several times as long in a virtual machine whose host
 * has taken free memory back.  So this chooses the cheaper way, and, more and
 * more seldom, the other one, since costs may change.  Changes only @costs.
 */
bool lazy_should_move(LazyCosts *costs);

/*
 * Begins to read those of the slot's pages that are in the file and not placed
 * yet.  This and the next two functions are for one thread at a time.  Returns
 * false with @errp set on failure.
 */
bool lazy_slot_begin(MappedRamLazy *l, LazySlot *slot, Error **errp);

/*
 * Waits for these reads and places the pages.  @urgent: a page to be placed
 * first, or any other number.  @placed: set to how many pages this call has
 * placed.  Fails at once when one of the reads has failed; others may still be
 * in flight then, and lazy_slot_destroy() waits for them.
 */
bool lazy_slot_finish(MappedRamLazy *l, LazySlot *slot, unsigned long urgent,
                      uint64_t *placed, Error **errp);

/*
 * Returns the block that @address is in, with @page set to the first page of
 * the host's page there; or NULL.  Called with the lock held.
 */
LazyBlock *lazy_find_page(MappedRamLazy *l, uint64_t address,
                          unsigned long *page);

/* Returns whether the host's page at @page is in the file, and placed. */
bool lazy_is_placed(LazyBlock *b, unsigned long page);

/*
 * Serves @fault with @slot.  Returns true if the page is there; otherwise sets
 * @errp, and the fault remains to be served.
 */
bool lazy_serve_fault(MappedRamLazy *l, LazySlot *slot,
                      const MappedRamFault *fault, Error **errp);

/*
 * Places a zero page for @fault, whatever the file has.  Returns whether there
 * is memory for it.
 */
bool lazy_serve_zeros(MappedRamLazy *l, LazySlot *slot,
                      const MappedRamFault *fault);

/*
 * Accounts for @count more pages that have been placed, by any means.  The load
 * ends after the last page.
 */
void lazy_count_down(MappedRamLazy *l, uint64_t count);

#endif /* MIGRATION_MAPPED_RAM_LAZY_INT_H */
