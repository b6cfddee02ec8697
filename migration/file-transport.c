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
#include "file-direct.h"
#include "file-early-sync.h"
#include "file-fdset.h"
#include "file-last-stage.h"
#include "file-transport.h"
#include "io/channel-file.h"
#include "migration.h"
#include "options.h"
#include "qemu-file.h"
#include "ram.h"
#include "savevm.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "trace.h"

/* What is overwritten to invalidate an image that cannot be cut off */
#define FILE_INVALIDATE_SIZE 4096

typedef struct FileTransport {
    /* A duplicate of the main stream's descriptor, or -1: not active */
    int fd;
    /* Another one, to be closed when all is written, or -1 */
    int close_fd;
    /* And one for what the transport itself writes */
    QIOChannelFile *ioc;
    /* The directory if its entry for the file is new, or -1 */
    int dir_fd;
    char *name;
    uint64_t offset;
    bool outgoing;
    /* A regular file; otherwise a block device */
    bool regular;
    /* Passed by fd:, so what lies behind the image is not ours to cut */
    bool adopted;
    bool locked;
    /* Whether this migration has created the file */
    bool created;
    /* Whether the previous contents are lost */
    bool cut;
    /* Whether the file may contain an unfinished image */
    bool begun;
    /* Whether the image's first bytes still have to be put in place */
    bool held;
} FileTransport;

#define NO_TRANSPORT { .fd = -1, .close_fd = -1, .dir_fd = -1 }
static FileTransport transport = NO_TRANSPORT;

/* Atomic, since others ask: a MigrationFilePhase, or this */
#define NO_PHASE MIGRATION_FILE_PHASE__MAX
static MigrationFilePhase current_phase = NO_PHASE;

void file_transport_set_phase(MigrationFilePhase phase)
{
    if (file_transport_active()) {
        trace_migration_file_phase(transport.name,
                                   MigrationFilePhase_str(phase));
        qatomic_set(&current_phase, phase);
    }
}

bool file_transport_phase(MigrationFilePhase *phase)
{
    *phase = qatomic_read(&current_phase);
    return *phase != NO_PHASE;
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
        error_setg(errp, "The file URI has no path, "
                   "it should be file:PATH[,offset=N]");
        return false;
    }
    if (args->offset > INT64_MAX) {
        error_setg(errp, "Offset %" PRIu64 " of '%s' is too large: files have "
                   "less than 8E bytes", args->offset, args->filename);
        return false;
    }
    return true;
}

/* The capabilities that need more than one plain stream in one direction */
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

/* As qemu_open(), but never the descriptor of a set that has O_DIRECT */
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

/* Remove the new file @path, which @fd has open, unless another one is there */
static void file_remove(const char *path, int fd)
{
    struct stat now, opened;

    if (stat(path, &now) == 0 && fstat(fd, &opened) == 0 &&
        now.st_dev == opened.st_dev && now.st_ino == opened.st_ino) {
        unlink(path);
    }
}

