/*
 * Tests of instant restore's loader: every page arrives, once, and in time
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * They use real memory, real userfaultfd and a real file.  If this process may
 * not use userfaultfd on the host, only the refusal is tested.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#ifdef CONFIG_LINUX
#include <linux/filter.h>
#include <linux/mempolicy.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif
#include "migration/mapped-ram-lazy.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"
#include "qemu/processor.h"
#include "qemu/thread.h"
#include "../../migration/mapped-ram-lazy-int.h"

#ifdef CONFIG_LINUX

#define PAGE 4096

/* Pages that each thread touches in test_unregister() */
#define TOUCHED 64

/* The request that moves pages; see mapped-ram-uffd.c */
#define IOCTL_MOVE _IOWR(0xAA, 0x05, uint64_t[5])

typedef enum Memory {
    /* like guest RAM */
    ANONYMOUS,
    SHARED,
    HUGE,
} Memory;

typedef struct Fixture {
    char *path;
    int fd;
    int direct_fd;
    MappedRamBlock block;
    Memory memory;
    unsigned long pages;
    size_t page_size;
    /* of the queues; 0 for the default */
    unsigned depth;
    MappedRamLazy *lazy;
    QemuSemaphore ended, failed;
} Fixture;

static bool usable(void)
{
    g_autofree char *why = NULL;
    Error *err = NULL;
    int fd;

    if (qemu_real_host_page_size() != PAGE) {
        g_test_skip("the test is for hosts with pages of 4 KiB");
        return false;
    }
    fd = mapped_ram_uffd_open(&err);
    if (fd < 0) {
        why = g_strdup(error_get_pretty(err));
        error_free(err);
        g_test_skip(why);
        return false;
    }
    close(fd);
    return true;
}

/*
 * Returns whether this is a process for one test, which may change it for good;
 * otherwise runs the test in such a process.
 */
static bool in_subprocess(void)
{
    if (!usable()) {
        return false;
    }
    if (!g_test_subprocess()) {
        g_test_trap_subprocess(NULL, 0, 0);
        g_test_trap_assert_passed();
    }
    return g_test_subprocess();
}

/* Fill @buf with the content of page @page, which is unique and not zero. */
static void fill_page(uint64_t *buf, uint64_t page)
{
    for (int i = 0; i < PAGE / 8; i++) {
        buf[i] = (page + 1) * 0x9e3779b97f4a7c15ULL + i;
    }
}

/* Whether page @page is in the file: runs of all lengths, and long gaps. */
static bool is_present(unsigned long page)
{
    unsigned long in = page % 2048;

    return in < 600 ? true : in < 700 ? page % 2 : in < 800 ? page % 7 == 0 :
           in == 1500;
}

