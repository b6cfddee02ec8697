/*
 * Finding the descriptor of a migration file in an fdset
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See file-fdset.h.
 */

#include "qemu/osdep.h"
#include "file-fdset.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/direct-io.h"

#ifndef _WIN32
/* The search for a descriptor in an fdset */
typedef struct Search {
    int access;
    bool direct;
    /* errno of a descriptor that could not be duplicated, or 0 */
    int error;
    /* descriptors that do not match, for messages */
    GString *others;
} Search;

static const char *access_name(int flags)
{
    switch (flags < 0 ? -1 : flags & O_ACCMODE) {
    case -1:
        return "closed";
    case O_RDONLY:
        return "read-only";
    case O_WRONLY:
        return "write-only";
    case O_RDWR:
        return "read-write";
    default:
        return "unusable";
    }
}

static void note_other(Search *search, int fd, int flags)
{
    g_string_append_printf(search->others, "%s%s %s O_DIRECT",
                           search->others->len ? ", " : "",
                           access_name(flags),
                           direct_io_enabled(fd) ? "with" : "without");
}

/* Called for each descriptor of the set until it returns a duplicate. */
static int dup_if_wanted(int fd, void *opaque)
{
    Search *search = opaque;
    int flags = fcntl(fd, F_GETFL);
    int copy;

    if (flags < 0 || direct_io_enabled(fd) != search->direct ||
        ((flags & O_ACCMODE) != search->access &&
         (flags & O_ACCMODE) != O_RDWR)) {
        note_other(search, fd, flags);
        return -1;
    }
    /* Not qemu_dup_flags(): it would set flags of the original, too. */
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
        search->error = errno;
    }
    return copy;
}

/* Called for each descriptor of the set. */
static int note_direct(int fd, void *opaque)
{
    bool *found = opaque;

    *found |= direct_io_enabled(fd);
    return -1;
}

static bool set_has_direct(int id)
{
    bool found = false;

    monitor_fdset_dup_fd_by(id, note_direct, &found);
    return found;
}

static int dup_from_set(int id, int access, bool direct, Error **errp)
{
    g_autoptr(GString) others = g_string_new(NULL);
    Search search = {
        .access = access, .direct = direct, .others = others,
    };
    int fd = monitor_fdset_dup_fd_by(id, dup_if_wanted, &search);

    if (fd == -ENOENT) {
        error_setg(errp, "the fdset does not exist, or all of its "
                   "descriptors are closed");
    } else if (fd < 0 && search.error) {
        error_setg_errno(errp, search.error, "the descriptor can't be "
                         "duplicated");
    } else if (fd < 0) {
        error_setg(errp, "no descriptor in the fdset is open for %s %s "
                   "O_DIRECT; it has: %s",
                   access == O_RDONLY ? "reading" : "writing",
                   direct ? "with" : "without", others->str);
    }
    return fd;
}
#else
static bool set_has_direct(int id)
{
    return false;
}

static int dup_from_set(int id, int access, bool direct, Error **errp)
{
    error_setg(errp, "this host has no fdsets");
    return -1;
}
#endif

static bool parse_path(const char *path, int *id)
{
    const char *number;

    return strstart(path, "/dev/fdset/", &number) &&
           qemu_strtoi(number, NULL, 10, id) == 0;
}

bool file_fdset_lacks_direct(const char *path)
{
    int id;

    return parse_path(path, &id) && !set_has_direct(id);
}

int file_fdset_open(const char *path, int access, bool direct, Error **errp)
{
    int id;
    int fd;

    if (!parse_path(path, &id)) {
        error_setg(errp, "%s: not the name of an fdset; use "
                   "/dev/fdset/NUMBER", path);
        return -1;
    }
    fd = dup_from_set(id, access, direct, errp);
    if (fd < 0) {
        error_prepend(errp, "%s: ", path);
        if (direct) {
            error_append_hint(errp, "Pass a second descriptor of the same "
                              "file, opened with O_DIRECT, to the same fdset "
                              "with add-fd, or set direct-io=off.\n");
        }
        return -1;
    }
    return fd;
}