/* Sets @created if there may have been no such file before */
static int file_open_outgoing(const char *path, bool *created, Error **errp)
{
    struct stat st;
    Error *err = NULL;
    int fd;

    *created = false;

    /* Opening a FIFO would wait for a reader, so look before */
    if (stat(path, &st) == 0 && !file_check_type(&st, path, errp)) {
        return -1;
    }

    /*
     * O_TRUNC is out of the question: if the migration does not start, the
     * previous contents have to survive.
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
 * The limit applies to what the process writes to regular files. The kernel
 * would send SIGXFSZ, and the image would not fit anyway.
 */
static bool file_check_limit(Error **errp)
{
#ifndef _WIN32
    struct rlimit limit;

    if (transport.outgoing && transport.regular &&
        getrlimit(RLIMIT_FSIZE, &limit) == 0 &&
        limit.rlim_cur != RLIM_INFINITY &&
        limit.rlim_cur <= transport.offset) {
        error_setg(errp, "Offset %" PRIu64 " of '%s' is not below the file "
                   "size limit of this process, %" PRIu64 " bytes "
                   "(RLIMIT_FSIZE); raise the limit or use a smaller offset",
                   transport.offset, transport.name,
                   (uint64_t)limit.rlim_cur);
        return false;
    }
#endif
    return true;
}

/* Check the opened file and bring it to its offset */
static bool file_check_size(int fd, Error **errp)
{
    off_t size = lseek(fd, 0, SEEK_END);

    if (size < 0) {
        error_setg_errno(errp, errno, "'%s' is not a seekable file",
                         transport.name);
        return false;
    }
    if (!transport.outgoing && !size) {
        error_setg(errp, "'%s' is empty", transport.name);
        return false;
    }
    if ((!transport.outgoing || !transport.regular) &&
        transport.offset >= size) {
        error_setg(errp, "Offset %" PRIu64 " is beyond the end of '%s', "
                   "which has %" PRIu64 " bytes", transport.offset,
                   transport.name, (uint64_t)size);
        return false;
    }
    if (transport.outgoing && !transport.regular && migrate_mapped_ram() &&
        size - transport.offset < ram_bytes_total()) {
        error_setg(errp, "'%s' has %" PRIu64 " bytes behind offset %" PRIu64
                   ", but RAM alone needs %" PRIu64, transport.name,
                   (uint64_t)(size - transport.offset), transport.offset,
                   ram_bytes_total());
        return false;
    }
    if (lseek(fd, transport.offset, SEEK_SET) < 0) {
        error_setg_errno(errp, errno, "Unable to seek to offset %" PRIu64
                         " of '%s'", transport.offset, transport.name);
        return false;
    }
    return true;
}

/*
 * Keep two processes from saving to one file, and from loading what is
 * being saved. Locks of the traditional POSIX kind would be lost when any
 * descriptor of the file is closed, so these are not used; and a file
 * system without locks is no reason to refuse a migration.
 */
static bool file_lock(void)
{
#ifndef _WIN32
    int ret;

    if (transport.locked || !qemu_has_ofd_lock()) {
        return true;
    }
    ret = qemu_lock_fd(transport.fd, transport.offset, 0, transport.outgoing);
    trace_migration_file_lock(transport.name, ret);
    /*
     * EACCES is how fcntl() on other systems says EAGAIN, but Linux never
     * does for these locks: here a security module forbids to lock at all.
     */
    if (ret == -EAGAIN) {
        return false;
    }
    transport.locked = ret == 0;
#endif
    return true;
}

/*
 * To be done explicitly: the open file, which has the lock, may be shared
 * with others when the descriptor comes from outside.
 */
static void file_unlock(void)
{
#ifndef _WIN32
    if (transport.locked) {
        qemu_unlock_fd(transport.fd, transport.offset, 0);
        transport.locked = false;
    }
#endif
}

bool file_transport_take_lock(void)
{
    bool locked = transport.locked;

    transport.locked = false;
    return locked;
}

static int file_open_directory(const char *path)
{
#ifdef _WIN32
    return -1;
#else
    g_autofree char *real = realpath(path, NULL);
    g_autofree char *dir = g_path_get_dirname(real ?: path);

    return qemu_open(dir, O_RDONLY | O_DIRECTORY, NULL);
#endif
}

/*
 * A descriptor of our own for what @fd has open.  Those that the end of a
 * save needs are taken at its start: few may be left then.
 */
static int file_dup(int fd, Error **errp)
{
    int copy = qemu_dup(fd);

    if (copy < 0) {
        error_setg_errno(errp, errno, "Unable to duplicate a descriptor of "
                         "'%s'", transport.name);
    }
    return copy;
}

/* Take the descriptors that will be needed. */
static bool file_take_descriptors(int fd, Error **errp)
{
    transport.fd = file_dup(fd, errp);
    if (transport.fd < 0) {
        return false;
    }
    transport.ioc = qio_channel_file_new_dupfd(fd, errp);
    if (!transport.ioc) {
        error_prepend(errp, "'%s': ", transport.name);
        return false;
    }
    if (transport.outgoing) {
        transport.close_fd = file_dup(fd, errp);
        return transport.close_fd >= 0;
    }
    return true;
}

/* Take over the path and the open file, which is left at its offset */
static bool file_transport_setup(int fd, char *name, uint64_t offset,
                                 bool outgoing, Error **errp)
{
    struct stat st;

    file_transport_cleanup();
    transport.name = name;
    transport.offset = offset;
    transport.outgoing = outgoing;
    if (!direct_io_check_flags(fd, name, outgoing ? O_WRONLY : O_RDONLY,
                               errp) ||
        !file_take_descriptors(fd, errp)) {
        goto fail;
    }
    if (fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "Unable to use '%s'", name);
        goto fail;
    }
    if (!file_check_type(&st, name, errp)) {
        goto fail;
    }
    transport.regular = S_ISREG(st.st_mode);
    if (!file_check_limit(errp) || !file_check_size(fd, errp)) {
        goto fail;
    }
    if (!file_lock()) {
        error_setg(errp, "'%s' is locked: another migration is using it, or "
                   "it is the disk of a virtual machine", name);
        goto fail;
    }
    if (!file_direct_open(name, fd, outgoing ? O_WRONLY : O_RDONLY, errp)) {
        goto fail;
    }
    file_transport_set_phase(MIGRATION_FILE_PHASE_SETUP);
    return true;

fail:
    file_transport_cleanup();
    return false;
}