static void *map_memory(Memory memory, size_t len)
{
    int flags = memory == SHARED ? MAP_SHARED | MAP_ANONYMOUS :
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    void *p;

    if (memory == ANONYMOUS) {
        return qemu_anon_ram_alloc(len, NULL, false, false);
    }
    p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void unmap_memory(Memory memory, void *p, size_t len)
{
    if (memory == ANONYMOUS) {
        qemu_anon_ram_free(p, len);
    } else {
        munmap(p, len);
    }
}

static void write_file(Fixture *f)
{
    uint64_t *buf = qemu_memalign(PAGE, PAGE);

    for (unsigned long i = 0; i < f->pages; i++) {
        /* The file's content in the place of an absent page is ignored. */
        fill_page(buf, test_bit(i, f->block.present) ? i : ~i);
        g_assert_cmpint(pwrite(f->fd, buf, PAGE,
                               f->block.layout.pages_offset + i * PAGE),
                        ==, PAGE);
    }
    g_assert_cmpint(pwrite(f->fd, "end", 3,
                           mapped_ram_layout_end(&f->block.layout)), ==, 3);
    qemu_vfree(buf);
}

static bool fixture_init(Fixture *f, Memory memory, unsigned long pages)
{
    *f = (Fixture) { .memory = memory, .pages = pages, .direct_fd = -1 };
    f->page_size = memory == HUGE ? 2 * MiB : PAGE;
    f->block.host = map_memory(memory, pages * PAGE);
    if (!f->block.host) {
        g_test_skip("the host has no huge pages to give");
        return false;
    }
    f->fd = g_file_open_tmp("test-mapped-ram-lazy-XXXXXX", &f->path, NULL);
    g_assert_cmpint(f->fd, >=, 0);
    f->block.name = "test.ram";
    g_assert_true(mapped_ram_layout_init(&f->block.layout, "test.ram", 100,
                                         pages * PAGE, PAGE, &error_abort));
    f->block.present = bitmap_new(pages);
    for (unsigned long i = 0; i < pages; i++) {
        if (is_present(i)) {
            set_bit(i, f->block.present);
        }
    }
    write_file(f);
    qemu_sem_init(&f->ended, 0);
    qemu_sem_init(&f->failed, 0);
    return true;
}

static void fixture_destroy(Fixture *f)
{
    mapped_ram_lazy_free(f->lazy);
    unmap_memory(f->memory, f->block.host, f->pages * PAGE);
    g_free(f->block.present);
    close(f->fd);
    g_unlink(f->path);
    g_free(f->path);
    qemu_sem_destroy(&f->ended);
    qemu_sem_destroy(&f->failed);
}

static void on_ended(void *opaque)
{
    Fixture *f = opaque;

    qemu_sem_post(&f->ended);
}

static void on_failed(void *opaque)
{
    Fixture *f = opaque;

    qemu_sem_post(&f->failed);
}

/* Large sectors are simulated by limits that require @align. */
static void new_lazy(Fixture *f, DirectIoEngine engine, unsigned align)
{
    MappedRamLazyConfig config = {
        .file = {
            .name = "image",
            .fd = f->fd,
            .direct_fd = align ? f->fd : -1,
            .direct_limits = {
                .mem_align = MAX(align, 1), .offset_align = MAX(align, 1),
                .opt_transfer = 1 * MiB,
            },
            .workers = 2,
            .engine = engine,
            .depth = f->depth,
        },
        .ended = on_ended,
        .changed = on_failed,
        .opaque = f,
    };

    f->lazy = mapped_ram_lazy_new(&config, &error_abort);
}

static void add_block(Fixture *f)
{
    g_assert_true(mapped_ram_lazy_add(f->lazy, &f->block, f->page_size,
                                      &error_abort));
}

static void check_page(Fixture *f, unsigned long page)
{
    uint64_t *expected = qemu_memalign(PAGE, PAGE);

    memset(expected, 0, PAGE);
    if (test_bit(page, f->block.present)) {
        fill_page(expected, page);
    }
    if (memcmp(f->block.host + page * PAGE, expected, PAGE)) {
        g_test_message("page %lu differs", page);
        g_assert_not_reached();
    }
    qemu_vfree(expected);
}

static void check_all(Fixture *f)
{
    for (unsigned long i = 0; i < f->pages; i++) {
        check_page(f, i);
    }
}

static uint64_t present_bytes(Fixture *f)
{
    return bitmap_count_one(f->block.present, f->pages) * PAGE;
}

static void check_counts(Fixture *f)
{
    MappedRamLazyInfo info;

    mapped_ram_lazy_info(f->lazy, &info);
    g_assert_cmpuint(info.total, ==, present_bytes(f));
    g_assert_cmpuint(info.missing, ==, 0);
    g_assert_cmpuint(info.fault_bytes + info.background_bytes, ==, info.total);
    g_assert_cmpuint(info.median_us, <=, info.p99_us);
    g_assert_cmpuint(info.p99_us, <=, info.slowest_us);
}

/* --- tests ------------------------------------------------------------ */

typedef struct Case {
    const char *name;
    Memory memory;
    DirectIoEngine engine;
    unsigned align;
    unsigned long pages;
} Case;

static const Case cases[] = {
    { "anonymous", ANONYMOUS, DIRECT_IO_ENGINE_AUTO, PAGE, 4 * 2048 },
    { "buffered", ANONYMOUS, DIRECT_IO_ENGINE_AUTO, 0, 4 * 2048 },
    { "sync", ANONYMOUS, DIRECT_IO_ENGINE_SYNC, PAGE, 4 * 2048 },
    { "sectors-16k", ANONYMOUS, DIRECT_IO_ENGINE_SYNC, 16 * KiB,
      4 * 2048 },
    { "odd-length", ANONYMOUS, DIRECT_IO_ENGINE_SYNC, 16 * KiB, 1501 },
    { "shared", SHARED, DIRECT_IO_ENGINE_SYNC, PAGE, 4 * 2048 },
    { "huge", HUGE, DIRECT_IO_ENGINE_SYNC, PAGE, 4 * 2048 },
};

/* Everything loads without faults; absent pages take no memory. */
static void test_background(const void *opaque)
{
    const Case *c = opaque;
    Fixture f;

    if (!usable() || !fixture_init(&f, c->memory, c->pages)) {
        return;
    }
    new_lazy(&f, c->engine, c->align);
    add_block(&f);
    g_assert_true(mapped_ram_lazy_start(f.lazy, &error_abort));
    qemu_sem_wait(&f.ended);
    check_counts(&f);
    g_clear_pointer(&f.lazy, mapped_ram_lazy_free);
    check_all(&f);
    fixture_destroy(&f);
}

/* No thread has more reads in flight than the depth allows. */
static void test_depth(void)
{
    MappedRamLazyInfo info;
    Fixture f;

    if (!usable() || !fixture_init(&f, ANONYMOUS, 4 * 2048)) {
        return;
    }
    f.depth = 1;
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, PAGE);
    /* One for each of the two workers */
    g_assert_cmpuint(f.lazy->threads, ==, FAULT_THREADS + 2);
    add_block(&f);
    g_assert_true(mapped_ram_lazy_start(f.lazy, &error_abort));
    qemu_sem_wait(&f.ended);
    mapped_ram_lazy_info(f.lazy, &info);
    g_assert_cmpuint(info.stats.direct.max_in_flight, ==, 1);
    check_counts(&f);
    fixture_destroy(&f);
}

/* Before the start, only pages that are touched are loaded. */
static void test_faults(const void *opaque)
{
    const Case *c = opaque;
    MappedRamLazyInfo info;
    Fixture f;

    if (!usable() || !fixture_init(&f, c->memory, c->pages)) {
        return;
    }
    new_lazy(&f, c->engine, c->align);
    add_block(&f);
    check_page(&f, 3);
    check_page(&f, 601);
    check_page(&f, 602);
    check_page(&f, c->pages - 1);
    /* A fault is counted after its page has been placed */
    do {
        mapped_ram_lazy_info(f.lazy, &info);
    } while (!info.fault_bytes ||
             info.fault_bytes + info.missing != info.total);
    g_assert_cmpuint(info.fault_bytes, <, info.total);
    g_assert_cmpuint(info.background_bytes, ==, 0);
    check_all(&f);
    g_assert_true(mapped_ram_lazy_start(f.lazy, &error_abort));
    qemu_sem_wait(&f.ended);
    check_counts(&f);
    fixture_destroy(&f);
}

