/*
 * An engine for the tests of include/io/direct-queue.h whose requests fail,
 * stop short or complete out of order, as planned by a test
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_DIRECT_QUEUE_FAULT_H
#define TESTS_DIRECT_QUEUE_FAULT_H

#include "io/direct-queue.h"

typedef enum FaultOrder {
    FAULT_IN_ORDER,
    FAULT_LAST_FIRST,
    FAULT_RANDOM,
} FaultOrder;

/*
 * What the engine does next.  Submissions are counted from 1; a member that is
 * 0 has no effect.
 */
typedef struct FaultPlan {
    /* Complete requests on submission, or else in this order. */
    bool immediate;
    FaultOrder order;

    /* For fault_queue(): alignment of memory, and limit of bytes in flight */
    uint32_t mem_align;
    uint64_t bytes;

    /* No transfer moves more than this. */
    size_t max_len;

    /*
     * Submission @at, and every @every-th one, moves at most @result bytes.
     * If @result is 0 or a negative errno value, it moves nothing and that is
     * its result.
     */
    uint64_t at, every;
    ssize_t result;

    /* Instead: the engine is busy, or the transfer takes this long. */
    bool busy;
    unsigned delay_us;

    /* In addition: cancel this queue. */
    DirectQueue *cancel;

    /* The most bytes, or the error, of each of the first submissions. */
    ssize_t script[4];

    /* What the engine has seen */
    uint64_t submissions;
    uint64_t reaped;
    uint64_t opened, closed;
    uint64_t submissions_when_failed;   /* when the first error was reaped */
} FaultPlan;

extern FaultPlan fault;

/* Reset the plan and what the engine has seen. */
void fault_reset(void);

/* Create a queue with this engine on a new file, whose descriptor is @fd. */
DirectQueue *fault_queue(int *fd, uint32_t align, uint32_t size,
                         unsigned depth);

/* Free the queue, and close its file. */
void fault_queue_free(DirectQueue *q, int fd);

/*
 * Write @len bytes at offset 0 and read them back.  Reads count submissions
 * anew for @at, so one write and one read are hit.
 */
void fault_write_and_read(DirectQueue *q, int fd, size_t len);

#endif /* TESTS_DIRECT_QUEUE_FAULT_H */
