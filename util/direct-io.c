/*
 * Alignment that a file needs for direct I/O, and descriptors with O_DIRECT
 *
 * See include/qemu/direct-io.h.  The order here: names of file systems,
 * alignment, descriptors.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/direct-io.h"
#include "qemu/host-utils.h"
#include "qapi/error.h"

#ifdef CONFIG_LINUX
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <linux/fs.h>
#endif

/*
 * The request size that suits all disks measured so far; see opt_transfer().
 * On a virtio disk 2 MiB were 10 to 20 % faster than 1 MiB, 4 MiB no better.
 */
#define OPT_TRANSFER_DEFAULT (2 * 1024 * 1024)
#define OPT_TRANSFER_MAX     (4 * 1024 * 1024)

/*
 * The end of messages about files that can't do direct I/O.  Only the migration
 * parameter leads users here.
 */
#define HOW_TO_GO_ON "turn the direct-io parameter off, or use another file"

/* Names of file systems */

#ifdef CONFIG_LINUX
/* <linux/magic.h> has only some of these numbers. */
#define MAGIC_BTRFS     0x9123683eu
#define MAGIC_CIFS      0xff534d42u
#define MAGIC_FUSE      0x65735546u
#define MAGIC_NFS       0x00006969u
#define MAGIC_XFS       0x58465342u
#define MAGIC_ZFS       0x2fc12fc1u

static const struct {
    uint32_t magic;
    const char *name;
} fs_names[] = {
    { MAGIC_BTRFS,              "btrfs" },
    { MAGIC_CIFS,               "cifs" },
    { MAGIC_FUSE,               "fuse" },
    { MAGIC_NFS,                "nfs" },
    { MAGIC_XFS,                "xfs" },
    { MAGIC_ZFS,                "zfs" },
    { 0x0000ef53u,              "ext4" },       /* and ext2, ext3 */
    { 0x01021994u,              "tmpfs" },
    { 0x01021997u,              "9p" },
    { 0x01161970u,              "gfs2" },
    { 0x0bd00bd0u,              "lustre" },
    { 0x00004d44u,              "vfat" },
    { 0x00009fa0u,              "proc" },
    { 0x00c36400u,              "ceph" },
    { 0x2011bab0u,              "exfat" },
    { 0x47504653u,              "gpfs" },
    { 0x61756673u,              "aufs" },
    { 0x62656572u,              "sysfs" },
    { 0x73717368u,              "squashfs" },
    { 0x7461636fu,              "ocfs2" },
    { 0x794c7630u,              "overlay" },
    { 0x858458f6u,              "ramfs" },
    { 0x958458f6u,              "hugetlbfs" },
    { 0xca451a4eu,              "bcachefs" },
    { 0x0000f15fu,              "ecryptfs" },
    { 0xf2f52010u,              "f2fs" },
};

/* Get the type and block size of @fd's file system; false if unknown. */
static bool fs_stat(int fd, uint32_t *magic, uint64_t *block_size)
{
    struct statfs st;

    if (fstatfs(fd, &st) < 0) {
        return false;
    }
    *magic = st.f_type;
    *block_size = st.f_bsize;
    return true;
}

char *direct_io_fs_name(int fd)
{
    uint32_t magic;
    uint64_t block_size;
    size_t i;

    if (!fs_stat(fd, &magic, &block_size)) {
        return g_strdup("of unknown type");
    }
    for (i = 0; i < ARRAY_SIZE(fs_names); i++) {
        if (fs_names[i].magic == magic) {
            return g_strdup(fs_names[i].name);
        }
    }
    return g_strdup_printf("of type 0x%" PRIx32, magic);
}
#else
char *direct_io_fs_name(int fd)
{
    return g_strdup("of unknown type");
}
#endif

/* Alignment */

void direct_io_limits_buffered(DirectIOLimits *limits)
{
    limits->mem_align = 1;
    limits->offset_align = 1;
    limits->opt_transfer = OPT_TRANSFER_DEFAULT;
}

#ifdef O_DIRECT
/*
 * What nearly all files are content with.  OpenZFS and Lustre require multiples
 * of the host's page size.
 */
static uint64_t usual_align(void)
{
    return MAX(DIRECT_IO_ALIGN_DEFAULT, qemu_real_host_page_size());
}

/* Refuse a value that can only be a bug below, before it is used. */
static bool check_align(const char *name, const char *what, uint64_t align,
                        Error **errp)
{
    if (!is_power_of_2(align) || align > DIRECT_IO_ALIGN_MAX) {
        error_setg(errp, "%s: the host reports a %s alignment of %" PRIu64
                   " bytes for direct I/O, which is not a power of two up to "
                   "%d", name, what, align, DIRECT_IO_ALIGN_MAX);
        return false;
    }
    return true;
}

