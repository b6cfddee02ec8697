/*
 * mapped-ram: memory whose pages come when they are touched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A thin layer over Linux's userfaultfd in its missing mode.  All functions
 * may be called from any thread, unless they say otherwise.  Elsewhere than
 * on Linux only mapped_ram_uffd_open() is called, and fails.
 *
 * Source: userfaultfd(2), ioctl_userfaultfd(2) and
 * Documentation/admin-guide/mm/userfaultfd.rst of Linux.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_UFFD_H
#define QEMU_MIGRATION_MAPPED_RAM_UFFD_H

#include "qemu/event_notifier.h"

/**
 * MappedRamFault:
 * @address: the address that was touched, with its lowest bits
 * @thread: the kernel's ID of the thread that waits, or 0 if not known
 */
typedef struct MappedRamFault {
    uint64_t address;
    uint64_t thread;
} MappedRamFault;

/**
 * mapped_ram_uffd_open:
 * @errp: pointer to a NULL-initialized error object
 *
 * The descriptor also gets the faults of the kernel, which reads and writes
 * guest RAM for KVM, vhost and asynchronous I/O.  That needs a privilege.
 *
 * Returns: a descriptor for close(); or -1 with @errp set, which says what the
 *          process lacks
 */
int mapped_ram_uffd_open(Error **errp);

/**
 * mapped_ram_uffd_register:
 * @fd: from mapped_ram_uffd_open()
 * @host: start of a range of memory, a multiple of its page size
 * @len: bytes of it, likewise
 * @can_zero: set to whether mapped_ram_uffd_zero() works on the range
 * @errp: pointer to a NULL-initialized error object
 *
 * From now on, threads that touch a page of the range which has no memory wait
 * until one of the functions below places one.
 *
 * Returns: true, or false with @errp set
 */
bool mapped_ram_uffd_register(int fd, void *host, size_t len, bool *can_zero,
                              Error **errp);

/**
 * mapped_ram_uffd_unregister:
 * @fd: from mapped_ram_uffd_open()
 * @host: as registered
 * @len: as registered
 *
 * Ends that, and wakes the threads that wait.  Pages without memory read as
 * zero again.
 */
void mapped_ram_uffd_unregister(int fd, void *host, size_t len);

/**
 * mapped_ram_uffd_copy:
 * @fd: from mapped_ram_uffd_open()
 * @host: a range of registered memory, of whole pages
 * @buf: what its pages shall hold
 * @len: bytes of the range
 *
 * Gives pages memory with this content, all of a page at once, and wakes the
 * threads that wait for them.  A page that has memory stays as it is.
 *
 * Returns: how many bytes have been placed, which may be fewer than @len; or
 *          -EEXIST if the first page has memory, or another negative errno
 */
ssize_t mapped_ram_uffd_copy(int fd, void *host, const void *buf, size_t len);

/**
 * mapped_ram_uffd_move:
 * @fd: from mapped_ram_uffd_open()
 * @host: a range of registered memory, of whole pages
 * @buf: what its pages shall hold; private anonymous memory, written to before
 * @len: bytes of the range
 *
 * Gives pages the memory that is behind @buf, which is without memory then, and
 * wakes the threads that wait for them.  Nothing is copied, and what is aligned
 * like a huge page stays one.  A page that has memory stays as it is.
 *
 * Returns: how many bytes have been placed, which may be fewer than @len; or
 *          -EEXIST if the first page has memory, -EBUSY if the memory behind
 *          @buf is shared or pinned, or another negative errno, such as -EINVAL
 *          where the kernel or this kind of memory cannot do that
 */
ssize_t mapped_ram_uffd_move(int fd, void *host, void *buf, size_t len);

/**
 * mapped_ram_uffd_has_policy:
 * @host: an address in memory
 *
 * Returns: whether this memory has a NUMA policy of its own, which the kernel
 *          follows when it copies a page to it, but not when it moves one
 */
bool mapped_ram_uffd_has_policy(void *host);

/* Like mapped_ram_uffd_copy(), with zeros. */
ssize_t mapped_ram_uffd_zero(int fd, void *host, size_t len);

/**
 * mapped_ram_uffd_wake:
 * @fd: from mapped_ram_uffd_open()
 * @host: a range of registered memory, of whole pages
 * @len: bytes of the range
 *
 * Has threads that wait for the range look again.
 */
void mapped_ram_uffd_wake(int fd, void *host, size_t len);

/**
 * mapped_ram_uffd_read:
 * @fd: from mapped_ram_uffd_open()
 * @fault: filled in
 *
 * Does not wait.
 *
 * Returns: whether a thread has begun to wait, which @fault tells of
 */
bool mapped_ram_uffd_read(int fd, MappedRamFault *fault);

/**
 * mapped_ram_uffd_wait:
 * @fd: from mapped_ram_uffd_open()
 * @notifier: cleared if it is set
 * @timeout: milliseconds, or -1 to wait without end
 *
 * Waits until mapped_ram_uffd_read() is worth a try, @notifier is set, or the
 * time is over.
 */
void mapped_ram_uffd_wait(int fd, EventNotifier *notifier, int timeout);

#endif /* QEMU_MIGRATION_MAPPED_RAM_UFFD_H */
