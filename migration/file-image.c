/*
 * Migration to a file: invalidating, committing and discarding the image
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See file-transport.h.
 */

#include "qemu/osdep.h"
#include "file-save-compat.h"
#include "file-transport-int.h"
#include "migration.h"
#include "options.h"
#include "qapi/error.h"
#include "qemu-file.h"
#include "qemu/error-report.h"
#include "savevm.h"
#include "trace.h"

/* Bytes to overwrite to invalidate an image that cannot be truncated */
#define FILE_INVALIDATE_SIZE 4096

bool file_transport_begin(Error **errp)
{
    FileTransport *t = file_transport_get();

    if (!t || !t->outgoing) {
        return true;
    }
    trace_migration_file_begin(t->name, t->offset);
    if (t->regular && !t->adopted &&
        ftruncate(t->fd, t->offset) < 0) {
        error_setg_errno(errp, errno, "Unable to set the size of '%s' to %"
                         PRIu64 " bytes", t->name, t->offset);
        return false;
    }
    t->begun = true;
    t->created = false;
    if (!migrate_mapped_ram()) {
        file_transport_set_phase(MIGRATION_FILE_PHASE_STREAM);
    }
    return true;
}

/* Does an fsync() if the file is new and @all is needed, else fdatasync() */
static int file_sync_fd(int fd, bool all)
{
    int ret;

    do {
#ifdef _WIN32
        ret = qemu_fdatasync(fd);
#else
        ret = all ? fsync(fd) : qemu_fdatasync(fd);
#endif
    } while (ret < 0 && errno == EINTR);
    return ret;
}

/* Syncs the entry of a new file in its directory. */
static int file_sync_entry(const FileTransport *t)
{
    if (t->dir_fd >= 0) {
        int ret = file_sync_fd(t->dir_fd, true);

        /* Some file systems cannot sync a directory */
        return ret < 0 && errno == EINVAL ? 0 : ret;
    }
    /* It may be written to, but not be read */
#ifdef CONFIG_LINUX
    return syncfs(t->fd);
#else
    return 0;
#endif
}

static bool file_sync_to_storage(FileTransport *t, Error **errp)
{
    int direct_fd = t->direct.fd;

    /* A server may report errors only on the descriptor that was written */
    if (direct_fd >= 0 && file_sync_fd(direct_fd, false) < 0) {
        error_setg_errno(errp, errno, "Unable to bring '%s' to stable storage, "
                         "through its descriptor with O_DIRECT",
                         t->name);
        return false;
    }
    if (file_sync_fd(t->fd, t->is_new) < 0) {
        error_setg_errno(errp, errno, "Unable to bring '%s' to stable storage",
                         t->name);
        return false;
    }
    if (t->is_new && file_sync_entry(t) < 0) {
        error_setg_errno(errp, errno, "Unable to bring the directory of '%s' "
                         "to stable storage", t->name);
        return false;
    }
    return true;
}

bool file_transport_sync_early(Error **errp)
{
    FileTransport *t = file_transport_get();
    MigrationFilePhase phase;
    bool had_phase = file_transport_phase(&phase);
    bool ok;

    if (!t || !t->begun) {
        return true;
    }
    file_transport_set_phase(MIGRATION_FILE_PHASE_SYNC);
    ok = file_sync_to_storage(t, errp);
    if (had_phase) {
        file_transport_set_phase(phase);
    }
    return ok;
}

/* Writes @magic where qemu_savevm_state_header() puts the magic number */
static bool file_write_magic(FileTransport *t, uint32_t magic, Error **errp)
{
    uint32_t value = cpu_to_be32(magic);

    return qio_channel_pwrite_all(QIO_CHANNEL(t->ioc), (char *)&value,
                                  sizeof(value), t->offset, errp) == 0;
}

bool file_transport_invalidate(Error **errp)
{
    FileTransport *t = file_transport_get();

    if (!t || !t->begun) {
        return true;
    }
    if (!file_write_magic(t, 0, errp)) {
        error_prepend(errp, "'%s': ", t->name);
        return false;
    }
    t->invalidated = true;
    /* An old image that was not truncated must be gone before pages come */
    return (t->regular && !t->adopted) ||
           file_sync_to_storage(t, errp);
}

bool file_transport_committed(void)
{
    FileTransport *t = file_transport_get();

    return t && t->committed;
}