static void load(Fixture *f)
{
    g_assert_true(mapped_ram_lazy_start(f->lazy, &error_abort));
    qemu_sem_wait(&f->ended);
}

static void discard(Fixture *f, unsigned long page, unsigned long pages)
{
    g_assert_cmpint(madvise(f->block.host + page * PAGE, pages * PAGE,
                            f->memory == SHARED ? MADV_REMOVE :
                            MADV_DONTNEED), ==, 0);
    bitmap_clear(f->block.present, page, pages);
}

/* A page that is discarded after it has been loaded becomes zero. */
static void test_discard(const void *opaque)
{
    const Case *c = opaque;
    MappedRamLazyInfo info;
    Fixture f;

    if (!usable() || !fixture_init(&f, c->memory, c->pages)) {
        return;
    }
    new_lazy(&f, c->engine, c->align);
    add_block(&f);
    check_page(&f, 0);
    /* Its neighbors are placed after it, and then the fault is counted */
    do {
        mapped_ram_lazy_info(f.lazy, &info);
    } while (!info.fault_bytes);
    for (int i = 0; i < 2; i++) {
        discard(&f, 0, f.page_size / PAGE);
        check_page(&f, 0);
        check_page(&f, 1);
    }
    load(&f);
    check_all(&f);
    fixture_destroy(&f);
}

typedef struct Writer {
    Fixture *f;
    unsigned seed;
    QemuThread thread;
    /* pages that this thread owns, and how often it has written each */
    unsigned long first, pages;
    uint32_t *written;
} Writer;

/*
 * Checks that page @n of the writer holds what it last wrote, or what was
 * loaded.  Returns where in the page to write.
 */
static uint64_t *check_own(Writer *w, unsigned long n)
{
    uint64_t *host = (void *)(w->f->block.host + (w->first + n) * PAGE);

    if (w->written[n]) {
        g_assert_cmpuint(host[7], ==, w->written[n]);
    } else {
        check_page(w->f, w->first + n);
    }
    return &host[7];
}

static void *writer_thread(void *opaque)
{
    Writer *w = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(w->seed);

    for (int i = 0; i < 4000; i++) {
        unsigned long n = g_rand_int_range(rand, 0, w->pages);
        uint64_t *where = check_own(w, n);

        *where = ++w->written[n];
    }
    return NULL;
}

/* Data written while RAM is loaded is kept. */
static void test_writers(void)
{
    Writer writers[4];
    Fixture f;

    if (!usable() || !fixture_init(&f, ANONYMOUS, 8 * 2048)) {
        return;
    }
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, PAGE);
    add_block(&f);
    for (int i = 0; i < ARRAY_SIZE(writers); i++) {
        Writer *w = &writers[i];

        w->f = &f;
        w->seed = i;
        w->pages = f.pages / ARRAY_SIZE(writers);
        w->first = i * w->pages;
        w->written = g_new0(uint32_t, w->pages);
        qemu_thread_create(&w->thread, "writer", writer_thread, w,
                           QEMU_THREAD_JOINABLE);
    }
    g_assert_true(mapped_ram_lazy_start(f.lazy, &error_abort));
    qemu_sem_wait(&f.ended);
    for (int i = 0; i < ARRAY_SIZE(writers); i++) {
        Writer *w = &writers[i];

        qemu_thread_join(&w->thread);
        for (unsigned long n = 0; n < w->pages; n++) {
            check_own(w, n);
        }
        g_free(w->written);
    }
    check_counts(&f);
    fixture_destroy(&f);
}

/* While the guest needs pages, less is read in the background. */
static void test_quiet(void)
{
    unsigned extra = 0;
    Fixture f;

    if (!usable() || !fixture_init(&f, ANONYMOUS, 8 * 2048)) {
        return;
    }
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, PAGE);
    add_block(&f);
    /* An hour from now */
    f.lazy->last_fault = g_get_monotonic_time() + G_TIME_SPAN_HOUR;
    g_assert_true(mapped_ram_lazy_start(f.lazy, &error_abort));
    qemu_sem_wait(&f.ended);
    for (unsigned i = 0; i < f.lazy->threads; i++) {
        if (f.lazy->thread[i].extra) {
            /* It has taken nothing to read. */
            g_assert_null(f.lazy->thread[i].slot.block);
            extra++;
        }
    }
    g_assert_cmpuint(extra, ==, 2 * (READS_QUIET - READS));
    check_counts(&f);
    check_all(&f);
    fixture_destroy(&f);
}

typedef struct Waiter {
    Fixture *f;
    QemuThread thread;
    int id;
    QemuSemaphore ready;
    /* if not 0: the kernel touches the page, to write it to this pipe */
    int pipe;
} Waiter;

static void *waiter_thread(void *opaque)
{
    Waiter *w = opaque;
    unsigned long page = w->f->pages - 2048;
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    w->id = qemu_get_thread_id();
    qemu_sem_post(&w->ready);
    if (w->pipe) {
        g_assert_cmpint(write(w->pipe, w->f->block.host + page * PAGE, 1), ==,
                        1);
    }
    check_page(w->f, page);
    return NULL;
}

/* Makes a thread touch a page in the half of the block that is cut off. */
static void waiter_start(Waiter *w, Fixture *f)
{
    w->f = f;
    qemu_sem_init(&w->ready, 0);
    qemu_thread_create(&w->thread, "waiter", waiter_thread, w,
                       QEMU_THREAD_JOINABLE);
    qemu_sem_wait(&w->ready);
}

