/*
 * Migration to and from a file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#ifndef _WIN32
#include <sys/resource.h>
#endif
#include "channel.h"
#include "file-aside.h"
#include "file-fdset.h"
#include "file-last-stage.h"
#include "file-queue.h"
#include "file-transport-int.h"
#include "migration.h"
#include "options.h"
#include "qemu-file.h"
#include "ram.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "trace.h"

static FileTransport *current;

FileTransport *file_transport_get(void)
{
    return current;
}

void file_transport_set_phase(MigrationFilePhase phase)
{
    if (current) {
        trace_migration_file_phase(current->name,
                                   MigrationFilePhase_str(phase));
        qatomic_set(&current->phase, phase);
    }
}

bool file_transport_phase(MigrationFilePhase *phase)
{
    *phase = current ? qatomic_read(&current->phase) : FILE_NO_PHASE;
    return *phase != FILE_NO_PHASE;
}

static bool file_check_type(const struct stat *st, const char *name,
                            Error **errp)
{
    if (S_ISREG(st->st_mode)) {
        return true;
    }
#ifndef _WIN32
    if (S_ISBLK(st->st_mode)) {
        return true;
    }
#endif
    if (S_ISDIR(st->st_mode)) {
        error_setg(errp, "'%s' is a directory", name);
    } else {
        error_setg(errp, "'%s' is not a seekable file, only regular files and "
                   "block devices are; consider migrating to or from 'fd:' or "
                   "'exec:'", name);
    }
    return false;
}

static bool file_check_args(const FileMigrationArgs *args, Error **errp)
{
    if (!*args->filename) {
        error_setg(errp, "The file URI has no path; use "
                   "file:PATH[,offset=N]");
        return false;
    }
    if (args->offset > INT64_MAX) {
        error_setg(errp, "Offset %" PRIu64 " of '%s' is too large: files have "
                   "less than 8E bytes", args->offset, args->filename);
        return false;
    }
    return true;
}

/* Refuses capabilities that need more than one plain stream one way */
static bool file_check_capabilities(bool outgoing, Error **errp)
{
    const char *name = NULL;

    if (migrate_multifd_packets()) {
        name = "Multifd without mapped-ram";
    } else if (migrate_tls()) {
        name = "TLS";
    } else if (migrate_postcopy_preempt()) {
        name = "Postcopy preemption";
    } else if (outgoing && migrate_postcopy_ram()) {
        name = "Postcopy";
    } else if (outgoing && migrate_return_path()) {
        name = "A return path";
    } else if (outgoing && migrate_colo()) {
        name = "COLO";
    }
    if (name) {
        error_setg(errp, "%s is not supported for migration %s a file", name,
                   outgoing ? "to" : "from");
    }
    return !name;
}

/*
 * Refuses early what would fail in the last stage, so that an old image is not
 * lost for it.  A user who asks for a pause before that may end jobs then.
 */
static bool file_check_jobs(Error **errp)
{
    return migrate_pause_before_switchover() || migrate_background_snapshot() ||
           file_last_stage_check_jobs(false, errp);
}

/* Like qemu_open(), but from an fdset takes a descriptor without O_DIRECT */
static int file_open(const char *path, bool outgoing, Error **errp)
{
    int access = outgoing ? O_WRONLY : O_RDONLY;

    if (strstart(path, "/dev/fdset/", NULL)) {
        int fd = file_fdset_open(path, access, false, errp);

        errno = EACCES;
        return fd;
    }
    return qemu_open(path, access | O_BINARY, errp);
}

/* Whether @path still is the file that was opened as @fd */
static bool file_is_at(const char *path, int fd)
{
#ifdef _WIN32
    /* There, stat() and fstat() do not identify a file. */
    return true;
#else
    struct stat now, opened;

    return stat(path, &now) == 0 && fstat(fd, &opened) == 0 &&
           now.st_dev == opened.st_dev && now.st_ino == opened.st_ino;
#endif
}

