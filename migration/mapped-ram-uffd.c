/*
 * mapped-ram: memory whose pages are provided when they are touched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram-uffd.h.
 */

#include "qemu/osdep.h"
#include "mapped-ram-uffd.h"
#include "qapi/error.h"

#ifdef CONFIG_LINUX
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

/* From linux/userfaultfd.h of 6.1, for older headers */
#define UFFD_DEVICE_NEW _IO(0xAA, 0x00)

/* Likewise, from Linux 6.8 */
#define FEATURE_MOVE (1 << 16)

typedef struct Move {
    uint64_t dst, src, len, mode;
    int64_t move;
} Move;

#define IOCTL_MOVE _IOWR(0xAA, 0x05, Move)

/* The system call needs a privilege; the device only needs access rights. */
static int uffd_new(int flags)
{
    int device = qemu_open_old("/dev/userfaultfd", O_RDWR);
    int fd = -1;

    if (device >= 0) {
        fd = ioctl(device, UFFD_DEVICE_NEW, flags);
        close(device);
    }
    return fd >= 0 ? fd : syscall(__NR_userfaultfd, flags);
}

static bool uffd_start(int fd, uint64_t features)
{
    struct uffdio_api api = { .api = UFFD_API, .features = features };

    return ioctl(fd, UFFDIO_API, &api) == 0;
}

int mapped_ram_uffd_open(Error **errp)
{
    /* A descriptor is initialized only once: try the most features first. */
    const uint64_t features[] = {
        UFFD_FEATURE_THREAD_ID | FEATURE_MOVE,
        UFFD_FEATURE_THREAD_ID,
        0,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(features); i++) {
        int fd = uffd_new(O_CLOEXEC | O_NONBLOCK);

        if (fd < 0) {
            error_setg_errno(errp, errno, "userfaultfd is not available; it "
                             "needs access to /dev/userfaultfd, the "
                             "capability CAP_SYS_PTRACE, or the sysctl "
                             "vm.unprivileged_userfaultfd=1");
            return -1;
        }
        if (uffd_start(fd, features[i])) {
            return fd;
        }
        close(fd);
    }
    error_setg(errp, "this kernel's userfaultfd is too old");
    return -1;
}

bool mapped_ram_uffd_register(int fd, void *host, size_t len, bool *can_zero,
                              Error **errp)
{
    struct uffdio_register reg = {
        .range = { .start = (uintptr_t)host, .len = len },
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };

    if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0) {
        if (errno == EINVAL) {
            error_setg(errp, "userfaultfd does not work on this kind of "
                       "memory");
        } else {
            error_setg_errno(errp, errno, "userfaultfd cannot be used on "
                             "%zu bytes of its memory", len);
        }
        return false;
    }
    if (!(reg.ioctls & (1ULL << _UFFDIO_COPY))) {
        mapped_ram_uffd_unregister(fd, host, len);
        error_setg(errp, "userfaultfd cannot place pages in this kind of "
                   "memory");
        return false;
    }
    *can_zero = reg.ioctls & (1ULL << _UFFDIO_ZEROPAGE);
    return true;
}

void mapped_ram_uffd_wake(int fd, void *host, size_t len)
{
    struct uffdio_range range = { .start = (uintptr_t)host, .len = len };

    ioctl(fd, UFFDIO_WAKE, &range);
}

void mapped_ram_uffd_unregister(int fd, void *host, size_t len)
{
    struct uffdio_range range = { .start = (uintptr_t)host, .len = len };

    ioctl(fd, UFFDIO_UNREGISTER, &range);
    /*
     * Linux wakes threads before it clears the range's flags.  If it handles
     * page faults under the lock of a single mapping (since 6.7), a thread may
     * begin to wait in between.
     */
    mapped_ram_uffd_wake(fd, host, len);
}

/*
 * @done: what the kernel reports as placed, or a negative errno.  The kernel
 * returns EAGAIN after a partial copy, and while the process maps memory.
 */
static ssize_t placed(int ret, int64_t done)
{
    int err = errno;

    if (ret == 0 || done > 0) {
        return done;
    }
    return err == EAGAIN ? 0 : -err;
}

ssize_t mapped_ram_uffd_copy(int fd, void *host, const void *buf, size_t len)
{
    struct uffdio_copy copy = {
        .dst = (uintptr_t)host,
        .src = (uintptr_t)buf,
        .len = len,
    };
    int ret = ioctl(fd, UFFDIO_COPY, &copy);

    if (ret < 0 && errno == EFAULT) {
        /*
         * Linux before 6.11 returns this if a huge page appears meanwhile.
         * The second call finds the page.
         */
        ret = ioctl(fd, UFFDIO_COPY, &copy);
    }
    return placed(ret, copy.copy);
}