static void waiter_join(Waiter *w)
{
    qemu_thread_join(&w->thread);
    qemu_sem_destroy(&w->ready);
}

/*
 * After an error a thread creates new queues, and a ring may be mapped where
 * another thread had one.  liburing maps rings by system calls that TSan does
 * not see, so TSan would report a race.
 */
#ifdef CONFIG_TSAN
#define ENGINE_AFTER_ERRORS DIRECT_IO_ENGINE_SYNC
#else
#define ENGINE_AFTER_ERRORS DIRECT_IO_ENGINE_AUTO
#endif

/* Adds a block whose second half is cut off the file. */
static bool add_cut_block(Fixture *f)
{
    if (!usable() || !fixture_init(f, ANONYMOUS, 4 * 2048)) {
        return false;
    }
    g_assert_cmpint(ftruncate(f->fd, f->block.layout.pages_offset +
                              f->pages * PAGE / 2), ==, 0);
    new_lazy(f, ENGINE_AFTER_ERRORS, PAGE);
    add_block(f);
    return true;
}

/* Likewise, then starts the load; the first read has failed. */
static bool start_cut_block(Fixture *f)
{
    if (!add_cut_block(f)) {
        return false;
    }
    g_assert_true(mapped_ram_lazy_start(f->lazy, &error_abort));
    qemu_sem_wait(&f->failed);
    return true;
}

static unsigned count_retries(Fixture *f)
{
    QEMU_LOCK_GUARD(&f->lazy->lock);
    return f->lazy->retries;
}

/* Waits for the end; requests a retry if there is an error. */
static void wait_ended(Fixture *f)
{
    while (qemu_sem_timedwait(&f->ended, 100) < 0) {
        Error *err = mapped_ram_lazy_error(f->lazy);

        if (err) {
            error_free(err);
            mapped_ram_lazy_retry(f->lazy);
        }
    }
}

/*
 * Makes the file whole again.  The waiter's page is read again each second,
 * and when that succeeds, so are all others, without a request to retry.
 */
static void finish_cut_block(Fixture *f, Waiter *w)
{
    unsigned retries = count_retries(f);

    write_file(f);
    waiter_join(w);
    while (count_retries(f) == retries) {
        g_usleep(1000);
    }
    /*
     * On a busy host this was before the whole file was there, or a read from
     * before that fails only now.
     */
    wait_ended(f);
    check_counts(f);
    check_all(f);
    fixture_destroy(f);
}

/* A failed read is reported, and retried on request. */
static void test_retry(void)
{
    g_autoptr(GString) text = g_string_new(NULL);
    MappedRamLazyInfo info;
    Error *err;
    Waiter w = {};
    Fixture f;

    if (!start_cut_block(&f)) {
        return;
    }
    err = mapped_ram_lazy_error(f.lazy);
    g_string_assign(text, error_get_pretty(err));
    error_free(err);
    g_assert_nonnull(strstr(text->str, "RAM block 'test.ram', pages from 0x"));
    g_assert_nonnull(strstr(text->str, "image"));

    /* A thread that needs a page waits */
    waiter_start(&w, &f);
    /* A retry changes nothing */
    mapped_ram_lazy_retry(f.lazy);
    qemu_sem_wait(&f.failed);
    mapped_ram_lazy_info(f.lazy, &info);
    g_assert_cmpuint(info.missing, >, 0);

    write_file(&f);
    mapped_ram_lazy_retry(f.lazy);
    /* A read from before may fail only now */
    wait_ended(&f);
    waiter_join(&w);
    g_assert_null(mapped_ram_lazy_error(f.lazy));
    check_counts(&f);
    check_all(&f);
    fixture_destroy(&f);
}

static uint64_t left_out;

static bool leave_out(uint64_t thread)
{
    return thread == left_out;
}

/* Waiting threads are known, and continue without a request to retry. */
static void test_waits(void)
{
    Fixture f;
    Waiter w = {};

    if (!start_cut_block(&f)) {
        return;
    }
    waiter_start(&w, &f);
    while (!mapped_ram_lazy_waits(f.lazy, w.id)) {
        g_usleep(1000);
    }
    g_assert_false(mapped_ram_lazy_waits(f.lazy, qemu_get_thread_id()));
    g_assert_true(mapped_ram_lazy_others_wait(f.lazy, leave_out));
    left_out = w.id;
    g_assert_false(mapped_ram_lazy_others_wait(f.lazy, leave_out));

    finish_cut_block(&f, &w);
}

static void *touch_first(void *opaque)
{
    Fixture *f = opaque;

    return GUINT_TO_POINTER(qatomic_read(f->block.host));
}

/* So is one whose fault nobody has received, as all fault threads are busy. */
static void test_not_received(void)
{
    QemuThread thread;
    Fixture f;

    if (!usable() || !fixture_init(&f, ANONYMOUS, 2048)) {
        return;
    }
    new_lazy(&f, DIRECT_IO_ENGINE_SYNC, PAGE);
    add_block(&f);
    WITH_QEMU_LOCK_GUARD(&f.lazy->lock) {
        f.lazy->stop = true;
    }
    event_notifier_set(&f.lazy->notifier);
    qemu_sem_wait(&f.ended);
    left_out = 0;
    g_assert_false(mapped_ram_lazy_others_wait(f.lazy, leave_out));

    qemu_thread_create(&thread, "toucher", touch_first, &f,
                       QEMU_THREAD_JOINABLE);
    while (!mapped_ram_uffd_pending(f.lazy->uffd)) {
        g_usleep(1000);
    }
    g_assert_true(mapped_ram_lazy_others_wait(f.lazy, leave_out));
    g_clear_pointer(&f.lazy, mapped_ram_lazy_free);
    qemu_thread_join(&thread);
    fixture_destroy(&f);
}