static bool file_is_named(int fd)
{
    struct stat st;

    /* Windows does not count names, and does not remove open files. */
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink > 0;
}

/* Follows symbolic links; the caller frees the result */
static char *file_real_path(const char *path)
{
    char *real = NULL;

#ifndef _WIN32
    real = realpath(path, NULL);
#endif
    return real ?: g_strdup(path);
}

void file_transport_remove(const char *path, int fd)
{
    /* If the path is a symbolic link, that was there before */
    g_autofree char *real = file_real_path(path);

    if (file_is_at(real, fd)) {
        unlink(real);
    }
}

/*
 * Sets @created if the file may not have existed before; but another process
 * may have created it at the same time.
 */
static int file_open_outgoing(const char *path, bool *created, Error **errp)
{
    struct stat st;
    Error *err = NULL;
    int fd;

    *created = false;

    /* Opening a FIFO would wait for a reader, so check first */
    if (stat(path, &st) == 0 && !file_check_type(&st, path, errp)) {
        return -1;
    }

    /*
     * Do not use O_TRUNC: if the migration does not start, the previous
     * contents have to survive.
     */
    fd = file_open(path, true, &err);
    if (fd >= 0 || errno != ENOENT) {
        error_propagate(errp, err);
        return fd;
    }
    error_free(err);
    *created = true;
    return qemu_create(path, O_WRONLY | O_BINARY, 0600, errp);
}

static int file_open_incoming(const char *path, Error **errp)
{
    struct stat st;

    if (stat(path, &st) == 0 && !file_check_type(&st, path, errp)) {
        return -1;
    }
    return file_open(path, false, errp);
}

/*
 * RLIMIT_FSIZE applies to what the process writes to regular files. Beyond it
 * the kernel would send SIGXFSZ, and the image would not fit anyway.
 */
static bool file_check_limit(const FileTransport *t, Error **errp)
{
#ifndef _WIN32
    struct rlimit limit;

    if (t->outgoing && t->regular &&
        getrlimit(RLIMIT_FSIZE, &limit) == 0 &&
        limit.rlim_cur != RLIM_INFINITY &&
        limit.rlim_cur <= t->offset) {
        error_setg(errp, "Offset %" PRIu64 " of '%s' is not below the file "
                   "size limit of this process, %" PRIu64 " bytes "
                   "(RLIMIT_FSIZE); raise the limit or use a smaller offset",
                   t->offset, t->name,
                   (uint64_t)limit.rlim_cur);
        return false;
    }
#endif
    return true;
}

/* Check the size of the opened file and seek to the offset */
static bool file_check_size(const FileTransport *t, int fd, Error **errp)
{
    off_t size = lseek(fd, 0, SEEK_END);

    if (size < 0) {
        error_setg_errno(errp, errno, "'%s' is not a seekable file",
                         t->name);
        return false;
    }
    if (!t->outgoing && !size) {
        error_setg(errp, "'%s' is empty", t->name);
        return false;
    }
    if ((!t->outgoing || !t->regular) &&
        t->offset >= size) {
        error_setg(errp, "Offset %" PRIu64 " is beyond the end of '%s', "
                   "which has %" PRIu64 " bytes", t->offset,
                   t->name, (uint64_t)size);
        return false;
    }
    if (t->outgoing && !t->regular && migrate_mapped_ram() &&
        size - t->offset < ram_bytes_total()) {
        error_setg(errp, "'%s' has %" PRIu64 " bytes behind offset %" PRIu64
                   ", but RAM alone needs %" PRIu64, t->name,
                   (uint64_t)(size - t->offset), t->offset,
                   ram_bytes_total());
        return false;
    }
    if (lseek(fd, t->offset, SEEK_SET) < 0) {
        error_setg_errno(errp, errno, "Unable to seek to offset %" PRIu64
                         " of '%s'", t->offset, t->name);
        return false;
    }
    return true;
}

#ifndef _WIN32
/*
 * A save locks the first bytes, too, since those that block devices lock are
 * there. An image may be loaded while a disk in front of it is in use.
 */