/* A channel for @fd, which it takes over, with the file's name for messages */
static QIOChannel *file_channel_new(int fd)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_channel_file_new_fd(fd));

    qio_channel_set_name(ioc, transport.name);
    return ioc;
}

void file_transport_start_outgoing(MigrationState *s,
                                   FileMigrationArgs *file_args, Error **errp)
{
    const char *path = file_args->filename;
    QIOChannel *ioc;
    bool created;
    int fd;

    if (!file_check_capabilities(true, errp) ||
        !file_check_args(file_args, errp)) {
        return;
    }
    fd = file_open_outgoing(path, &created, errp);
    if (fd < 0) {
        return;
    }
    trace_file_transport_outgoing(path, file_args->offset, created);
    if (!file_transport_setup(fd, g_strdup(path), file_args->offset, true,
                              errp)) {
        if (created) {
            file_remove(path, fd);
        }
        qemu_close(fd);
        return;
    }
    transport.created = created;
    if (created) {
        transport.dir_fd = file_open_directory(path);
    }

    ioc = file_channel_new(fd);
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
    if (!file_transport_setup(fd, g_strdup(path), file_args->offset, false,
                              errp)) {
        qemu_close(fd);
        return;
    }

    ioc = file_channel_new(fd);
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
    if (!qio_channel_has_feature(ioc, QIO_CHANNEL_FEATURE_SEEKABLE)) {
        error_setg(errp, "Capability 'mapped-ram' needs a seekable file, "
                   "and fd '%s' is none", fdname);
        return false;
    }
    return true;
}

bool file_transport_adopt(QIOChannel *ioc, const char *fdname, bool outgoing,
                          Error **errp)
{
    off_t offset;
    char *name;

    if (!file_check_capabilities(outgoing, errp) ||
        !file_check_passed(ioc, fdname, outgoing, errp)) {
        return false;
    }
    offset = qio_channel_io_seek(ioc, 0, SEEK_CUR, errp);
    if (offset < 0) {
        return false;
    }
    name = g_strdup_printf("fd:%s", fdname);
    if (!file_transport_setup(QIO_CHANNEL_FILE(ioc)->fd, name, offset,
                              outgoing, errp)) {
        return false;
    }
    transport.adopted = true;
    if (!outgoing) {
        file_aside_begin(ioc);
    }
    qio_channel_set_name(ioc, transport.name);
    return true;
}