/* Returns whether a thread with this name that is not ours counts. */
static bool counts(const char *name)
{
    int named[2];
    char byte;
    bool own;
    pid_t pid;

    g_assert_cmpint(pipe(named), ==, 0);
    pid = fork();
    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        prctl(PR_SET_NAME, name);
        while (write(named[1], "", 1) == 1) {
            pause();
        }
    }
    g_assert_cmpint(read(named[0], &byte, 1), ==, 1);
    own = mapped_ram_uffd_own_thread(pid);
    kill(pid, SIGKILL);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
    close(named[0]);
    close(named[1]);
    return own;
}

/*
 * A thread of another process, like one of the kernel, does not count, unless
 * it is one of vhost.
 */
static void test_own_thread(void)
{
    g_assert_true(mapped_ram_uffd_own_thread(qemu_get_thread_id()));
    g_assert_false(mapped_ram_uffd_own_thread(getppid()));
    g_assert_false(mapped_ram_uffd_own_thread(0));
    g_assert_true(counts("vhost-1234"));
    g_assert_false(counts("kworker/0:1"));
}

static void no_op(int signal)
{
}

static uint64_t count_requests(Fixture *f)
{
    MappedRamLazyInfo info;

    mapped_ram_lazy_info(f->lazy, &info);
    return info.stats.direct.requests + info.stats.buffered.requests;
}

/*
 * A system call with a pending signal touches a missing page again and again.
 * That is one fault, whose page is not read more often for it.
 */
static void test_signal(void)
{
    struct sigaction action = { .sa_handler = no_op };
    uint64_t requests, start, seconds;
    int fds[2];
    Fixture f;
    Waiter w = {};

    if (!start_cut_block(&f)) {
        return;
    }
    sigaction(SIGUSR1, &action, NULL);
    g_assert_cmpint(pipe(fds), ==, 0);
    w.pipe = fds[1];
    waiter_start(&w, &f);
    while (!mapped_ram_lazy_waits(f.lazy, w.id)) {
        g_usleep(1000);
    }
    pthread_kill(w.thread.thread, SIGUSR1);
    start = g_get_monotonic_time();
    requests = count_requests(&f);
    while (g_get_monotonic_time() - start < G_USEC_PER_SEC / 2) {
        g_assert_true(mapped_ram_lazy_waits(f.lazy, w.id));
        g_usleep(1000);
    }
    /* The page is read again each second, not thousands of times. */
    requests = count_requests(&f) - requests;
    seconds = (g_get_monotonic_time() - start) / G_USEC_PER_SEC + 1;
    g_assert_cmpuint(requests, <=, 100 * seconds);

    finish_cut_block(&f, &w);
    close(fds[0]);
    close(fds[1]);
}

/* Before the start a failure is final, and no thread is left waiting. */
static void test_fail_early(void)
{
    Error *err = NULL;
    Fixture f;

    if (!add_cut_block(&f)) {
        return;
    }
    g_assert_cmpint(qatomic_read(f.block.host + (f.pages - 2048) * PAGE), ==,
                    0);
    g_assert_false(mapped_ram_lazy_start(f.lazy, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "RAM block 'test.ram'"));
    error_free(err);
    fixture_destroy(&f);
}

/*
 * Replaces the memory by that of a file on a tmpfs of its own, and fills the
 * tmpfs.  Returns the descriptor of what fills it, or -1 if the process may not
 * mount one.
 */
static int use_full_tmpfs(Fixture *f)
{
    g_autofree char *dir = g_dir_make_tmp(NULL, NULL);
    g_autofree char *ram = g_build_filename(dir, "ram", NULL);
    g_autofree char *other = g_build_filename(dir, "other", NULL);
    size_t len = f->pages * PAGE;
    int fd;

    /* Not visible outside of this process */
    if (unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("full", dir, "tmpfs", 0, "size=4m") < 0) {
        g_rmdir(dir);
        return -1;
    }
    fd = g_open(ram, O_RDWR | O_CREAT, 0600);
    g_assert_cmpint(ftruncate(fd, len), ==, 0);
    g_assert_true(mmap(f->block.host, len, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_FIXED, fd, 0) == f->block.host);
    close(fd);
    fd = g_open(other, O_RDWR | O_CREAT, 0600);
    while (write(fd, dir, 1) == 1) {
        g_assert_cmpint(lseek(fd, PAGE - 1, SEEK_CUR), >, 0);
    }
    g_assert_cmpint(umount2(dir, MNT_DETACH), ==, 0);
    g_rmdir(dir);
    return fd;
}

/* For a while there may not even be memory for zeros. */
static void test_no_memory(void)
{
    Error *err = NULL;
    Waiter w = {};
    Fixture f;
    int fd;

    if (!in_subprocess()) {
        return;
    }
    g_assert_true(fixture_init(&f, SHARED, 2 * 2048));
    fd = use_full_tmpfs(&f);
    if (fd < 0) {
        fixture_destroy(&f);
        return;
    }
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, PAGE);
    add_block(&f);
    waiter_start(&w, &f);
    while (!mapped_ram_lazy_waits(f.lazy, w.id)) {
        g_usleep(1000);
    }
    g_assert_cmpint(ftruncate(fd, 0), ==, 0);
    waiter_join(&w);
    g_assert_false(mapped_ram_lazy_start(f.lazy, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "place a page"));
    error_free(err);
    fixture_destroy(&f);
    close(fd);
}