typedef enum { ASK_OK, ASK_UNKNOWN, ASK_FAILED } AskResult;

/* Ask the kernel; works with Linux 6.1 and file systems that support it. */
static AskResult ask_statx(int fd, const char *name, uint64_t *mem_align,
                           uint64_t *offset_align, Error **errp)
{
#ifdef STATX_DIOALIGN
    g_autofree char *fs = NULL;
    struct statx stx = { };
    uint64_t block_size;
    uint32_t magic;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) < 0 ||
        !(stx.stx_mask & STATX_DIOALIGN)) {
        /* Not an error: older kernels and sandboxes end up here. */
        return ASK_UNKNOWN;
    }
    if (stx.stx_dio_offset_align == 0) {
        fs = direct_io_fs_name(fd);
        error_setg(errp, "%s: the file system (%s) does not support direct I/O "
                   "on this file; " HOW_TO_GO_ON, name, fs);
        return ASK_FAILED;
    }
    *offset_align = stx.stx_dio_offset_align;
    *mem_align = stx.stx_dio_mem_align;
    if (fs_stat(fd, &magic, &block_size) && magic == MAGIC_ZFS) {
        /* It reports the size of its records, but only needs whole pages. */
        *offset_align = MIN(*offset_align, usual_align());
    }
    return ASK_OK;
#else
    return ASK_UNKNOWN;
#endif
}

/* The alignment to use for @fd if the kernel does not report it. */
static bool guess_align(int fd, const char *name, const struct stat *st,
                        uint64_t *align, Error **errp)
{
    *align = usual_align();

#ifdef CONFIG_LINUX
    if (S_ISBLK(st->st_mode)) {
        int sector;

        if (ioctl(fd, BLKSSZGET, &sector) < 0) {
            error_setg_errno(errp, errno, "%s: cannot determine the logical "
                             "block size of the device", name);
            return false;
        }
        *align = sector;
    } else {
        uint32_t magic;
        uint64_t block_size;

        /*
         * btrfs does not report it, and needs its own block size, which can be
         * that of a host with large pages.  Elsewhere the block size says
         * little: on NFS it is the size of the largest transfer.
         */
        if (fs_stat(fd, &magic, &block_size) && magic == MAGIC_BTRFS) {
            *align = MAX(block_size, DIRECT_IO_ALIGN_DEFAULT);
        }
    }
#endif
    return true;
}

/* File systems that stripe data report a large st_blksize. */
static uint32_t opt_transfer(const struct stat *st,
                             const DirectIOLimits *limits)
{
    uint64_t size = OPT_TRANSFER_DEFAULT;

    if (st->st_blksize > OPT_TRANSFER_DEFAULT &&
        is_power_of_2(st->st_blksize)) {
        size = MIN(st->st_blksize, OPT_TRANSFER_MAX);
    }
    return MAX(size, MAX(limits->offset_align, limits->mem_align));
}

bool direct_io_probe(int fd, const char *name, DirectIOLimits *limits,
                     Error **errp)
{
    DirectIOLimits found;
    uint64_t mem_align = 0, offset_align = 0;
    struct stat st;

    if (fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "%s: cannot examine the file", name);
        return false;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        error_setg(errp, "%s: direct I/O needs a regular file or a block "
                   "device", name);
        return false;
    }
    switch (ask_statx(fd, name, &mem_align, &offset_align, errp)) {
    case ASK_OK:
        break;
    case ASK_UNKNOWN:
        if (!guess_align(fd, name, &st, &offset_align, errp)) {
            return false;
        }
        mem_align = offset_align;
        break;
    case ASK_FAILED:
        return false;
    }
    if (!check_align(name, "memory", mem_align, errp) ||
        !check_align(name, "file offset", offset_align, errp)) {
        return false;
    }
    found.mem_align = mem_align;
    found.offset_align = offset_align;
    found.opt_transfer = opt_transfer(&st, &found);
    *limits = found;
    return true;
}

/* Descriptors */

bool direct_io_supported_by_host(void)
{
    return true;
}

bool direct_io_enabled(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags != -1 && (flags & O_DIRECT);
}

