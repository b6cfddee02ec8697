/*
 * Makes I/O on one file go wrong, for tests: an LD_PRELOAD library.
 *
 * FAULT_FILE   what the file's path ends with
 * FAULT        OP:NTH:WHAT, several separated by commas
 *
 *   OP         write, read, sync, close, unlink, lock, create: open with
 *              O_CREAT, or connect: to a Unix socket of that name
 *   NTH        1 for the first such call on the file, and so on; 5+ for the
 *              fifth and all later ones; d1 for the first on a descriptor
 *              with O_DIRECT, b1 for the first on one without
 *   WHAT       a number: fail with this errno
 *              short: transfer only a part (of more than 4096 bytes, some
 *              multiple of 4096)
 *              stall=SECONDS: do it, but only after a while
 *              hold: do it, but only when the file FAULT_GATE exists
 *              kill: end the process with SIGKILL instead
 *              mute=SECONDS: connect after a while, but so that nothing can be
 *              sent
 *
 * FAULT_LOG    file that gets a line "stall" when a stall or a hold begins,
 *              and "done" when it ends
 *
 * FAULT_LOCK   an errno with which locking any file fails
 *
 * FAULT_HIDE   "io_uring", "aio" or both: these seem not to exist, so that
 *              the program falls back on something else; io_uring is also
 *              hidden if a read or a write is to fail and the kernel cannot
 *              let a request fail
 *
 * Transfers through io_uring and Linux AIO are caught when they are
 * submitted, one at a time, through liburing and libaio.
 *
 * Copyright contributors of the direct-io series
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
#if __has_include(<liburing.h>)
#include <liburing.h>
#endif
#if __has_include(<libaio.h>)
#include <libaio.h>
#endif

enum { OP_WRITE, OP_READ, OP_SYNC, OP_CLOSE, OP_CREATE,
       OP_UNLINK, OP_LOCK, OP_CONNECT, OPS };

struct fault {
    int op;
    char kind;                  /* 'd', 'b' or 0 */
    unsigned nth;
    int and_later;
    int error, shorten, stall, hold, kill, mute;
};

static struct fault faults[16];
static int n_faults;
static const char *file;
static unsigned seen[OPS][3];   /* any, direct, buffered */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void __attribute__((constructor)) init(void)
{
    static const char *const names[] = { "write", "read", "sync", "close",
                                         "create", "unlink", "lock",
                                         "connect" };
    char *text = getenv("FAULT"), *one, *save = NULL;

    file = getenv("FAULT_FILE");
    if (!file || !text) {
        return;
    }
    for (one = strtok_r(strdup(text), ",", &save); one && n_faults < 16;
         one = strtok_r(NULL, ",", &save)) {
        struct fault *f = &faults[n_faults++];
        char *nth = strchr(one, ':'), *what;

        *nth++ = 0;
        for (f->op = 0; strcmp(names[f->op], one); f->op++) {
        }
        if (*nth == 'd' || *nth == 'b') {
            f->kind = *nth++;
        }
        f->nth = strtoul(nth, &what, 10);
        if (*what == '+') {
            f->and_later = 1;
            what++;
        }
        what++;
        if (!strcmp(what, "short")) {
            f->shorten = 1;
        } else if (!strcmp(what, "hold")) {
            f->hold = 1;
        } else if (!strcmp(what, "kill")) {
            f->kill = 1;
        } else if (!strncmp(what, "stall=", 6)) {
            f->stall = atoi(what + 6);
        } else if (!strncmp(what, "mute=", 5)) {
            f->mute = 1;
            f->stall = atoi(what + 5);
        } else {
            f->error = atoi(what);
        }
    }
}

static void tell(const char *text)
{
    const char *name = getenv("FAULT_LOG");
    FILE *log = name ? fopen(name, "a") : NULL;

    if (log) {
        fputs(text, log);
        fclose(log);
    }
}

static int is_file(const char *path, size_t len)
{
    size_t want = strlen(file);

    return len >= want && !memcmp(path + len - want, file, want);
}

/* What is to happen to this call on the file, or NULL. */
static const struct fault *choose(int op, int direct)
{
    const struct fault *found = NULL;
    int i;

    pthread_mutex_lock(&lock);
    seen[op][0]++;
    seen[op][direct ? 1 : 2]++;
    for (i = 0; i < n_faults; i++) {
        const struct fault *f = &faults[i];
        unsigned count = seen[op][!f->kind ? 0 : f->kind == 'd' ? 1 : 2];

        if (f->op == op && (!f->kind || (f->kind == 'd') == direct) &&
            (count == f->nth || (f->and_later && count > f->nth))) {
            found = f;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    if (found && (found->stall || found->hold)) {
        tell("stall\n");
        sleep(found->stall);
        while (found->hold && access(getenv("FAULT_GATE"), F_OK)) {
            usleep(10000);
        }
        tell("done\n");
    }
    if (found && found->kill) {
        kill(getpid(), SIGKILL);
        pause();
    }
    return found;
}

/* Whether @fd is the file; what is to happen to this call, or NULL. */
static const struct fault *find(int fd, int op)
{
    char link[64], path[PATH_MAX];
    const struct fault *found = NULL;
    int saved = errno;
    ssize_t len;

    if (!n_faults) {
        return NULL;
    }
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof(path));
    if (len > 0 && is_file(path, len)) {
        found = choose(op, !!(fcntl(fd, F_GETFL) & O_DIRECT));
    }
    errno = saved;
    return found;
}

/* About half of @len, a multiple of 4096, at least that. */
static size_t shorter(const struct fault *f, size_t len)
{
    size_t half = len / 2 & ~(size_t)4095;

    return f && f->shorten && half ? half : len;
}

#define REAL(name) ({ \
    static __typeof__(name) *real_; \
    if (!real_) { \
        real_ = dlsym(RTLD_NEXT, #name); \
    } \
    real_; })

