/*
 * The second descriptor of a migration file, with O_DIRECT
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See file-direct.h.
 */

#include "qemu/osdep.h"
#include "file-direct.h"
#include "file-fdset.h"
#include "migration.h"
#include "options.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "trace.h"

/*
 * MAPPED_RAM_EXTENT_ALIGN_MAX pages of 4 KiB on 32-bit hosts; 64-bit hosts
 * could do twice as much.
 */
#define DIRECT_ALIGN_MAX (32 * 4096)

const char *file_direct_reason(void)
{
    if (!migrate_direct_io()) {
        return "parameter 'direct-io' is off";
    }
    if (!migrate_mapped_ram()) {
        return "capability 'mapped-ram' is off";
    }
    if (!migrate_multifd()) {
        return "capability 'multifd' is off";
    }
    return NULL;
}

static int open_second(const char *path, int fd, int access, Error **errp)
{
    int second;

    if (!strstart(path, "/dev/fdset/", NULL)) {
        return direct_io_reopen(fd, path, access, errp);
    }
    second = file_fdset_open(path, access, true, errp);
    if (second >= 0 && (!direct_io_check_flags(second, path, access, errp) ||
                        !direct_io_same_file(fd, second, path, errp))) {
        qemu_close(second);
        return -1;
    }
    return second;
}

unsigned file_direct_depth(unsigned workers)
{
    unsigned depth = migrate_direct_io_depth();

    /* A worker with one request at a time idles while the disk handles it */
    return MAX(DIV_ROUND_UP(depth, workers), MIN(depth, 2));
}

/* Creates a queue like those of the workers, to see whether that works. */
static bool try_engine(const FileDirect *d, const char *path, Error **errp)
{
    DirectQueueConfig config = {
        .fd = d->fd,
        .name = path,
        .limits = d->limits,
        .engine = migrate_direct_io_engine(),
        .depth = file_direct_depth(migrate_multifd_channels()),
    };
    g_autoptr(DirectQueue) q = direct_queue_new(&config, errp);

    if (!q && config.engine != DIRECT_IO_ENGINE_AUTO) {
        error_prepend(errp, "The engine set by parameter 'x-direct-io-engine' "
                      "is not available: ");
        error_append_hint(errp, "Set x-direct-io-engine=auto.\n");
    }
    return q != NULL;
}

bool file_direct_open(FileDirect *d, const char *path, int fd, int access,
                      Error **errp)
{
    const char *reason = file_direct_reason();

    assert(d->fd == -1);
    if (!reason && file_fdset_lacks_direct(path)) {
        /*
         * libvirt turns direct-io on, but never off.  Then this is a save
         * without --bypass-cache, maybe one because the host shuts down.
         */
        reason = "no descriptor in the fdset has O_DIRECT";
    }
    d->reason = reason;
    if (reason) {
        if (migrate_direct_io()) {
            warn_report("direct-io has no effect on %s, because %s: "
                        "guest RAM goes through the page cache", path, reason);
        }
        return true;
    }

    d->fd = open_second(path, fd, access, errp);
    if (d->fd < 0) {
        return false;
    }
    if (!direct_io_probe(d->fd, path, &d->limits, errp)) {
        file_direct_close(d);
        return false;
    }
    if (MAX(d->limits.mem_align, d->limits.offset_align) >
        DIRECT_ALIGN_MAX) {
        error_setg(errp, "%s: its device requires direct I/O in units of %"
                   PRIu32 " bytes, and QEMU supports at most %d; turn the "
                   "direct-io parameter off", path,
                   MAX(d->limits.mem_align, d->limits.offset_align),
                   DIRECT_ALIGN_MAX);
        file_direct_close(d);
        return false;
    }
    if (!try_engine(d, path, errp)) {
        file_direct_close(d);
        return false;
    }
    d->close_fd = file_direct_dup(d->fd);
    if (d->close_fd < 0) {
        error_setg_errno(errp, errno, "%s: unable to duplicate the descriptor "
                         "with O_DIRECT", path);
        file_direct_close(d);
        return false;
    }
    trace_migration_file_direct(path, fd, d->fd,
                                d->limits.offset_align);
    return true;
}

bool file_direct_check_close(FileDirect *d, const char *path, Error **errp)
{
    int fd = d->close_fd;

    d->close_fd = -1;
    if (fd >= 0 && close(fd) < 0) {
        error_setg_errno(errp, errno, "Unable to finish writing '%s', through "
                         "its descriptor with O_DIRECT", path);
        return false;
    }
    return true;
}

void file_direct_close(FileDirect *d)
{
    if (d->close_fd >= 0) {
        close(d->close_fd);
        d->close_fd = -1;
    }
    if (d->fd >= 0) {
        qemu_close(d->fd);
        d->fd = -1;
    }
}