static int64_t lock_start(const FileTransport *t)
{
    return t->outgoing ? 0 : t->offset;
}
#endif

/*
 * Keep two processes from saving to one file, and from loading an image that
 * is still being saved. Traditional POSIX locks are not used, because they are
 * lost when any descriptor of the file is closed. A file system without locks
 * is no reason to refuse a migration.
 */
static bool file_lock(FileTransport *t)
{
#ifndef _WIN32
    int ret;

    if (t->locked || !qemu_has_ofd_lock()) {
        return true;
    }
    ret = qemu_lock_fd(t->fd, lock_start(t), 0, t->outgoing);
    trace_migration_file_lock(t->name, ret);
    /*
     * Other systems' fcntl() may return EACCES for EAGAIN, but Linux never
     * does for these locks: there it means that a security module forbids
     * locking.
     */
    if (ret == -EAGAIN) {
        return false;
    }
    t->locked = ret == 0;
#endif
    return true;
}

void file_transport_release_lock(FileTransport *t)
{
#ifndef _WIN32
    if (t->locked) {
        qemu_unlock_fd(t->fd, lock_start(t), 0);
        t->locked = false;
    }
#endif
}

bool file_transport_take_lock(void)
{
    bool locked = current && current->locked;

    if (locked) {
        current->locked = false;
    }
    return locked;
}

static int file_open_directory(const char *path)
{
#ifdef _WIN32
    return -1;
#else
    g_autofree char *real = file_real_path(path);
    g_autofree char *dir = g_path_get_dirname(real);

    return qemu_open(dir, O_RDONLY | O_DIRECTORY, NULL);
#endif
}

/*
 * Duplicates @fd. The descriptors needed at the end of a save are duplicated at
 * its start, because few may be left later.
 */
static int file_dup(const FileTransport *t, int fd, Error **errp)
{
    int copy = file_direct_dup(fd);

    if (copy < 0) {
        error_setg_errno(errp, errno, "Unable to duplicate a descriptor of "
                         "'%s'", t->name);
    }
    return copy;
}

/* Take all descriptors that will be needed. */
static bool file_take_descriptors(FileTransport *t, int fd, Error **errp)
{
    t->fd = file_dup(t, fd, errp);
    if (t->fd < 0) {
        return false;
    }
    t->ioc = qio_channel_file_new_dupfd(fd, errp);
    if (!t->ioc) {
        error_prepend(errp, "'%s': ", t->name);
        return false;
    }
    /* Newer versions of QEMU do not do that */
    qemu_set_cloexec(t->ioc->fd);
    if (t->outgoing) {
        t->close_fd = file_dup(t, fd, errp);
        return t->close_fd >= 0;
    }
    return true;
}

static void file_transport_free(FileTransport *t)
{
    file_direct_close(&t->direct);
    /* In this order: whoever takes the lock must find the file removed */
    file_image_remove_unused(t);
    file_transport_release_lock(t);
    g_clear_pointer(&t->ioc, object_unref);
    if (t->fd >= 0) {
        close(t->fd);
    }
    if (t->close_fd >= 0) {
        close(t->close_fd);
    }
    if (t->dir_fd >= 0) {
        close(t->dir_fd);
    }
    g_free(t->name);
    g_free(t);
}

/* Does all checks, takes all descriptors and seeks @fd to the offset. */
static bool file_transport_init(FileTransport *t, int fd, Error **errp)
{
    int access = t->outgoing ? O_WRONLY : O_RDONLY;
    struct stat st;

    if (!direct_io_check_flags(fd, t->name, access, errp) ||
        !file_take_descriptors(t, fd, errp)) {
        return false;
    }
    if (fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "Unable to use '%s'", t->name);
        return false;
    }
    if (!file_check_type(&st, t->name, errp)) {
        return false;
    }
    t->regular = S_ISREG(st.st_mode);
    if (!file_check_limit(t, errp) || !file_check_size(t, fd, errp)) {
        return false;
    }
    if (!file_lock(t)) {
        t->created = false;
        error_setg(errp, "'%s' is locked: another migration is using it, or "
                   "it is the disk of a virtual machine", t->name);
        return false;
    }
    if (fstat(fd, &st) < 0 || st.st_size) {
        /* Another process created it, and has used it until now */
        t->created = false;
    }
    return file_direct_open(&t->direct, t->name, fd, access, errp);
}

