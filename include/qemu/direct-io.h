/*
 * Alignment that a file needs for direct I/O, and descriptors with O_DIRECT
 *
 * Direct I/O (O_DIRECT) moves data between user memory and the device without
 * a copy in the page cache.  In return the kernel requires aligned memory and
 * aligned file offsets and lengths.  The alignment depends on the file system
 * and on the device below it, so it has to be found out once per file.
 *
 * Nothing here keeps state; all functions may be called from any thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_DIRECT_IO_H
#define QEMU_DIRECT_IO_H

/* No file is known to need more; a larger answer is refused. */
#define DIRECT_IO_ALIGN_MAX     (1 * 1024 * 1024)

/* Used if neither the kernel nor the device reports the alignment. */
#define DIRECT_IO_ALIGN_DEFAULT 4096

/*
 * DirectIOLimits: constraints on transfers through one descriptor, in bytes.
 *
 * All members are powers of two.  @mem_align and @offset_align are at most
 * DIRECT_IO_ALIGN_MAX; @opt_transfer is a multiple of both.
 */
typedef struct DirectIOLimits {
    /* Alignment of the buffer's address. */
    uint32_t mem_align;

    /* Alignment of both the file offset and the length of a transfer. */
    uint32_t offset_align;

    /* The request size that suits this file best; larger ones are split. */
    uint32_t opt_transfer;
} DirectIOLimits;

/**
 * direct_io_supported_by_host:
 *
 * Returns: whether this host's C library and operating system support O_DIRECT
 * at all.  When false, direct_io_probe() and direct_io_reopen() always fail.
 */
bool direct_io_supported_by_host(void);

/**
 * direct_io_enabled:
 * @fd: an open descriptor
 *
 * Returns: whether @fd's open file description has O_DIRECT set.  False also
 * when @fd is not open and on hosts without O_DIRECT.
 */
bool direct_io_enabled(int fd);

/**
 * direct_io_limits_buffered:
 * @limits: filled in
 *
 * The limits of a descriptor without O_DIRECT: any address, any offset, any
 * length, and requests of 2 MiB.
 */
void direct_io_limits_buffered(DirectIOLimits *limits);

/**
 * direct_io_probe:
 * @fd: descriptor of a regular file or a block device.  O_DIRECT need not be
 *      set: the answer says what transfers need once it is.
 * @name: the file's name for messages; never opened
 * @limits: filled in on success, untouched on failure
 * @errp: pointer to a NULL-initialized error object
 *
 * Find out the alignment that direct transfers on @fd need.  The kernel is
 * asked first (statx with STATX_DIOALIGN).  If it does not report alignment, a
 * block device is asked for its logical block size; other files get 4096 or the
 * host's page size, or their file system's block size if that is known to be
 * the rule, whichever is the largest.
 *
 * Fails when the kernel says that this file cannot do direct I/O (as for a
 * file that is encrypted or journals its data), when @fd is neither a regular
 * file nor a block device, and when an answer makes no sense (not a power of
 * two, or above DIRECT_IO_ALIGN_MAX).  Messages name the file and, if it is
 * the cause, the file system.
 *
 * Success does not guarantee that O_DIRECT works: a file system without it
 * reports nothing here, and direct_io_reopen() fails.
 *
 * Returns: true on success
 */
bool direct_io_probe(int fd, const char *name, DirectIOLimits *limits,
                     Error **errp);

/**
 * direct_io_reopen:
 * @fd: an open descriptor of a regular file or a block device
 * @name: the file's name for messages, which is opened if there is no /proc
 * @flags: O_RDONLY, O_WRONLY or O_RDWR, nothing else
 * @errp: pointer to a NULL-initialized error object
 *
 * Get a second descriptor of the file behind @fd, with O_DIRECT.  It is
 * opened through /proc/self/fd, so it is the same file even if it was renamed
 * or unlinked since, but has its own file position and flags: setting O_DIRECT
 * on a dup()ed descriptor would change the first one too.  Where /proc is not
 * mounted, as in a chroot, @name is opened instead, and must be the same file.
 * The new descriptor is close-on-exec.  The permissions of the file are checked
 * again, for @flags.
 *
 * Fails when the file system has no O_DIRECT (the message names it and says
 * what to do), when /proc is not mounted and @name is not the file, and when
 * the file may not be opened with @flags.
 *
 * Returns: the descriptor, to be closed by the caller; -1 on failure
 */
int direct_io_reopen(int fd, const char *name, int flags, Error **errp);

/**
 * direct_io_check_flags:
 * @fd: a descriptor passed to QEMU
 * @name: its name for messages
 * @access: O_RDONLY or O_WRONLY, the access that is needed
 * @errp: pointer to a NULL-initialized error object
 *
 * Check that a descriptor can do positioned I/O: it was not opened with
 * O_PATH, its access mode allows @access, and, for writing, it does not have
 * O_APPEND, which makes Linux ignore the offset and append.
 *
 * Returns: true if it can; otherwise @errp names the flag and what to do
 */
bool direct_io_check_flags(int fd, const char *name, int access, Error **errp);

/**
 * direct_io_same_file:
 * @fd1: an open descriptor
 * @fd2: another one
 * @name: the name for messages under which both descriptors were passed
 * @errp: pointer to a NULL-initialized error object
 *
 * Check that two descriptors passed to QEMU, one direct and one buffered, are
 * of the same file: same device and inode number, or, for block devices, the
 * same device number, whichever node they were opened by.
 *
 * Returns: true if they are; otherwise @errp says that they differ, or that
 * one of them could not be examined
 */
bool direct_io_same_file(int fd1, int fd2, const char *name, Error **errp);

/**
 * direct_io_fs_name:
 * @fd: an open descriptor
 *
 * The type of the file system that holds @fd, for messages: "ext4", "tmpfs",
 * "btrfs"; "of type 0x1234" if its name is not known here; "of unknown type"
 * if the host can't tell.  For a block device it is the file system of the
 * device node, which says nothing about the device.
 *
 * Returns: a string to be freed by the caller with g_free(), never NULL
 */
char *direct_io_fs_name(int fd);

#endif /* QEMU_DIRECT_IO_H */