void file_transport_check_end(QEMUFile *f)
{
    if (file_transport_active() && qemu_file_get_error(f)) {
        warn_report("%s: the file is truncated: its very end, the description "
                    "of the device state, is missing; all that the guest "
                    "needs was there and is restored", transport.name);
    }
}

void file_transport_load_error(QEMUFile *f, int ret, Error **errp)
{
    Error *err = NULL;

    qemu_file_get_error_obj(f, &err);
    if (err) {
        error_free(*errp);
        *errp = err;
    }
    if (file_transport_active()) {
        error_report("the file is '%s', read from offset %" PRIu64,
                     transport.name, transport.offset);
    }
    if (*errp) {
        error_prepend(errp, "load of migration failed: %s: ", strerror(-ret));
    } else {
        error_setg(errp, "load of migration failed: %s", strerror(-ret));
    }
}

bool file_transport_begin(Error **errp)
{
    if (!transport.outgoing) {
        return true;
    }
    trace_migration_file_begin(transport.name, transport.offset);
    transport.cut = true;
    if (transport.regular && !transport.adopted &&
        ftruncate(transport.fd, transport.offset) < 0) {
        error_setg_errno(errp, errno, "Unable to set the size of '%s' to %"
                         PRIu64 " bytes", transport.name, transport.offset);
        return false;
    }
    transport.begun = true;
    if (!migrate_mapped_ram()) {
        file_transport_set_phase(MIGRATION_FILE_PHASE_STREAM);
    }
    return true;
}

/* As fdatasync() or, if the file is new and @all is needed, fsync() */
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

static bool file_sync_to_storage(Error **errp)
{
    bool created = transport.dir_fd >= 0;
    int direct_fd = file_direct_fd(NULL);

    /* A server may know of errors only by the descriptor that was written */
    if (direct_fd >= 0 && file_sync_fd(direct_fd, false) < 0) {
        error_setg_errno(errp, errno, "Unable to bring '%s' to stable storage, "
                         "through its descriptor with O_DIRECT",
                         transport.name);
        return false;
    }
    if (file_sync_fd(transport.fd, created) < 0) {
        error_setg_errno(errp, errno, "Unable to bring '%s' to stable storage",
                         transport.name);
        return false;
    }
    /* Some file systems do not know how to sync a directory: EINVAL */
    if (created && file_sync_fd(transport.dir_fd, true) < 0 &&
        errno != EINVAL) {
        error_setg_errno(errp, errno, "Unable to bring the directory of '%s' "
                         "to stable storage", transport.name);
        return false;
    }
    return true;
}

bool file_transport_sync_early(Error **errp)
{
    MigrationFilePhase phase;
    bool had_phase = file_transport_phase(&phase);
    bool ok;

    if (!transport.begun) {
        return true;
    }
    file_transport_set_phase(MIGRATION_FILE_PHASE_SYNC);
    ok = file_sync_to_storage(errp);
    if (had_phase) {
        file_transport_set_phase(phase);
    }
    return ok;
}

/* The magic number is what qemu_savevm_state_header() puts there */
static bool file_write_magic(uint32_t magic, Error **errp)
{
    uint32_t value = cpu_to_be32(magic);

    return qio_channel_pwrite_all(QIO_CHANNEL(transport.ioc), (char *)&value,
                                  sizeof(value), transport.offset, errp) == 0;
}

bool file_transport_invalidate(Error **errp)
{
    if (!transport.begun) {
        return true;
    }
    if (!file_write_magic(0, errp)) {
        error_prepend(errp, "'%s': ", transport.name);
        return false;
    }
    transport.held = true;
    /* Where an old image has not been cut off, it must be gone before pages */
    return (transport.regular && !transport.adopted) ||
           file_sync_to_storage(errp);
}