ssize_t mapped_ram_uffd_move(int fd, void *host, void *buf, size_t len)
{
    Move move = {
        .dst = (uintptr_t)host,
        .src = (uintptr_t)buf,
        .len = len,
    };
    int ret = ioctl(fd, IOCTL_MOVE, &move);

    return placed(ret, move.move);
}

bool mapped_ram_uffd_has_policy(void *host)
{
    int mode;

    return syscall(__NR_get_mempolicy, &mode, NULL, 0, host, MPOL_F_ADDR) == 0
           && mode != MPOL_DEFAULT;
}

ssize_t mapped_ram_uffd_zero(int fd, void *host, size_t len)
{
    struct uffdio_zeropage zero = {
        .range = { .start = (uintptr_t)host, .len = len },
    };
    int ret = ioctl(fd, UFFDIO_ZEROPAGE, &zero);

    return placed(ret, zero.zeropage);
}

bool mapped_ram_uffd_read(int fd, MappedRamFault *fault)
{
    struct uffd_msg msg;

    while (read(fd, &msg, sizeof(msg)) == sizeof(msg)) {
        if (msg.event == UFFD_EVENT_PAGEFAULT) {
            fault->address = msg.arg.pagefault.address;
            fault->thread = msg.arg.pagefault.feat.ptid;
            return true;
        }
    }
    return false;
}

/* Before Linux 6.4, a thread of vhost belongs to the kernel. */
static bool is_vhost(uint64_t thread)
{
    g_autofree char *path = g_strdup_printf("/proc/%" PRIu64 "/comm", thread);
    g_autofree char *name = NULL;

    return g_file_get_contents(path, &name, NULL, NULL) &&
           g_str_has_prefix(name, "vhost-");
}

bool mapped_ram_uffd_own_thread(uint64_t thread)
{
    /* Sends no signal, but checks whether there is such a thread. */
    return thread &&
           (syscall(__NR_tgkill, getpid(), (pid_t)thread, 0) == 0 ||
            is_vhost(thread));
}

bool mapped_ram_uffd_pending(int fd)
{
    struct pollfd pending = { .fd = fd, .events = POLLIN };

    return poll(&pending, 1, 0) > 0;
}

void mapped_ram_uffd_wait(int fd, EventNotifier *notifier, int timeout)
{
    struct pollfd fds[] = {
        { .fd = fd, .events = POLLIN },
        { .fd = event_notifier_get_fd(notifier), .events = POLLIN },
    };

    poll(fds, ARRAY_SIZE(fds), timeout);
    if (fds[1].revents) {
        event_notifier_test_and_clear(notifier);
    }
}

#else /* CONFIG_LINUX */

int mapped_ram_uffd_open(Error **errp)
{
    error_setg(errp, "userfaultfd is not available on this host");
    return -1;
}

bool mapped_ram_uffd_register(int fd, void *host, size_t len, bool *can_zero,
                              Error **errp)
{
    g_assert_not_reached();
}

void mapped_ram_uffd_unregister(int fd, void *host, size_t len)
{
    g_assert_not_reached();
}

ssize_t mapped_ram_uffd_copy(int fd, void *host, const void *buf, size_t len)
{
    g_assert_not_reached();
}

ssize_t mapped_ram_uffd_move(int fd, void *host, void *buf, size_t len)
{
    g_assert_not_reached();
}

bool mapped_ram_uffd_has_policy(void *host)
{
    g_assert_not_reached();
}

ssize_t mapped_ram_uffd_zero(int fd, void *host, size_t len)
{
    g_assert_not_reached();
}

void mapped_ram_uffd_wake(int fd, void *host, size_t len)
{
    g_assert_not_reached();
}

bool mapped_ram_uffd_read(int fd, MappedRamFault *fault)
{
    g_assert_not_reached();
}

bool mapped_ram_uffd_own_thread(uint64_t thread)
{
    g_assert_not_reached();
}

bool mapped_ram_uffd_pending(int fd)
{
    g_assert_not_reached();
}

void mapped_ram_uffd_wait(int fd, EventNotifier *notifier, int timeout)
{
    g_assert_not_reached();
}

#endif /* CONFIG_LINUX */