/* The load may be abandoned at any time. */
static void test_free_early(void)
{
    Fixture f;

    if (!usable() || !fixture_init(&f, ANONYMOUS, 8 * 2048)) {
        return;
    }
    for (int i = 0; i < 20; i++) {
        new_lazy(&f, DIRECT_IO_ENGINE_AUTO, PAGE);
        add_block(&f);
        check_page(&f, 5);
        if (i % 2) {
            g_assert_true(mapped_ram_lazy_start(f.lazy, &error_abort));
            g_usleep(i * 100);
        }
        g_clear_pointer(&f.lazy, mapped_ram_lazy_free);
        madvise(f.block.host, f.pages * PAGE, MADV_DONTNEED);
    }
    fixture_destroy(&f);
}

/* With no page in the file, or no block at all, the load ends at once. */
static void test_empty(void)
{
    Fixture f;

    if (!usable() || !fixture_init(&f, ANONYMOUS, 2048)) {
        return;
    }
    bitmap_zero(f.block.present, f.pages);
    for (int i = 0; i < 2; i++) {
        new_lazy(&f, DIRECT_IO_ENGINE_AUTO, PAGE);
        if (i) {
            add_block(&f);
        }
        g_assert_true(mapped_ram_lazy_start(f.lazy, &error_abort));
        qemu_sem_wait(&f.ended);
        check_all(&f);
        g_clear_pointer(&f.lazy, mapped_ram_lazy_free);
    }
    fixture_destroy(&f);
}

typedef struct Toucher {
    QemuThread thread;
    uint8_t *host;
    QemuSemaphore go, done;
    bool quit;
} Toucher;

static void *toucher_thread(void *opaque)
{
    Toucher *t = opaque;

    for (;;) {
        qemu_sem_wait(&t->go);
        if (t->quit) {
            return NULL;
        }
        for (int i = 0; i < TOUCHED; i++) {
            qatomic_set(&t->host[i * PAGE], 1);
        }
        qemu_sem_post(&t->done);
    }
}

/* Touches memory while it is unregistered, at another moment each time. */
static void unregister_touched(int fd, Toucher *touchers, int n, int delay)
{
    uint8_t *host = touchers[0].host;
    size_t len = n * TOUCHED * PAGE;
    bool can_zero;

    madvise(host, len, MADV_DONTNEED);
    g_assert_true(mapped_ram_uffd_register(fd, host, len, &can_zero,
                                           &error_abort));
    for (int i = 0; i < n; i++) {
        qemu_sem_post(&touchers[i].go);
    }
    for (int i = 0; i < delay; i++) {
        cpu_relax();
    }
    mapped_ram_uffd_unregister(fd, host, len);
    for (int i = 0; i < n; i++) {
        qemu_sem_wait(&touchers[i].done);
    }
}

/* No thread is left waiting for memory that is no longer registered. */
static void test_unregister(void)
{
    Toucher touchers[4] = {};
    uint8_t *host;
    int fd;

    if (!usable()) {
        return;
    }
    fd = mapped_ram_uffd_open(&error_abort);
    host = map_memory(ANONYMOUS, ARRAY_SIZE(touchers) * TOUCHED * PAGE);
    for (int i = 0; i < ARRAY_SIZE(touchers); i++) {
        Toucher *t = &touchers[i];

        t->host = host + i * TOUCHED * PAGE;
        qemu_sem_init(&t->go, 0);
        qemu_sem_init(&t->done, 0);
        qemu_thread_create(&t->thread, "toucher", toucher_thread, t,
                           QEMU_THREAD_JOINABLE);
    }
    for (int i = 0; i < 5000; i++) {
        unregister_touched(fd, touchers, ARRAY_SIZE(touchers), i % 64);
    }
    for (int i = 0; i < ARRAY_SIZE(touchers); i++) {
        Toucher *t = &touchers[i];

        t->quit = true;
        qemu_sem_post(&t->go);
        qemu_thread_join(&t->thread);
        qemu_sem_destroy(&t->go);
        qemu_sem_destroy(&t->done);
    }
    unmap_memory(ANONYMOUS, host, ARRAY_SIZE(touchers) * TOUCHED * PAGE);
    close(fd);
}

/* Memory that userfaultfd does not support is refused and left as it was. */
static void test_refused(void)
{
    g_autofree char *path = NULL;
    MappedRamBlock block;
    Error *err = NULL;
    Fixture f;
    int fd;

    if (!usable() || !fixture_init(&f, ANONYMOUS, 2048)) {
        return;
    }
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, PAGE);
    /* The build directory is on a disk; if it is not, this is skipped. */
    path = g_strdup("./test-mapped-ram-lazy-XXXXXX");
    fd = g_mkstemp(path);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, f.pages * PAGE), ==, 0);
    block = f.block;
    block.host = mmap(NULL, f.pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
                      fd, 0);
    g_assert_true(block.host != MAP_FAILED);
    if (mapped_ram_lazy_add(f.lazy, &block, PAGE, &err)) {
        g_test_skip("files here can be used with userfaultfd");
    } else {
        g_assert_nonnull(strstr(error_get_pretty(err), "RAM block 'test.ram'"));
        error_free(err);
        block.host[0] = 1;
    }
    /* A page larger than one read is refused, too */
    err = NULL;
    g_assert_false(mapped_ram_lazy_add(f.lazy, &f.block, 1 * GiB, &err));
    error_free(err);
    g_clear_pointer(&f.lazy, mapped_ram_lazy_free);
    munmap(block.host, f.pages * PAGE);
    close(fd);
    g_unlink(path);
    fixture_destroy(&f);
}

