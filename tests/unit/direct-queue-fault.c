/*
 * An engine for the tests of include/io/direct-queue.h whose requests fail,
 * stop short or complete out of order, as planned by a test
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "../../io/direct-queue-int.h"
#include "direct-queue-fault.h"
#include "direct-queue-helpers.h"

FaultPlan fault;

/* The engine's state */
typedef struct FaultState {
    int fd;
    unsigned depth;
    DirectIOLimits limits;
    unsigned n;
    struct {
        DirectRequest *req;
        ssize_t result;
    } *waiting;
} FaultState;

void fault_reset(void)
{
    memset(&fault, 0, sizeof(fault));
}

static bool fault_open(const DirectQueueConfig *config, unsigned depth,
                       void **state, Error **errp)
{
    FaultState *s = g_new0(FaultState, 1);

    s->fd = config->fd;
    s->depth = depth;
    s->limits = config->limits;
    s->waiting = g_malloc0_n(depth, sizeof(*s->waiting));
    fault.opened++;
    *state = s;
    return true;
}

static void fault_close(void *state)
{
    FaultState *s = state;

    g_assert_cmpuint(s->n, ==, 0);
    fault.closed++;
    g_free(s->waiting);
    g_free(s);
}

/* Whether @at or @every selects the current submission. */
static bool fault_hits(void)
{
    return fault.submissions == fault.at ||
           (fault.every && fault.submissions % fault.every == 0);
}

/* Transfer all, part or nothing of @req, as planned. */
static ssize_t fault_transfer(FaultState *s, DirectRequest *req)
{
    DirectRequest part = *req;

    g_assert(QEMU_PTR_IS_ALIGNED(req->buf, s->limits.mem_align));
    g_assert(QEMU_IS_ALIGNED(req->offset, s->limits.offset_align));
    g_assert(QEMU_IS_ALIGNED(req->len, s->limits.offset_align));
    g_assert_cmpuint(req->len, >, 0);

    if (fault.max_len) {
        part.len = MIN(part.len, fault.max_len);
    }
    if (fault_hits()) {
        if (fault.result <= 0) {
            return fault.result;
        }
        part.len = MIN(part.len, fault.result);
    }
    if (fault.submissions <= ARRAY_SIZE(fault.script)) {
        ssize_t result = fault.script[fault.submissions - 1];

        if (result < 0) {
            return result;
        }
        part.len = result ? MIN(part.len, result) : part.len;
    }
    return direct_queue_transfer_sync(s->fd, &part);
}

static DirectSubmit fault_submit(void *state, DirectRequest *req,
                                 ssize_t *result)
{
    FaultState *s = state;

    fault.submissions++;
    if (fault.cancel && fault_hits()) {
        direct_queue_cancel(fault.cancel);
    }
    if (fault.busy && fault_hits()) {
        return DIRECT_SUBMIT_BUSY;
    }
    if (fault.delay_us && fault_hits()) {
        g_usleep(fault.delay_us);
        *result = direct_queue_transfer_sync(s->fd, req);
    } else {
        *result = fault_transfer(s, req);
    }
    if (fault.immediate) {
        return DIRECT_SUBMIT_DONE;
    }
    g_assert_cmpuint(s->n, <, s->depth);
    s->waiting[s->n].req = req;
    s->waiting[s->n++].result = *result;
    /* The core must not look at @result before the request is reaped. */
    *result = INT_MIN;
    return DIRECT_SUBMIT_QUEUED;
}

/* Reap as late as the contract allows: nothing completes unless @wait. */
static bool fault_reap(void *state, bool wait, DirectRequest **req,
                       ssize_t *result)
{
    FaultState *s = state;
    unsigned i = 0;

    g_assert_cmpuint(s->n, >, 0);
    if (!wait) {
        return false;
    }
    if (fault.order == FAULT_LAST_FIRST) {
        i = s->n - 1;
    } else if (fault.order == FAULT_RANDOM) {
        i = g_test_rand_int_range(0, s->n);
    }
    *req = s->waiting[i].req;
    *result = s->waiting[i].result;
    s->n--;
    memmove(&s->waiting[i], &s->waiting[i + 1],
            (s->n - i) * sizeof(*s->waiting));
    fault.reaped++;
    if (*result < 0 && !fault.submissions_when_failed) {
        fault.submissions_when_failed = fault.submissions;
    }
    return true;
}

static const DirectQueueEngine fault_engine = {
    .name = "fault",
    .open = fault_open,
    .close = fault_close,
    .submit = fault_submit,
    .reap = fault_reap,
};

DirectQueue *fault_queue(int *fd, uint32_t align, uint32_t size,
                         unsigned depth)
{
    DirectQueueConfig config = {
        .name = "the-file",
        .limits = { fault.mem_align ?: align, align, size },
        .depth = depth,
        .bytes = fault.bytes,
    };

    *fd = direct_io_test_file(g_get_tmp_dir(), 0, NULL);
    config.fd = *fd;
    return direct_queue_new_with_engine(&config, &fault_engine, &error_abort);
}

void fault_queue_free(DirectQueue *q, int fd)
{
    direct_queue_free(q);
    close(fd);
}

void fault_write_and_read(DirectQueue *q, int fd, size_t len)
{
    uint8_t *buf = qemu_memalign(BUF_ALIGN, len);
    uint64_t first = fault.submissions;

    pattern_fill(buf, len, 0);
    g_assert(direct_queue_write(q, buf, len, 0, &error_abort));
    g_assert(direct_queue_drain(q, &error_abort));
    pattern_check_file(fd, len, 0);
    memset(buf, 0, len);
    /* Count reads anew, so that @at hits one of them, too. */
    if (fault.at) {
        fault.submissions = 0;
    }
    g_assert(direct_queue_read(q, buf, len, 0, &error_abort));
    g_assert(direct_queue_drain(q, &error_abort));
    pattern_check(buf, len, 0);
    fault.submissions += fault.at ? first : 0;
    qemu_vfree(buf);
}
