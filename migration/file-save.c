/*
 * Saving to a file: what the migration thread does with the file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See file-save.h.
 */

#include "qemu/osdep.h"
#include "file-last-stage.h"
#include "file-save.h"
#include "file-save-compat.h"
#include "file-transport-int.h"
#include "options.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "ram.h"

static const FileSaveRam *save_ram;

void file_save_set_ram(const FileSaveRam *ram)
{
    save_ram = ram;
}

void file_save_release_guest(MigrationState *s)
{
    if (!file_transport_active()) {
        return;
    }
    if (migrate_auto_converge()) {
        cpu_throttle_stop();
    }
    if (file_last_stage_take_guest()) {
        migration_resume_vm(s);
    }
}

/* Called with the BQL held, which it drops meanwhile. */
static void release_guest_in_thread(MigrationState *s)
{
    file_save_release_guest(s);
    file_save_compat_end_dirty_limit();
}

void file_save_abort(MigrationState *s)
{
    if (!file_transport_active()) {
        return;
    }
    if (migrate_background_snapshot()) {
        /*
         * Nobody serves write faults any more.  A thread that waits for one may
         * hold the BQL.
         */
        ram_write_tracking_stop();
    }
    /*
     * All that follows may wait for the disk; the guest need not, unless its
     * image may be valid.
     */
    if (!file_transport_committed()) {
        file_save_compat_lock_bql();
        release_guest_in_thread(s);
        file_save_compat_unlock_bql();
    }
    /* First stop the workers, which write the file and read the dirty bitmap */
    if (save_ram) {
        save_ram->cleanup();
    }
    /* Data that is still queued in the stream must not reach the file */
    qemu_file_set_error(s->to_dst_file, -ECANCELED);
    file_transport_discard();
}

bool file_save_begin(MigrationState *s)
{
    Error *err = NULL;
    bool prepared = !save_ram || save_ram->prepare(s->to_dst_file, &err);

    /* A save that is cancelled this early need not cost the old image */
    if (s->state == MIGRATION_STATUS_CANCELLING && file_transport_active()) {
        error_free(err);
        return false;
    }
    if (prepared && file_transport_begin(&err)) {
        return true;
    }
    migrate_set_error(s, err);
    error_free(err);
    file_save_abort(s);
    migrate_set_state(&s->state, MIGRATION_STATUS_SETUP,
                      MIGRATION_STATUS_FAILED);
    return false;
}

uint64_t file_save_pending(uint64_t pending)
{
    FileTransport *t = file_transport_get();
    uint64_t last;

    if (!t || runstate_is_running() || !save_ram || !save_ram->is_clean()) {
        return pending;
    }
    last = t->has_pending ? t->pending : UINT64_MAX;
    t->has_pending = true;
    t->pending = pending;
    return pending < last ? pending : 0;
}

bool file_save_sync_early(MigrationState *s, uint64_t written,
                          uint64_t pending)
{
    FileTransport *t = file_transport_get();
    int64_t start = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    Error *err = NULL;
    bool wait;

    /* A block device is synced in any case: see file_transport_sync() */
    if (!t || !runstate_is_running() ||
        (t->regular && !migrate_file_sync())) {
        return false;
    }
    wait = file_early_sync(&t->early, written, pending, s->threshold_size,
                           s->parameters.downtime_limit, &err);
    if (err) {
        qemu_file_set_error_obj(s->to_dst_file, -EIO, err);
    }
    /* The time of the sync does not belong to the bandwidth */
    s->iteration_start_time += qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - start;
    return wait;
}

bool file_save_sync(MigrationState *s)
{
    Error *err = NULL;

    if (file_transport_sync(&err)) {
        return true;
    }
    migrate_set_error(s, err);
    error_free(err);
    return false;
}

void file_save_keep_error(MigrationState *s)
{
    Error *err = NULL;

    if (!file_transport_active()) {
        return;
    }
    qemu_file_get_error_obj(s->to_dst_file, &err);
    if (err) {
        migrate_set_error(s, err);
        error_free(err);
    }
}

void file_save_forget_error(void)
{
    MigrationState *s = migrate_get_current();

    QEMU_LOCK_GUARD(&s->error_mutex);
    g_clear_pointer(&s->error, error_free);
}

bool file_save_check_idle(Error **errp)
{
    FileTransport *t = file_transport_get();

    if (!t || !t->outgoing || !file_save_compat_running()) {
        return true;
    }
    error_setg(errp, "The machine is being saved to '%s'; wait until the save "
               "has ended", t->name);
    return false;
}

bool file_save_check_postcopy(Error **errp)
{
    FileTransport *t = file_transport_get();

    if (!t || !t->outgoing) {
        return true;
    }
    error_setg(errp, "The machine is being saved to '%s'; postcopy needs a "
               "running destination", t->name);
    return false;
}

void file_save_publish(MigrationState *s)
{
    /* The guest may be continued, without a limit; drops the BQL meanwhile */
    file_save_compat_end_dirty_limit();
    if (s->state == MIGRATION_STATUS_CANCELLING) {
        return;
    }
    if (s->total_time > s->setup_time) {
        /* A short save may end before its rate has been measured */
        s->pages_per_second = ram_get_total_transferred_pages() * 1000 /
                              (s->total_time - s->setup_time);
    }
    /* A reason to cancel that came after the commit does not matter any more */
    file_save_forget_error();
    file_transport_unlock();
    file_last_stage_end();
    migrate_set_state(&s->state, s->state, MIGRATION_STATUS_COMPLETED);
    if (!migrate_background_snapshot()) {
        runstate_set(RUN_STATE_POSTMIGRATE);
    }
}

void file_save_fail(MigrationState *s)
{
    file_save_abort(s);
    file_save_compat_lock_bql();
    release_guest_in_thread(s);
    if (s->state != MIGRATION_STATUS_CANCELLING) {
        migrate_set_state(&s->state, s->state, MIGRATION_STATUS_FAILED);
    }
    file_save_compat_unlock_bql();
}