#define FAIL_IF_SO(f) do { \
        if ((f) && (f)->error) { \
            errno = (f)->error; \
            return -1; \
        } \
    } while (0)

#define PLAIN(name, op, type) \
ssize_t name(int fd, type buf, size_t len) \
{ \
    const struct fault *f = find(fd, op); \
    FAIL_IF_SO(f); \
    return REAL(name)(fd, buf, shorter(f, len)); \
}

#define AT(name, op, type, off) \
ssize_t name(int fd, type buf, size_t len, off pos) \
{ \
    const struct fault *f = find(fd, op); \
    FAIL_IF_SO(f); \
    return REAL(name)(fd, buf, shorter(f, len), pos); \
}

/* The vector that covers the first @want bytes of @iov; the caller frees. */
static struct iovec *cut(const struct iovec *iov, int *n, size_t want)
{
    struct iovec *part = malloc(sizeof(*part) * (*n + 1));
    int i;

    for (i = 0; i < *n && want; i++) {
        part[i] = iov[i];
        if (part[i].iov_len > want) {
            part[i].iov_len = want;
        }
        want -= part[i].iov_len;
    }
    *n = i;
    return part;
}

static size_t total(const struct iovec *iov, int n)
{
    size_t sum = 0;

    while (n--) {
        sum += iov[n].iov_len;
    }
    return sum;
}