/*
 * Takes ownership of @name, but not of @fd, which is left at the offset.
 * @created: whether to remove the file if it is not used
 */
static FileTransport *file_transport_setup(int fd, char *name, uint64_t offset,
                                           bool outgoing, bool created,
                                           Error **errp)
{
    FileTransport *t = g_new0(FileTransport, 1);

    file_transport_cleanup();
    *t = (FileTransport) {
        .name = name,
        .offset = offset,
        .outgoing = outgoing,
        .created = created,
        .fd = -1,
        .close_fd = -1,
        .dir_fd = -1,
        .direct = FILE_DIRECT_NONE,
        .phase = FILE_NO_PHASE,
    };
    if (!file_transport_init(t, fd, errp)) {
        if (t->created) {
            /* Duplicating @fd may have failed */
            file_transport_remove(name, fd);
            t->created = false;
        }
        file_transport_free(t);
        return NULL;
    }
    current = t;
    file_transport_set_phase(MIGRATION_FILE_PHASE_SETUP);
    return t;
}

/* Creates a channel that takes over @fd; messages use the file's name */
static QIOChannel *file_channel_new(const FileTransport *t, int fd)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_channel_file_new_fd(fd));

    qio_channel_set_name(ioc, t->name);
    return ioc;
}

void file_transport_start_outgoing(MigrationState *s,
                                   FileMigrationArgs *file_args, Error **errp)
{
    const char *path = file_args->filename;
    FileTransport *t;
    QIOChannel *ioc;
    bool created, is_path = !strstart(path, "/dev/fdset/", NULL);
    int fd;

    if (!file_check_capabilities(true, errp) ||
        !file_check_jobs(errp) ||
        !file_check_args(file_args, errp)) {
        return;
    }
    fd = file_open_outgoing(path, &created, errp);
    if (fd < 0) {
        return;
    }
    trace_file_transport_outgoing(path, file_args->offset, created);
    t = file_transport_setup(fd, g_strdup(path), file_args->offset, true,
                             created, errp);
    if (t && is_path && !file_is_at(path, fd)) {
        error_setg(errp, "'%s' was removed or replaced while it was opened; "
                   "try again", path);
        file_transport_cleanup();
        t = NULL;
    }
    if (!t) {
        qemu_close(fd);
        return;
    }
    if (created) {
        t->is_new = true;
        t->dir_fd = file_open_directory(path);
    }
    t->has_name = is_path && file_is_named(fd);

    ioc = file_channel_new(t, fd);
    migration_channel_connect(s, ioc, NULL, NULL);
    object_unref(OBJECT(ioc));
}

static gboolean file_accept_incoming_migration(QIOChannel *ioc,
                                               GIOCondition condition,
                                               gpointer opaque)
{
    file_transport_set_phase(MIGRATION_FILE_PHASE_STREAM);
    migration_channel_process_incoming(ioc);
    object_unref(OBJECT(ioc));
    return G_SOURCE_REMOVE;
}

void file_transport_start_incoming(FileMigrationArgs *file_args, Error **errp)
{
    const char *path = file_args->filename;
    FileTransport *t;
    QIOChannel *ioc;
    int fd;

    if (!file_check_capabilities(false, errp) ||
        !file_check_args(file_args, errp)) {
        return;
    }
    fd = file_open_incoming(path, errp);
    if (fd < 0) {
        return;
    }
    trace_file_transport_incoming(path, file_args->offset);
    t = file_transport_setup(fd, g_strdup(path), file_args->offset, false,
                             false, errp);
    if (!t) {
        qemu_close(fd);
        return;
    }

    ioc = file_channel_new(t, fd);
    if (migrate_mapped_ram()) {
        file_aside_begin(ioc);
    }
    qio_channel_add_watch_full(ioc, G_IO_IN, file_accept_incoming_migration,
                               NULL, NULL, g_main_context_get_thread_default());
}