/* Turn open()'s errno into a sentence about the file behind @fd. */
static void reopen_error(int fd, const char *name, int err, Error **errp)
{
    g_autofree char *fs = direct_io_fs_name(fd);

    switch (err) {
    case EINVAL:
        error_setg(errp, "%s: the file system (%s) does not support O_DIRECT; "
                   HOW_TO_GO_ON, name, fs);
        break;
    case ENOENT:
    case ENOTDIR:
        error_setg(errp, "%s: cannot get a second descriptor for direct I/O: "
                   "/proc/self/fd is missing; mount /proc, or pass a "
                   "descriptor with O_DIRECT in an fdset", name);
        break;
    default:
        error_setg_errno(errp, err, "%s: cannot open the file again for "
                         "direct I/O", name);
        break;
    }
}

static int open_direct(const char *path, int flags)
{
    int fd;

    do {
        fd = open(path, flags | O_DIRECT | O_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

/* Opens @path if it is the file behind @fd; sets errno on failure. */
static int open_direct_if_same(const char *path, int fd, int flags)
{
    struct stat st;
    int new_fd;

    /* Opening a FIFO would wait for its other end. */
    if (stat(path, &st) < 0 ||
        (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))) {
        errno = ENOENT;
        return -1;
    }
    new_fd = open_direct(path, flags);
    if (new_fd >= 0 && !direct_io_same_file(fd, new_fd, path, NULL)) {
        close(new_fd);
        errno = ENOENT;
        return -1;
    }
    return new_fd;
}

int direct_io_reopen(int fd, const char *name, int flags, Error **errp)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    struct stat st;
    int new_fd;

    assert(!(flags & ~(O_RDONLY | O_WRONLY | O_RDWR)));

    /*
     * Open only what is known to be a file: opening a FIFO would wait for its
     * other end, and a bad @fd would look like a missing /proc.
     */
    if (fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "%s: cannot examine the file", name);
        return -1;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        error_setg(errp, "%s: direct I/O needs a regular file or a block "
                   "device", name);
        return -1;
    }

    new_fd = open_direct(path, flags);
    if (new_fd < 0 && (errno == ENOENT || errno == ENOTDIR)) {
        new_fd = open_direct_if_same(name, fd, flags);
    }
    if (new_fd < 0) {
        reopen_error(fd, name, errno, errp);
        return -1;
    }
    return new_fd;
}
#else
static void not_supported(const char *name, Error **errp)
{
    error_setg(errp, "%s: this host does not support O_DIRECT; turn the "
               "direct-io parameter off", name);
}

bool direct_io_probe(int fd, const char *name, DirectIOLimits *limits,
                     Error **errp)
{
    not_supported(name, errp);
    return false;
}

bool direct_io_supported_by_host(void)
{
    return false;
}

bool direct_io_enabled(int fd)
{
    return false;
}

int direct_io_reopen(int fd, const char *name, int flags, Error **errp)
{
    not_supported(name, errp);
    return -1;
}
#endif

bool direct_io_check_flags(int fd, const char *name, int access, Error **errp)
{
#ifndef _WIN32
    int flags = fcntl(fd, F_GETFL);
    int mode = flags & O_ACCMODE;

    if (flags < 0) {
        error_setg_errno(errp, errno, "%s: unable to get the flags of the "
                         "descriptor", name);
        return false;
    }
#ifdef O_PATH
    if (flags & O_PATH) {
        error_setg(errp, "%s: the descriptor was opened with O_PATH, so it "
                   "can't be used for I/O; pass one opened without O_PATH",
                   name);
        return false;
    }
#endif
    if (mode != O_RDWR && mode != access) {
        error_setg(errp, "%s: the descriptor is open for %s only; pass one "
                   "that is open for %s", name,
                   mode == O_RDONLY ? "reading" : "writing",
                   access == O_RDONLY ? "reading" : "writing");
        return false;
    }
    if (access == O_WRONLY && (flags & O_APPEND)) {
        error_setg(errp, "%s: the descriptor was opened with O_APPEND, so "
                   "writes would ignore their offset; pass one opened without "
                   "O_APPEND", name);
        return false;
    }
#endif
    return true;
}

bool direct_io_same_file(int fd1, int fd2, const char *name, Error **errp)
{
    struct stat st1, st2;
    bool same;

    if (fstat(fd1, &st1) < 0 || fstat(fd2, &st2) < 0) {
        error_setg_errno(errp, errno, "%s: cannot examine the file", name);
        return false;
    }
    same = st1.st_dev == st2.st_dev && st1.st_ino == st2.st_ino;
#ifdef S_ISBLK
    if (S_ISBLK(st1.st_mode) && S_ISBLK(st2.st_mode)) {
        same = st1.st_rdev == st2.st_rdev;
    }
#endif
    if (!same) {
        error_setg(errp, "%s: the direct and the buffered descriptor belong "
                   "to different files; pass two descriptors of one file",
                   name);
        return false;
    }
    return true;
}
