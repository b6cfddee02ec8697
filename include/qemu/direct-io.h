/*
 * What a file needs for direct I/O, and how to get a descriptor that does it
 *
 * Direct I/O (O_DIRECT) moves data between user memory and the device without
 * a copy in the page cache.  In return the kernel asks for aligned memory and
 * aligned file offsets and lengths.  How much alignment depends on the file
 * system and on the device below it, so it has to be asked for once per file.
 *
 * Nothing here keeps state; all functions may be called from any thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_DIRECT_IO_H
#define QEMU_DIRECT_IO_H

/* No file is known to need more; a larger answer is ignored. */
#define DIRECT_IO_ALIGN_MAX     (1 * 1024 * 1024)

/* Used where neither the kernel nor the device tells. */
#define DIRECT_IO_ALIGN_DEFAULT 4096

/*
 * DirectIOLimits: what transfers on one descriptor must obey, in bytes.
 *
 * All members are powers of two.  @mem_align and @offset_align are at most
 * DIRECT_IO_ALIGN_MAX; @opt_transfer is a multiple of both.
 */
typedef struct DirectIOLimits {
    /* Alignment of the buffer's address. */
    uint32_t mem_align;

    /* Alignment of both the file offset and the length of a transfer. */
    uint32_t offset_align;

    /* The size of request that this file likes best; larger ones are split. */
    uint32_t opt_transfer;
} DirectIOLimits;

/**
 * direct_io_supported_by_host:
 *
 * Returns: whether this host's C library and operating system know O_DIRECT
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
 * @fd: descriptor of a regular file or a block device.  It needs no O_DIRECT:
 *      the answer says what transfers need once it has.
 * @name: the file's name for messages; never opened
 * @limits: filled in on success, untouched on failure
 * @errp: pointer to a NULL-initialized error object
 *
 * Find out the alignment that direct transfers on @fd need.  The kernel is
 * asked first (statx with STATX_DIOALIGN); where it does not tell, a block
 * device is asked for its logical block size; other files get 4096, or their
 * file system's block size where that is known to be the rule.
 *
 * Fails when the kernel says that this file cannot do direct I/O (as for a
 * file that is encrypted or journals its data), when @fd is neither a regular
 * file nor a block device, and when an answer makes no sense (not a power of
 * two, or above DIRECT_IO_ALIGN_MAX).  Messages name the file and, where it
 * is to blame, the file system.
 *
 * A true result is no promise that O_DIRECT can be had: a file system that
 * has never heard of it tells nothing, and refuses in direct_io_reopen().
 *
 * Returns: true on success
 */
bool direct_io_probe(int fd, const char *name, DirectIOLimits *limits,
                     Error **errp);

/**
 * direct_io_reopen:
 * @fd: an open descriptor of a regular file or a block device
 * @name: the file's name for messages; never opened
 * @flags: O_RDONLY, O_WRONLY or O_RDWR, nothing else
 * @errp: pointer to a NULL-initialized error object
 *
 * Get a second descriptor of the file behind @fd, with O_DIRECT.  It is
 * opened through /proc/self/fd, so it is the same file even if it was renamed
 * or unlinked since, but with a file position and flags of its own: setting
 * O_DIRECT on a dup()ed descriptor would change the first one too.  The new
 * descriptor is close-on-exec.  The permissions of the file are checked
 * again, for @flags.
 *
 * Fails when the file system has no O_DIRECT (the message names it and says
 * how to go on), when /proc is not mounted, and when the file may not be
 * opened with @flags.
 *
 * Returns: the descriptor, the caller closes it; -1 on failure
 */
int direct_io_reopen(int fd, const char *name, int flags, Error **errp);

/**
 * direct_io_check_flags:
 * @fd: a descriptor that somebody passed to us
 * @name: its name for messages
 * @access: O_RDONLY or O_WRONLY, what it is wanted for
 * @errp: pointer to a NULL-initialized error object
 *
 * Check that a descriptor can do positioned I/O: it was not opened with
 * O_PATH, its access mode allows @access, and, to be written, it has no
 * O_APPEND, with which Linux ignores the offset and appends.
 *
 * Returns: true if it can; otherwise @errp names the flag and what to do
 */
bool direct_io_check_flags(int fd, const char *name, int access, Error **errp);

/**
 * direct_io_same_file:
 * @fd1: an open descriptor
 * @fd2: another one
 * @name: the name for messages under which both were passed
 * @errp: pointer to a NULL-initialized error object
 *
 * Check that two descriptors that somebody gave us, one direct and one
 * buffered, are the same file: same device and inode number, or, for block
 * devices, the same device number whichever node they were opened by.
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
 * "btrfs"; "of type 0x1234" for one without a name here; "of unknown type"
 * where the host can't tell.  For a block device it is the file system of the
 * device node, which says nothing about the device.
 *
 * Returns: a string that the caller frees with g_free(), never NULL
 */
char *direct_io_fs_name(int fd);

#endif /* QEMU_DIRECT_IO_H */
