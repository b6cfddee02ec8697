/*
 * mapped-ram: memory whose pages are provided when they are touched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A thin layer over Linux's userfaultfd in its missing mode.  All functions
 * may be called from any thread, unless they say otherwise.  On other hosts
 * only mapped_ram_uffd_open() is called, and fails.
 *
 * Source: userfaultfd(2), ioctl_userfaultfd(2) and
 * Documentation/admin-guide/mm/userfaultfd.rst of Linux.
 */

#ifndef QEMU_MIGRATION_MAPPED_RAM_UFFD_H
#define QEMU_MIGRATION_MAPPED_RAM_UFFD_H

#include "qemu/event_notifier.h"

/**
 * MappedRamFault:
 * @address: the address that was touched, including its lowest bits
 * @thread: the kernel's ID of the waiting thread, or 0 if unknown
 */
typedef struct MappedRamFault {
    uint64_t address;
    uint64_t thread;
} MappedRamFault;

/**
 * mapped_ram_uffd_open:
 * @errp: pointer to a NULL-initialized error object
 *
 * The descriptor also gets faults within the kernel, which accesses guest RAM
 * for KVM, vhost and asynchronous I/O.  That requires a privilege.
 *
 * Returns: a descriptor for close(); or -1 with @errp set to what the process
 *          lacks
 */
int mapped_ram_uffd_open(Error **errp);

/**
 * mapped_ram_uffd_register:
 * @fd: from mapped_ram_uffd_open()
 * @host: start of a range of memory, a multiple of its page size
 * @len: length of the range in bytes, likewise
 * @can_zero: set to whether mapped_ram_uffd_zero() works on the range
 * @errp: pointer to a NULL-initialized error object
 *
 * From now on, a thread that touches a page of the range that has no memory
 * waits until one of the functions below places the page.
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
 * Undoes the registration and wakes waiting threads.  Pages without memory read
 * as zero again.
 */
void mapped_ram_uffd_unregister(int fd, void *host, size_t len);

/**
 * mapped_ram_uffd_copy:
 * @fd: from mapped_ram_uffd_open()
 * @host: a range of registered memory, of whole pages
 * @buf: the new content of the pages
 * @len: bytes of the range
 *
 * Gives pages memory with this content, each page atomically, and wakes the
 * threads that wait for them.  A page that already has memory is left alone.
 *
 * Returns: how many bytes have been placed, which may be fewer than @len; or
 *          -EEXIST if the first page has memory, or another negative errno
 */
ssize_t mapped_ram_uffd_copy(int fd, void *host, const void *buf, size_t len);

/**
 * mapped_ram_uffd_move:
 * @fd: from mapped_ram_uffd_open()
 * @host: a range of registered memory, of whole pages
 * @buf: the new content of the pages; private anonymous memory, written before
 * @len: bytes of the range
 *
 * Moves the memory behind @buf to the pages, leaving @buf without memory, and
 * wakes the threads that wait for them.  Nothing is copied; an aligned huge
 * page stays one.  A page that already has memory is left alone.
 *
 * Returns: how many bytes have been placed, which may be fewer than @len; or
 *          -EEXIST if the first page has memory, -EBUSY if the memory behind
 *          @buf is shared or pinned, or another negative errno, such as -EINVAL
 *          if the kernel or this kind of memory does not support it
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
 * Makes threads that wait for the range check it again.
 */
void mapped_ram_uffd_wake(int fd, void *host, size_t len);

/**
 * mapped_ram_uffd_read:
 * @fd: from mapped_ram_uffd_open()
 * @fault: filled in
 *
 * Does not wait.
 *
 * Returns: whether there was a fault, which @fault then describes
 */
bool mapped_ram_uffd_read(int fd, MappedRamFault *fault);

/**
 * mapped_ram_uffd_own_thread:
 * @thread: as in MappedRamFault
 *
 * Returns: whether it is a thread of this process, which includes those that
 *          the kernel runs for io_uring and for vhost (before Linux 6.4, found
 *          by their name).  A kernel thread that loads a page for KVM while
 *          the CPU sleeps or runs on (asynchronous page fault) does not count.
 */
bool mapped_ram_uffd_own_thread(uint64_t thread);

/**
 * mapped_ram_uffd_pending:
 * @fd: from mapped_ram_uffd_open()
 *
 * Returns: whether mapped_ram_uffd_read() would find a fault
 */
bool mapped_ram_uffd_pending(int fd);

/**
 * mapped_ram_uffd_wait:
 * @fd: from mapped_ram_uffd_open()
 * @notifier: cleared if it is set
 * @timeout: milliseconds, or -1 to wait indefinitely
 *
 * Waits until mapped_ram_uffd_read() may find a fault, @notifier is set, or the
 * time is over.
 */
void mapped_ram_uffd_wait(int fd, EventNotifier *notifier, int timeout);

#endif /* QEMU_MIGRATION_MAPPED_RAM_UFFD_H */