/* mapped-ram puts RAM at offsets of a file: a pipe or socket has none. */
static bool file_check_passed(QIOChannel *ioc, const char *fdname,
                              bool outgoing, Error **errp)
{
    if (object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_FILE) &&
        !direct_io_check_flags(QIO_CHANNEL_FILE(ioc)->fd, fdname,
                               outgoing ? O_WRONLY : O_RDONLY, errp)) {
        return false;
    }
    if (object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_FILE) &&
        direct_io_enabled(QIO_CHANNEL_FILE(ioc)->fd)) {
        error_setg(errp, "%s: the descriptor was opened with O_DIRECT, so it "
                   "can't be used for the main stream; pass one opened "
                   "without O_DIRECT", fdname);
        return false;
    }
    if (!qio_channel_has_feature(ioc, QIO_CHANNEL_FEATURE_SEEKABLE)) {
        error_setg(errp, "Capability 'mapped-ram' needs a seekable file, "
                   "and fd '%s' is not seekable", fdname);
        return false;
    }
    return true;
}

bool file_transport_adopt(QIOChannel *ioc, const char *fdname, bool outgoing,
                          Error **errp)
{
    FileTransport *t;
    off_t offset;
    char *name;

    if (!file_check_capabilities(outgoing, errp) ||
        (outgoing && !file_check_jobs(errp)) ||
        !file_check_passed(ioc, fdname, outgoing, errp)) {
        return false;
    }
    offset = qio_channel_io_seek(ioc, 0, SEEK_CUR, errp);
    if (offset < 0) {
        return false;
    }
    name = g_strdup_printf("fd:%s", fdname);
    t = file_transport_setup(QIO_CHANNEL_FILE(ioc)->fd, name, offset, outgoing,
                             false, errp);
    if (!t) {
        return false;
    }
    t->adopted = true;
    if (!outgoing) {
        file_aside_begin(ioc);
    }
    qio_channel_set_name(ioc, t->name);
    return true;
}

void file_transport_check_end(QEMUFile *f)
{
    if (current && qemu_file_get_error(f)) {
        warn_report("%s: the file is truncated: the description of the device "
                    "state at its end is missing; the guest does not need it "
                    "and was restored completely", current->name);
    }
}

void file_transport_load_error(QEMUFile *f, int ret, Error **errp)
{
    Error *err = NULL;

    if (current) {
        qemu_file_get_error_obj(f, &err);
        if (err) {
            error_free(*errp);
            *errp = err;
        }
        error_report("the file is '%s', read from offset %" PRIu64,
                     current->name, current->offset);
    }
    if (*errp) {
        error_prepend(errp, "load of migration failed: %s: ", strerror(-ret));
    } else {
        error_setg(errp, "load of migration failed: %s", strerror(-ret));
    }
}

void file_transport_unlock(void)
{
    if (current) {
        qatomic_set(&current->phase, FILE_NO_PHASE);
        file_transport_release_lock(current);
    }
}

void file_transport_cleanup(void)
{
    FileTransport *t = current;

    file_queue_drop();
    file_aside_end();
    if (t) {
        current = NULL;
        file_transport_free(t);
    }
}

bool file_transport_active(void)
{
    return current != NULL;
}

const char *file_transport_name(void)
{
    return current ? current->name : NULL;
}

uint64_t file_transport_offset(void)
{
    return current ? current->offset : 0;
}

int file_transport_direct_fd(DirectIOLimits *limits)
{
    if (!current || current->direct.fd < 0) {
        return -1;
    }
    *limits = current->direct.limits;
    return current->direct.fd;
}

const char *file_transport_direct_reason(void)
{
    return current ? current->direct.reason : NULL;
}