/* --- moving ----------------------------------------------------------- */

#define HUGE_PAGES (MAPPED_RAM_LAZY_EXTENT / PAGE)

/* Two huge pages, the first one registered, and the second one to be moved. */
static uint8_t *map_pair(int fd)
{
    uint8_t *host = map_memory(ANONYMOUS, 2 * MAPPED_RAM_LAZY_EXTENT);
    bool can_zero;

    g_assert_nonnull(host);
    g_assert_true(mapped_ram_uffd_register(fd, host, MAPPED_RAM_LAZY_EXTENT,
                                           &can_zero, &error_abort));
    memset(host + MAPPED_RAM_LAZY_EXTENT, 1, MAPPED_RAM_LAZY_EXTENT);
    return host;
}

static void unmap_pair(int fd, uint8_t *host)
{
    mapped_ram_uffd_unregister(fd, host, MAPPED_RAM_LAZY_EXTENT);
    unmap_memory(ANONYMOUS, host, 2 * MAPPED_RAM_LAZY_EXTENT);
}

/* Returns whether 2 MiB of guest RAM can be moved here; skips if not. */
static bool can_move(void)
{
    int fd = usable() ? mapped_ram_uffd_open(&error_abort) : -1;
    uint8_t *host;
    ssize_t ret;

    if (fd < 0) {
        return false;
    }
    host = map_pair(fd);
    ret = mapped_ram_uffd_move(fd, host, host + MAPPED_RAM_LAZY_EXTENT,
                               MAPPED_RAM_LAZY_EXTENT);
    if (ret < 0 || !QEMU_PTR_IS_ALIGNED(host, MAPPED_RAM_LAZY_EXTENT)) {
        g_test_skip("the kernel cannot move pages, or RAM is not aligned");
        ret = -1;
    } else {
        g_assert_cmpint(ret, ==, MAPPED_RAM_LAZY_EXTENT);
        g_assert_cmpint(host[0], ==, 1);
        g_assert_cmpint(host[MAPPED_RAM_LAZY_EXTENT - 1], ==, 1);
    }
    unmap_pair(fd, host);
    close(fd);
    return ret >= 0;
}

/* A page that is present stays, and ends the move. */
static void test_move_present(void)
{
    const size_t at = 10 * PAGE;
    uint8_t *host, *buf;
    int fd;

    if (!can_move()) {
        return;
    }
    fd = mapped_ram_uffd_open(&error_abort);
    host = map_pair(fd);
    buf = host + MAPPED_RAM_LAZY_EXTENT;
    g_assert_cmpint(mapped_ram_uffd_copy(fd, host + at, buf, PAGE), ==, PAGE);
    host[at] = 2;
    g_assert_cmpint(mapped_ram_uffd_move(fd, host, buf, MAPPED_RAM_LAZY_EXTENT),
                    ==, at);
    g_assert_cmpint(mapped_ram_uffd_move(fd, host + at, buf + at,
                                         MAPPED_RAM_LAZY_EXTENT - at),
                    ==, -EEXIST);
    g_assert_cmpint(host[0], ==, 1);
    g_assert_cmpint(host[at], ==, 2);
    /* Pages that have not been moved are still in the buffer. */
    g_assert_cmpint(buf[0], ==, 0);
    g_assert_cmpint(buf[at], ==, 1);
    unmap_pair(fd, host);
    close(fd);
}

/* Creates a block that is entirely in the file */
static bool init_whole(Fixture *f, Memory memory, unsigned long pages)
{
    if (!fixture_init(f, memory, pages)) {
        return false;
    }
    bitmap_fill(f->block.present, pages);
    write_file(f);
    return true;
}

/*
 * Checks what was loaded, and that some pages were moved, but at most @most.
 * How many depends on the costs.  If @most is ULONG_MAX, none need be: pages
 * read by direct I/O may stay pinned for a while, and are copied then.
 */
static void check_moved(Fixture *f, unsigned long most)
{
    MappedRamLazyInfo info;

    mapped_ram_lazy_info(f->lazy, &info);
    if (most != ULONG_MAX) {
        g_assert_cmpuint(info.moved_bytes, <=, most * PAGE);
        g_assert(info.moved_bytes > 0 || most == 0);
    }
    g_assert_cmpuint(info.moved_bytes, <=, info.background_bytes);
    check_counts(f);
    g_clear_pointer(&f->lazy, mapped_ram_lazy_free);
    check_all(f);
    fixture_destroy(f);
}

/* Whole extents are moved, except for the end, which is less than 2 MiB. */
static void test_move(const void *opaque)
{
    unsigned align = GPOINTER_TO_UINT(opaque);
    Fixture f;

    if (!can_move() || !init_whole(&f, ANONYMOUS, 8 * HUGE_PAGES + 100)) {
        return;
    }
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, align);
    add_block(&f);
    load(&f);
    check_moved(&f, align ? ULONG_MAX : 8 * HUGE_PAGES);
}