/* Makes the file an image, which it is not before all else is stored */
static bool file_release(Error **errp)
{
    if (!transport.held) {
        return true;
    }
    /* The guest may run already, so the image must not become one */
    if (migrate_get_current()->state == MIGRATION_STATUS_CANCELLING) {
        error_setg(errp, "'%s': the save was cancelled", transport.name);
        return false;
    }
    if (!file_write_magic(QEMU_VM_FILE_MAGIC, errp)) {
        error_prepend(errp, "'%s': ", transport.name);
        return false;
    }
    transport.held = false;
    return true;
}

/*
 * Network and FUSE file systems may report errors of earlier writes when a
 * descriptor is closed, any descriptor. When the channel closes its own it
 * is too late to fail, so ask with one that is there to be closed.
 */
static bool file_check_close(Error **errp)
{
    int fd = transport.close_fd;

    transport.close_fd = -1;
    if (fd >= 0 && close(fd) < 0) {
        error_setg_errno(errp, errno, "Unable to finish writing '%s'",
                         transport.name);
        return false;
    }
    return true;
}

bool file_transport_sync(Error **errp)
{
    int64_t start = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    bool sync = migrate_file_sync();
    bool ok;

    if (!transport.begun) {
        return true;
    }
    if (sync) {
        file_transport_set_phase(MIGRATION_FILE_PHASE_SYNC);
    }
    /* Two syncs, since the second must not overtake the first */
    ok = file_direct_check_close(transport.name, errp) &&
         (!sync || !transport.held || file_sync_to_storage(errp)) &&
         file_release(errp) && (!sync || file_sync_to_storage(errp)) &&
         file_check_close(errp);
    trace_migration_file_sync(transport.name, sync, ok,
                              qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - start);
    return ok;
}

void file_transport_unlock(void)
{
    qatomic_set(&current_phase, NO_PHASE);
    file_unlock();
}

/* Give back what lies behind the offset, but never make the file longer */
static bool file_cut(void)
{
    struct stat st;

    if (!transport.regular || transport.adopted ||
        fstat(transport.fd, &st) < 0) {
        return false;
    }
    return st.st_size <= transport.offset ||
           ftruncate(transport.fd, transport.offset) == 0;
}

static bool file_invalidate(void)
{
    g_autofree char *zeroes = g_malloc0(FILE_INVALIDATE_SIZE);

    return qio_channel_pwrite_all(QIO_CHANNEL(transport.ioc), zeroes,
                                  FILE_INVALIDATE_SIZE, transport.offset,
                                  NULL) == 0;
}

/* A save that was refused leaves no new file. */
static void file_remove_unused(void)
{
    if (transport.created && !transport.cut) {
        file_remove(transport.name, transport.fd);
    }
    transport.created = false;
}

void file_transport_discard(void)
{
    if (!transport.begun) {
        file_remove_unused();
        return;
    }
    transport.begun = false;
    qatomic_set(&current_phase, NO_PHASE);
    trace_migration_file_discard(transport.name, transport.offset);

    if (!file_cut() && !file_invalidate()) {
        warn_report("Unable to discard the incomplete image in '%s', "
                    "do not use it", transport.name);
    }
    file_unlock();
}

void file_transport_cleanup(void)
{
    qatomic_set(&current_phase, NO_PHASE);
    file_direct_close();
    file_last_stage_end();
    file_early_sync_reset();
    file_aside_end();
    file_unlock();
    file_remove_unused();
    g_clear_pointer(&transport.ioc, object_unref);
    if (transport.fd >= 0) {
        close(transport.fd);
    }
    if (transport.close_fd >= 0) {
        close(transport.close_fd);
    }
    if (transport.dir_fd >= 0) {
        close(transport.dir_fd);
    }
    g_free(transport.name);
    transport = (FileTransport) NO_TRANSPORT;
}

bool file_transport_active(void)
{
    return transport.fd >= 0;
}

const char *file_transport_name(void)
{
    return transport.name;
}

uint64_t file_transport_offset(void)
{
    return transport.offset;
}