#define VECTOR(name, op, args, ...) \
ssize_t name args \
{ \
    const struct fault *f = find(fd, op); \
    struct iovec *part; \
    ssize_t ret; \
    FAIL_IF_SO(f); \
    if (!f || !f->shorten) { \
        return REAL(name)(fd, iov, n, ##__VA_ARGS__); \
    } \
    part = cut(iov, &n, shorter(f, total(iov, n))); \
    ret = REAL(name)(fd, part, n, ##__VA_ARGS__); \
    free(part); \
    return ret; \
}

PLAIN(write, OP_WRITE, const void *)
PLAIN(read, OP_READ, void *)
AT(pwrite, OP_WRITE, const void *, off_t)
AT(pwrite64, OP_WRITE, const void *, off64_t)
AT(pread, OP_READ, void *, off_t)
AT(pread64, OP_READ, void *, off64_t)
VECTOR(writev, OP_WRITE, (int fd, const struct iovec *iov, int n))
VECTOR(readv, OP_READ, (int fd, const struct iovec *iov, int n))
VECTOR(pwritev, OP_WRITE,
       (int fd, const struct iovec *iov, int n, off_t pos), pos)
VECTOR(pwritev64, OP_WRITE,
       (int fd, const struct iovec *iov, int n, off64_t pos), pos)
VECTOR(preadv, OP_READ,
       (int fd, const struct iovec *iov, int n, off_t pos), pos)
VECTOR(preadv64, OP_READ,
       (int fd, const struct iovec *iov, int n, off64_t pos), pos)

/* fcntl() for locks; glibc has it by a second name, for large files. */
#define FCNTL(name) \
int name(int fd, int cmd, ...) \
{ \
    const char *number = getenv("FAULT_LOCK"); \
    va_list ap; \
    void *arg; \
    va_start(ap, cmd); \
    arg = va_arg(ap, void *); \
    va_end(ap); \
    if (cmd == F_OFD_SETLK) { \
        const struct fault *f = find(fd, OP_LOCK); \
        FAIL_IF_SO(f); \
        if (number) { \
            errno = atoi(number); \
            return -1; \
        } \
    } \
    return REAL(name)(fd, cmd, arg); \
}

FCNTL(fcntl)
FCNTL(fcntl64)

int fsync(int fd)
{
    const struct fault *f = find(fd, OP_SYNC);

    FAIL_IF_SO(f);
    return REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    const struct fault *f = find(fd, OP_SYNC);

    FAIL_IF_SO(f);
    return REAL(fdatasync)(fd);
}

int close(int fd)
{
    const struct fault *f = find(fd, OP_CLOSE);

    if (f && f->error) {
        REAL(close)(fd);
        errno = f->error;
        return -1;
    }
    return REAL(close)(fd);
}

static int hidden(const char *what)
{
    const char *list = getenv("FAULT_HIDE");

    return list && strstr(list, what);
}

#if __has_include(<liburing.h>)

/* Lets a request do nothing and fail; needs IORING_NOP_INJECT_RESULT. */
static void make_fail(struct io_uring_sqe *sqe, int error)
{
    sqe->opcode = IORING_OP_NOP;
    sqe->rw_flags = 1;
    sqe->len = -error;
    sqe->fd = -1;
}

/* Whether requests can be made to fail like this: since Linux 6.10. */
static int try_to_fail(void)
{
    struct io_uring ring;
    int failed = 0;

    if (REAL(io_uring_queue_init)(2, &ring, 0) < 0) {
        return 0;
    }
    memset(&ring.sq.sqes[0], 0, sizeof(ring.sq.sqes[0]));
    make_fail(&ring.sq.sqes[0], EIO);
    ring.sq.sqe_tail++;
    if (REAL(io_uring_submit_and_wait)(&ring, 1) == 1) {
        failed = ring.cq.cqes[0].res == -EIO;
    }
    REAL(io_uring_queue_exit)(&ring);
    return failed;
}

/* Whether there is a fault that io_uring cannot have on this kernel. */
static int impossible(void)
{
    static int can_fail = -1;
    int i;

    for (i = 0; i < n_faults; i++) {
        if (faults[i].error && faults[i].op <= OP_READ) {
            if (can_fail < 0) {
                can_fail = try_to_fail();
            }
            return !can_fail;
        }
    }
    return 0;
}

/* Changes the requests that are about to be submitted. */
static void change_requests(struct io_uring *ring)
{
    struct io_uring_sq *sq = &ring->sq;
    unsigned i;

    for (i = sq->sqe_head; i != sq->sqe_tail; i++) {
        struct io_uring_sqe *sqe = &sq->sqes[i & sq->ring_mask];
        const struct fault *f;

        if (sqe->opcode != IORING_OP_WRITE && sqe->opcode != IORING_OP_READ) {
            continue;
        }
        f = find(sqe->fd, sqe->opcode == IORING_OP_WRITE ? OP_WRITE : OP_READ);
        if (f && f->error) {
            make_fail(sqe, f->error);
        } else {
            sqe->len = shorter(f, sqe->len);
        }
    }
}

int io_uring_submit(struct io_uring *ring)
{
    change_requests(ring);
    return REAL(io_uring_submit)(ring);
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned wait)
{
    change_requests(ring);
    return REAL(io_uring_submit_and_wait)(ring, wait);
}

int io_uring_queue_init(unsigned entries, struct io_uring *ring,
                        unsigned flags)
{
    return hidden("io_uring") || impossible() ? -ENOSYS :
           REAL(io_uring_queue_init)(entries, ring, flags);
}

#endif

#define OPEN(name) \
int name(const char *path, int flags, ...) \
{ \
    const struct fault *f = NULL; \
    va_list args; \
    mode_t mode; \
\
    va_start(args, flags); \
    mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(args, mode_t) : 0; \
    va_end(args); \
    if (n_faults && flags & O_CREAT && is_file(path, strlen(path))) { \
        f = choose(OP_CREATE, !!(flags & O_DIRECT)); \
        FAIL_IF_SO(f); \
    } \
    return REAL(name)(path, flags, mode); \
}

OPEN(open)
OPEN(open64)

int unlink(const char *path)
{
    const struct fault *f = NULL;

    if (n_faults && is_file(path, strlen(path))) {
        f = choose(OP_UNLINK, 0);
        FAIL_IF_SO(f);
    }
    return REAL(unlink)(path);
}

int connect(int fd, const struct sockaddr *to, socklen_t len)
{
    const char *path = ((const struct sockaddr_un *)to)->sun_path;
    const struct fault *f = NULL;
    int ret;

    if (n_faults && to->sa_family == AF_UNIX && is_file(path, strlen(path))) {
        f = choose(OP_CONNECT, 0);
        FAIL_IF_SO(f);
    }
    ret = REAL(connect)(fd, to, len);
    if (!ret && f && f->mute) {
        shutdown(fd, SHUT_WR);
    }
    return ret;
}

#if __has_include(<libaio.h>)

int io_submit(io_context_t context, long n, struct iocb *list[])
{
    if (n > 0) {
        struct iocb *one = list[0];
        int write = one->aio_lio_opcode == IO_CMD_PWRITE;
        const struct fault *f = NULL;

        if (write || one->aio_lio_opcode == IO_CMD_PREAD) {
            f = find(one->aio_fildes, write ? OP_WRITE : OP_READ);
        }
        if (f && f->error) {
            return -f->error;
        }
        if (f) {
            one->u.c.nbytes = shorter(f, one->u.c.nbytes);
        }
    }
    return REAL(io_submit)(context, n, list);
}

int io_setup(int depth, io_context_t *context)
{
    return hidden("aio") ? -ENOSYS : REAL(io_setup)(depth, context);
}

#endif