/* An extent with a page that was touched, or is not in the file, is copied. */
static void test_move_touched(void)
{
    MappedRamLazyInfo info;
    uint64_t *page;
    Fixture f;

    if (!can_move() || !init_whole(&f, ANONYMOUS, 8 * HUGE_PAGES)) {
        return;
    }
    clear_bit(5 * HUGE_PAGES + 7, f.block.present);
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, 0);
    add_block(&f);
    check_page(&f, 2 * HUGE_PAGES + 300);
    /* Its neighbours are placed after it, and then the fault is counted */
    do {
        mapped_ram_lazy_info(f.lazy, &info);
    } while (!info.fault_bytes);
    page = (void *)(f.block.host + (2 * HUGE_PAGES + 301) * PAGE);
    page[0]++;
    load(&f);
    /* The guest's data is still there. */
    page[0]--;
    check_moved(&f, 6 * HUGE_PAGES);
}

/* Both ways are tried, moving first; then the cheaper one is used. */
static void test_move_costs(void)
{
    LazyCosts costs = {};
    int copies = 0;

    g_assert_true(lazy_should_move(&costs));
    costs.buffer_us = 100;
    g_assert_false(lazy_should_move(&costs));
    costs.copy_us = 200;
    for (int i = 2; i < 1024; i++) {
        copies += !lazy_should_move(&costs);
    }
    /* 2, 4, 8 ... 512 */
    g_assert_cmpint(copies, ==, 9);
    costs.buffer_us = 300;
    g_assert_true(lazy_should_move(&costs));
    for (int i = 1025; i < 2048; i++) {
        g_assert_false(lazy_should_move(&costs));
    }
    g_assert_true(lazy_should_move(&costs));
}

/* Memory that is not private, or has a NUMA policy, is not moved. */
static void test_move_other(void)
{
    Fixture f;

    if (!usable() || !init_whole(&f, SHARED, 4 * HUGE_PAGES)) {
        return;
    }
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, 0);
    add_block(&f);
    load(&f);
    check_moved(&f, 0);
    if (!init_whole(&f, ANONYMOUS, 4 * HUGE_PAGES)) {
        return;
    }
    if (syscall(__NR_mbind, f.block.host, f.pages * PAGE, MPOL_PREFERRED, NULL,
                0, 0) < 0) {
        g_test_skip("this host has no NUMA policies");
        fixture_destroy(&f);
        return;
    }
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, 0);
    add_block(&f);
    load(&f);
    check_moved(&f, 0);
}

/* Makes moving fail with @err in this process from now on. */
static bool forbid_move(int err)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_ioctl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 offsetof(struct seccomp_data, args[1]) + 4 * HOST_BIG_ENDIAN),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IOCTL_MOVE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { ARRAY_SIZE(code), code };

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* If the kernel cannot move pages, or not now, everything is copied. */
static void test_move_refused(const void *opaque)
{
    int err = GPOINTER_TO_INT(opaque);
    Fixture f;

    if (!in_subprocess()) {
        return;
    }
    if (!forbid_move(err) ||
        !init_whole(&f, ANONYMOUS, 8 * HUGE_PAGES)) {
        return;
    }
    new_lazy(&f, DIRECT_IO_ENGINE_AUTO, 0);
    add_block(&f);
    load(&f);
    check_moved(&f, 0);
}

#endif /* CONFIG_LINUX */

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#ifdef CONFIG_LINUX
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *background =
            g_strdup_printf("/mapped-ram-lazy/background/%s", cases[i].name);
        g_autofree char *faults =
            g_strdup_printf("/mapped-ram-lazy/faults/%s", cases[i].name);
        g_autofree char *discarded =
            g_strdup_printf("/mapped-ram-lazy/discard/%s", cases[i].name);

        g_test_add_data_func(background, &cases[i], test_background);
        g_test_add_data_func(faults, &cases[i], test_faults);
        g_test_add_data_func(discarded, &cases[i], test_discard);
    }
    g_test_add_func("/mapped-ram-lazy/depth", test_depth);
    g_test_add_func("/mapped-ram-lazy/quiet", test_quiet);
    g_test_add_func("/mapped-ram-lazy/writers", test_writers);
    g_test_add_func("/mapped-ram-lazy/retry", test_retry);
    g_test_add_func("/mapped-ram-lazy/waits", test_waits);
    g_test_add_func("/mapped-ram-lazy/not-received", test_not_received);
    g_test_add_func("/mapped-ram-lazy/own-thread", test_own_thread);
    g_test_add_func("/mapped-ram-lazy/signal", test_signal);
    g_test_add_func("/mapped-ram-lazy/fail-early", test_fail_early);
    g_test_add_func("/mapped-ram-lazy/no-memory", test_no_memory);
    g_test_add_func("/mapped-ram-lazy/free-early", test_free_early);
    g_test_add_func("/mapped-ram-lazy/empty", test_empty);
    g_test_add_func("/mapped-ram-lazy/unregister", test_unregister);
    g_test_add_func("/mapped-ram-lazy/refused", test_refused);
    g_test_add_func("/mapped-ram-lazy/move/present", test_move_present);
    g_test_add_data_func("/mapped-ram-lazy/move/cached", NULL, test_move);
    g_test_add_data_func("/mapped-ram-lazy/move/direct",
                         GUINT_TO_POINTER(PAGE), test_move);
    g_test_add_func("/mapped-ram-lazy/move/costs", test_move_costs);
    g_test_add_func("/mapped-ram-lazy/move/touched", test_move_touched);
    g_test_add_func("/mapped-ram-lazy/move/other-memory", test_move_other);
    /* The errors of a kernel that is too old, and for pinned pages */
    g_test_add_data_func("/mapped-ram-lazy/move/refused",
                         GINT_TO_POINTER(EINVAL), test_move_refused);
    g_test_add_data_func("/mapped-ram-lazy/move/busy", GINT_TO_POINTER(EBUSY),
                         test_move_refused);
#endif
    return g_test_run();
}
