/*
 * Saving to a file: the guest in the last stage
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "block/block_int-common.h"
#include "block/blockjob.h"
#include "block/dirty-bitmap.h"
#include "file-last-stage.h"
#include "file-queue.h"
#include "file-save-compat.h"
#include "file-transport-int.h"
#include "options.h"
#include "qapi/error.h"
#include "trace.h"

void file_last_stage_stop_guest(void)
{
    FileTransport *t = file_transport_get();

    if (t) {
        t->stops_guest = true;
    }
}

void file_last_stage_guest_stopped(void)
{
    FileTransport *t = file_transport_get();

    if (t) {
        t->stops_guest = false;
        t->has_guest = true;
    }
}

void file_last_stage_begin(QEMUFile *f)
{
    if (file_transport_active() && migrate_mapped_ram()) {
        file_queue_begin(qemu_file_get_ioc(f));
    }
}

static bool is_mirror(BlockJob *job)
{
    return job->job.driver->job_type == JOB_TYPE_MIRROR &&
           !job_is_completed_locked(&job->job);
}

/*
 * Returns whether @job, a mirror, has nothing left to copy.  If it is not
 * drained, it may still write what it has read.
 */
static bool mirror_is_idle(const BlockJob *job)
{
    for (const GSList *node = job->nodes; node; node = node->next) {
        const BdrvChild *child = node->data;
        BdrvDirtyBitmap *bitmap;

        /* Its own bitmap, which has no name, is on one of its nodes. */
        FOR_EACH_DIRTY_BITMAP(child->bs, bitmap) {
            if (!bdrv_dirty_bitmap_name(bitmap) &&
                bdrv_get_dirty_count(bitmap)) {
                return false;
            }
        }
    }
    return true;
}

static bool has_mirror(void)
{
    BlockJob *job = NULL;

    JOB_LOCK_GUARD();
    while ((job = block_job_next_locked(job))) {
        if (is_mirror(job)) {
            return true;
        }
    }
    return false;
}

static bool check_mirrors(bool drained, Error **errp)
{
    BlockJob *job = NULL;

    JOB_LOCK_GUARD();
    while ((job = block_job_next_locked(job))) {
        if (is_mirror(job) && !(job_is_ready_locked(&job->job) &&
                                (!drained || mirror_is_idle(job)))) {
            error_setg(errp, "Block job '%s' still copies a disk, which must "
                       "not change any more when the machine is saved; "
                       "complete or cancel it first", job->job.id);
            return false;
        }
    }
    return true;
}

bool file_last_stage_check_jobs(bool guest_stopped, Error **errp)
{
    bool ok;

    if (!has_mirror()) {
        return true;
    }
    if (!guest_stopped) {
        return check_mirrors(false, errp);
    }
    bdrv_drain_all_begin();
    ok = check_mirrors(true, errp);
    bdrv_drain_all_end();
    return ok;
}

void file_last_stage_flush(QEMUFile *f)
{
    Error *err = NULL;

    if (qemu_file_get_error(f)) {
        file_queue_drop();
    } else if (!file_queue_flush(&err)) {
        qemu_file_set_error_obj(f, -EIO, err);
    }
}

bool file_last_stage_has_guest(void)
{
    FileTransport *t = file_transport_get();

    return t && (t->has_guest || t->stops_guest);
}

void file_last_stage_end(void)
{
    FileTransport *t = file_transport_get();

    if (t) {
        t->has_guest = false;
    }
}

bool file_last_stage_take_guest(void)
{
    FileTransport *t = file_transport_get();

    if (!t || !t->has_guest) {
        return false;
    }
    t->has_guest = false;
    trace_migration_file_resume(t->name);
    return true;
}

void file_last_stage_stop(RunState state)
{
    if (file_last_stage_has_guest()) {
        /* Only a running machine can enter this state */
        if (state == RUN_STATE_DEBUG) {
            state = RUN_STATE_PAUSED;
        }
        file_save_compat_stay_stopped(migrate_get_current(), state);
    }
}