/*
 * Marks the image as committed, unless the save has been cancelled.  A
 * cancelled save resumes the guest at once, and the guest must not run while
 * there is a valid image of it: its memory would no longer match the disks when
 * it is restored.
 */
static bool file_decide(FileTransport *t)
{
    file_save_compat_lock_bql();
    t->committed = migrate_get_current()->state !=
                   MIGRATION_STATUS_CANCELLING;
    file_save_compat_unlock_bql();
    return t->committed;
}

/* A file that has no name any more would be gone with this process. */
static bool file_check_name(const FileTransport *t, Error **errp)
{
    struct stat st;

    if (t->has_name && fstat(t->fd, &st) == 0 && st.st_nlink == 0) {
        error_setg(errp, "'%s' was removed during the save", t->name);
        return false;
    }
    return true;
}

/* Commits the image; everything else must be on stable storage by then */
static bool file_commit(FileTransport *t, Error **errp)
{
    if (!t->invalidated) {
        return true;
    }
    if (!file_decide(t)) {
        error_setg(errp, "'%s': the save was cancelled", t->name);
        return false;
    }
    if (!file_write_magic(t, QEMU_VM_FILE_MAGIC, errp)) {
        error_prepend(errp, "'%s': ", t->name);
        return false;
    }
    t->invalidated = false;
    return true;
}

/*
 * Network and FUSE file systems may report errors of earlier writes when any
 * descriptor of the file is closed. When the channel closes its own, it is too
 * late to fail, so close a duplicate that is there for this purpose.
 */
static bool file_check_close(FileTransport *t, Error **errp)
{
    int fd = t->close_fd;

    t->close_fd = -1;
    if (fd >= 0 && close(fd) < 0) {
        error_setg_errno(errp, errno, "Unable to finish writing '%s'",
                         t->name);
        return false;
    }
    return true;
}

bool file_transport_sync(Error **errp)
{
    FileTransport *t = file_transport_get();
    int64_t start = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    bool sync, ok;

    if (!t || !t->begun) {
        return true;
    }
    /* A block device is synced when it is closed: by the main thread */
    sync = migrate_file_sync() || !t->regular;
    if (sync) {
        file_transport_set_phase(MIGRATION_FILE_PHASE_SYNC);
    }
    /* Two syncs: the magic number must not reach the disk before the rest */
    ok = file_direct_check_close(&t->direct, t->name, errp) &&
         file_check_name(t, errp) &&
         (!sync || !t->invalidated || file_sync_to_storage(t, errp)) &&
         file_commit(t, errp) && (!sync || file_sync_to_storage(t, errp)) &&
         file_check_close(t, errp);
    trace_migration_file_sync(t->name, sync, ok,
                              qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - start);
    return ok;
}

/* Truncates the file to the offset, but never extends it */
static bool file_cut(FileTransport *t)
{
    struct stat st;

    if (!t->regular || t->adopted ||
        fstat(t->fd, &st) < 0) {
        return false;
    }
    return st.st_size <= t->offset ||
           ftruncate(t->fd, t->offset) == 0;
}

static bool file_invalidate(FileTransport *t)
{
    g_autofree char *zeroes = g_malloc0(FILE_INVALIDATE_SIZE);

    return qio_channel_pwrite_all(QIO_CHANNEL(t->ioc), zeroes,
                                  FILE_INVALIDATE_SIZE, t->offset,
                                  NULL) == 0;
}

void file_image_remove_unused(FileTransport *t)
{
    if (t->created) {
        file_transport_remove(t->name, t->fd);
    }
    t->created = false;
}

void file_transport_discard(void)
{
    FileTransport *t = file_transport_get();
    bool gone;

    if (!t) {
        return;
    }
    if (!t->begun) {
        file_image_remove_unused(t);
        return;
    }
    t->begun = false;
    qatomic_set(&t->phase, FILE_NO_PHASE);
    trace_migration_file_discard(t->name, t->offset);

    gone = file_cut(t) || file_invalidate(t);
    /*
     * A valid image of a guest that will run must not come back after a loss of
     * power.  What has been written to a block device would be synced when it
     * is closed: by the main thread, with the BQL held.
     */
    if ((t->committed || !t->regular) && file_sync_fd(t->fd, false) < 0 &&
        t->committed) {
        gone = false;
    }
    if (!gone) {
        warn_report("Unable to discard the image in '%s': do not restore "
                    "it; remove the file, or overwrite the first 4 KiB of the "
                    "image", t->name);
    }
    file_transport_release_lock(t);
}
