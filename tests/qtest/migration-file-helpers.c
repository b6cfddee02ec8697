/*
 * Helpers for tests that save guests to files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See migration-file-helpers.h.
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include <sys/vfs.h>
#include "migration-file-helpers.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include FILE_BASE_BOOT_BLOCK

#define FIRMWARE_SIZE (64 * KiB)
#define TMPFS_MAGIC 0x01021994

static char *test_dir;

/* Starts the boot block as the BIOS would. */
static void make_firmware(const char *path)
{
    /* At F000:0000.  Copies the block from F000:0100 to 0000:7C00. */
    static const uint8_t start[] = {
        0xfa,                           /* cli */
        0xfc,                           /* cld */
        0x8c, 0xc8,                     /* mov  ax, cs */
        0x8e, 0xd8,                     /* mov  ds, ax */
        0x31, 0xc0,                     /* xor  ax, ax */
        0x8e, 0xc0,                     /* mov  es, ax */
        0xbe, 0x00, 0x01,               /* mov  si, 0x100 */
        0xbf, 0x00, 0x7c,               /* mov  di, 0x7c00 */
        0xb9, 0x00, 0x01,               /* mov  cx, 256 */
        0xf3, 0xa5,                     /* rep  movsw */
        0x8e, 0xd8,                     /* mov  ds, ax */
        0xea, 0x00, 0x7c, 0x00, 0x00,   /* jmp  0000:7C00 */
    };
    /* Where the processor starts */
    static const uint8_t reset[] = { 0xea, 0x00, 0x00, 0x00, 0xf0 };
    /* cmp eax, X86_TEST_MEM_END */
    static const uint8_t compare[] = { 0x3d, 0x00, 0x00, 0x40, 0x06 };
    g_autofree uint8_t *rom = g_malloc0(FIRMWARE_SIZE);
    uint8_t *end;

    memcpy(rom, start, sizeof(start));
    memcpy(rom + 0x100, x86_bootsect, sizeof(x86_bootsect));
    memcpy(rom + FIRMWARE_SIZE - 16, reset, sizeof(reset));

    end = memmem(rom, FIRMWARE_SIZE, compare, sizeof(compare));
    g_assert_nonnull(end);
    /* On some bases a second loop covers the same memory. */
    while (end) {
        stl_le_p(end + 1, FILE_VM_BUSY_END);
        end = memmem(rom, FIRMWARE_SIZE, compare, sizeof(compare));
    }

    g_assert_true(g_file_set_contents(path, (char *)rom, FIRMWARE_SIZE, NULL));
}

char *file_test_path(const char *name)
{
    return g_build_filename(test_dir, name, NULL);
}

void file_test_init(void)
{
    const char *parent = g_getenv("QDIO_TEST_DIR");
    g_autofree char *firmware = NULL;

    if (parent) {
        test_dir = g_strdup_printf("%s/migration-file-XXXXXX", parent);
        g_assert_nonnull(mkdtemp(test_dir));
    } else {
        test_dir = g_dir_make_tmp("migration-file-XXXXXX", NULL);
        g_assert_nonnull(test_dir);
    }
    firmware = file_test_path("firmware");
    make_firmware(firmware);
}

void file_test_cleanup(void)
{
    GDir *dir = g_dir_open(test_dir, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = file_test_path(name);

        unlink(path);
    }
    g_clear_pointer(&dir, g_dir_close);
    rmdir(test_dir);
    g_free(test_dir);
}

bool file_test_direct(void)
{
    g_autofree char *path = file_test_path("probe");
    int fd = open(path, O_CREAT | O_WRONLY | O_DIRECT, 0600);

    if (fd < 0) {
        g_assert_cmpint(errno, ==, EINVAL);
    } else {
        close(fd);
    }
    unlink(path);
    return fd >= 0;
}

bool file_test_in_ram(void)
{
    struct statfs st;

    g_assert_cmpint(statfs(test_dir, &st), ==, 0);
    return st.f_type == TMPFS_MAGIC;
}

static pid_t read_pid(const char *path)
{
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return atoi(text);
}

FileVM *file_vm_start(const char *name, const char *extra)
{
    FileVM *vm = g_new0(FileVM, 1);
    g_autofree char *firmware = file_test_path("firmware");
    g_autofree char *pidfile = g_strdup_printf("%s/%s.pid", test_dir, name);

    vm->log = g_strdup_printf("%s/%s.log", test_dir, name);
    vm->qts = qtest_initf("-accel kvm -accel tcg -machine pc -nodefaults "
                          "-vga none -m %dM -bios %s -pidfile %s -S %s 2>%s",
                          (int)(FILE_VM_RAM / MiB), firmware, pidfile,
                          extra ?: "", vm->log);
    vm->pid = read_pid(pidfile);
    return vm;
}

void file_vm_cont(FileVM *vm)
{
    file_vm_do(vm, "{ 'execute': 'cont' }");
    file_vm_check_runs(vm);
}

FileVM *file_vm_start_source(void)
{
    FileVM *vm = file_vm_start("source", NULL);

    file_vm_fill(vm);
    file_vm_cont(vm);
    return vm;
}

FileVM *file_vm_start_target(const char *extra)
{
    g_autofree char *args = g_strdup_printf("-incoming defer %s", extra ?: "");

    return file_vm_start("target", args);
}

static void vm_free(FileVM *vm)
{
    qtest_quit(vm->qts);
    g_free(vm->log);
    g_free(vm);
}

void file_vm_stop(FileVM *vm)
{
    /* A status other than 0, or a signal, fails the test. */
    g_assert_true(qtest_probe_child(vm->qts));
    vm_free(vm);
}

char *file_vm_log(FileVM *vm)
{
    char *text = NULL;

    g_assert_true(g_file_get_contents(vm->log, &text, NULL, NULL));
    return text;
}

char *file_vm_stop_failed(FileVM *vm)
{
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;
    char *log;

    qtest_set_expected_status(vm->qts, EXIT_FAILURE);
    while (qtest_probe_child(vm->qts)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
    log = file_vm_log(vm);
    vm_free(vm);
    return log;
}

/*
 * Gives each page a unique value, so that a misplaced page is detected.  The
 * value is not in the first byte, in which the guest counts.
 */
static void fill_page(FileVM *vm, uint64_t addr)
{
    qtest_writeq(vm->qts, addr + 8, addr ^ 0x5ca1ab1e0ddba11ULL);
}

void file_vm_fill(FileVM *vm)
{
    uint64_t addr;

    /* The guest's counters wrap at 0, so its other pages may become zero. */
    qtest_memset(vm->qts, FILE_VM_BUSY_START, 0x33, FILE_VM_BUSY_HALF -
                 FILE_VM_BUSY_START);
    for (addr = FILE_VM_BUSY_START; addr < FILE_VM_BUSY_END;
         addr += 8 * FILE_VM_PAGE) {
        fill_page(vm, addr);
    }
    for (addr = FILE_VM_RUN; addr < FILE_VM_SCATTERED; addr += FILE_VM_PAGE) {
        fill_page(vm, addr);
    }
    /* Gaps of 1, 2, 3... pages, then again */
    for (unsigned gap = 1; addr < FILE_VM_ZERO;
         addr += (1 + gap) * FILE_VM_PAGE, gap = gap % 80 + 1) {
        fill_page(vm, addr);
    }
    fill_page(vm, FILE_VM_RAM - FILE_VM_PAGE);
}

static QDict *answer(QDict *response)
{
    QDict *ret;

    if (!qdict_haskey(response, "return")) {
        g_printerr("unexpected error: %s\n",
                   qdict_get_str(qdict_get_qdict(response, "error"), "desc"));
        g_assert_not_reached();
    }
    ret = qdict_get_qdict(response, "return");
    /* query-commands and similar commands do not return a dictionary. */
    if (ret) {
        qobject_ref(ret);
    }
    qobject_unref(response);
    return ret;
}

static char *failure(QDict *response)
{
    char *desc = NULL;

    if (qdict_haskey(response, "error")) {
        desc = g_strdup(qdict_get_str(qdict_get_qdict(response, "error"),
                                      "desc"));
    }
    qobject_unref(response);
    return desc;
}

QDict *file_vm_ask(FileVM *vm, const char *fmt, ...)
{
    va_list ap;
    QDict *response;

    va_start(ap, fmt);
    response = qtest_vqmp(vm->qts, fmt, ap);
    va_end(ap);
    return answer(response);
}

void file_vm_do(FileVM *vm, const char *fmt, ...)
{
    va_list ap;
    QDict *response;

    va_start(ap, fmt);
    response = qtest_vqmp(vm->qts, fmt, ap);
    va_end(ap);
    qobject_unref(answer(response));
}

char *file_vm_try(FileVM *vm, const char *fmt, ...)
{
    va_list ap;
    QDict *response;

    va_start(ap, fmt);
    response = qtest_vqmp(vm->qts, fmt, ap);
    va_end(ap);
    return failure(response);
}

char *file_vm_refuse(FileVM *vm, const char *fmt, ...)
{
    va_list ap;
    QDict *response;
    char *desc;

    va_start(ap, fmt);
    response = qtest_vqmp(vm->qts, fmt, ap);
    va_end(ap);
    desc = failure(response);
    g_assert_nonnull(desc);
    return desc;
}

void file_vm_set_cap(FileVM *vm, const char *name, bool on)
{
    file_vm_do(vm, "{ 'execute': 'migrate-set-capabilities', 'arguments': {"
               " 'capabilities': [ { 'capability': %s, 'state': %i } ] } }",
               name, on);
}

void file_vm_set_int(FileVM *vm, const char *parameter, int64_t value)
{
    QDict *args = qdict_new();

    qdict_put_int(args, parameter, value);
    file_vm_do(vm, "{ 'execute': 'migrate-set-parameters',"
               " 'arguments': %p }", args);
}

void file_vm_set_bool(FileVM *vm, const char *parameter, bool value)
{
    QDict *args = qdict_new();

    qdict_put_bool(args, parameter, value);
    file_vm_do(vm, "{ 'execute': 'migrate-set-parameters',"
               " 'arguments': %p }", args);
}

void file_vm_set_way(FileVM *vm, const FileWay *way)
{
    file_vm_set_cap(vm, "mapped-ram", way->mapped);
    file_vm_set_cap(vm, "multifd", way->channels > 0);
    if (way->channels) {
        file_vm_set_int(vm, "multifd-channels", way->channels);
    }
    file_vm_set_bool(vm, "direct-io", way->direct);
    file_vm_set_int(vm, "max-bandwidth", 0);
}

void file_vm_check_runs(FileVM *vm)
{
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;
    uint8_t first = qtest_readb(vm->qts, FILE_VM_BUSY_START);

    while (qtest_readb(vm->qts, FILE_VM_BUSY_START) == first) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

void file_vm_add_fd(FileVM *vm, int id, const char *path, int flags)
{
    int fd = open(path, flags, 0600);
    QDict *response;

    g_assert_cmpint(fd, >=, 0);
    response = qtest_qmp_fds(vm->qts, &fd, 1, "{ 'execute': 'add-fd',"
                             " 'arguments': { 'fdset-id': %d } }", id);
    qobject_unref(answer(response));
    close(fd);
}

void file_vm_pass_fd(FileVM *vm, const char *name, int fd)
{
    g_assert_cmpint(fd, >=, 0);
    qobject_unref(answer(qtest_qmp_fds(vm->qts, &fd, 1, "{ 'execute':"
                                       " 'getfd', 'arguments': {"
                                       " 'fdname': %s } }", name)));
    close(fd);
}

char *file_vm_uri(FileVM *vm, const FileTarget *target, bool direct, bool save)
{
    g_autofree char *path = g_strdup(target->path);
    int access = save ? O_WRONLY | O_CREAT : O_RDONLY;

    if (target->fdset) {
        /* The set may not exist. */
        g_free(file_vm_try(vm, "{ 'execute': 'remove-fd',"
                           " 'arguments': { 'fdset-id': 1 } }"));
        file_vm_add_fd(vm, 1, target->path, access);
        if (direct) {
            file_vm_add_fd(vm, 1, target->path, access | O_DIRECT);
        }
        g_free(path);
        path = g_strdup("/dev/fdset/1");
    }
    return target->offset ? g_strdup_printf("file:%s,offset=%" PRIu64, path,
                                            target->offset) :
                            g_strdup_printf("file:%s", path);
}

char *file_vm_status(FileVM *vm)
{
    QDict *info = file_vm_ask(vm, "{ 'execute': 'query-migrate' }");
    char *status = g_strdup(qdict_get_try_str(info, "status") ?: "none");

    qobject_unref(info);
    return status;
}

QDict *file_vm_direct_io(FileVM *vm)
{
    QDict *info = file_vm_ask(vm, "{ 'execute': 'query-migrate' }");
    QDict *direct = qdict_get_qdict(info, "direct-io");

    if (direct) {
        qobject_ref(direct);
    }
    qobject_unref(info);
    return direct;
}

void file_vm_check_hmp(FileVM *vm, const char *command, const char *expected)
{
    g_autofree char *text = qtest_hmp(vm->qts, "%s", command);

    if (!strstr(text, expected)) {
        g_printerr("'%s' is not in what '%s' prints: %s\n", expected, command,
                   text);
        g_assert_not_reached();
    }
}

/* Returns false if the migration has not ended yet. */
static bool reached(FileVM *vm, const char *wanted)
{
    QDict *info = file_vm_ask(vm, "{ 'execute': 'query-migrate' }");
    const char *status = qdict_get_try_str(info, "status") ?: "none";
    bool is = g_str_equal(status, wanted);

    if (!is && (g_str_equal(status, "failed") ||
                g_str_equal(status, "cancelled") ||
                g_str_equal(status, "completed"))) {
        g_printerr("migration: %s instead of %s: %s\n", status, wanted,
                   qdict_get_try_str(info, "error-desc") ?: "no reason");
        g_assert_not_reached();
    }
    qobject_unref(info);
    return is;
}

void file_vm_wait(FileVM *vm, const char *status)
{
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;

    while (!reached(vm, status)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

void file_vm_wait_syncs(FileVM *vm, int64_t count)
{
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US;
    int64_t now = 0;

    while (now < count) {
        QDict *info = file_vm_ask(vm, "{ 'execute': 'query-migrate' }");
        QDict *ram = qdict_get_qdict(info, "ram");
        const char *status = qdict_get_try_str(info, "status") ?: "none";

        /* The migration must not end before. */
        g_assert_true(g_str_equal(status, "setup") ||
                      g_str_equal(status, "active"));
        now = ram ? qdict_get_int(ram, "dirty-sync-count") : 0;
        qobject_unref(info);
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

void file_vm_save(FileVM *vm, const FileWay *way, const FileTarget *target)
{
    g_autofree char *uri = file_vm_uri(vm, target, way->direct, true);

    file_vm_set_way(vm, way);
    file_vm_set_int(vm, "downtime-limit", 100000);
    file_vm_do(vm, "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }",
               uri);
    file_vm_wait(vm, "completed");
}

void file_vm_restore(FileVM *vm, const FileWay *way, const FileTarget *target)
{
    g_autofree char *uri = file_vm_uri(vm, target, way->direct, false);

    file_vm_set_way(vm, way);
    file_vm_do(vm, "{ 'execute': 'migrate-incoming',"
               " 'arguments': { 'uri': %s } }", uri);
    file_vm_wait(vm, "completed");
}

/* Maps a copy of all RAM */
static uint8_t *dump(FileVM *vm, const char *name)
{
    g_autofree char *path = file_test_path(name);
    uint8_t *ram;
    int fd;

    file_vm_do(vm, "{ 'execute': 'pmemsave', 'arguments': { 'val': 0,"
               " 'size': %d, 'filename': %s } }", (int)FILE_VM_RAM, path);
    fd = open(path, O_RDONLY);
    g_assert_cmpint(fd, >=, 0);
    ram = mmap(NULL, FILE_VM_RAM, PROT_READ, MAP_PRIVATE, fd, 0);
    g_assert_true(ram != MAP_FAILED);
    close(fd);
    unlink(path);
    return ram;
}

void file_vm_compare(FileVM *a, FileVM *b)
{
    uint8_t *ram_a = dump(a, "a.ram");
    uint8_t *ram_b = dump(b, "b.ram");
    unsigned wrong = 0;

    for (uint64_t addr = 0; addr < FILE_VM_RAM; addr += FILE_VM_PAGE) {
        /* Not RAM, but the memory of a graphics card that is absent */
        if (addr >= 0xa0000 && addr < 0xc0000) {
            continue;
        }
        if (memcmp(ram_a + addr, ram_b + addr, FILE_VM_PAGE) != 0 &&
            wrong++ < 10) {
            g_printerr("RAM differs in the page at 0x%" PRIx64 ": %016" PRIx64
                       " %016" PRIx64 " became %016" PRIx64 " %016" PRIx64
                       "\n", addr, ldq_be_p(ram_a + addr),
                       ldq_be_p(ram_a + addr + 8), ldq_be_p(ram_b + addr),
                       ldq_be_p(ram_b + addr + 8));
        }
    }
    munmap(ram_a, FILE_VM_RAM);
    munmap(ram_b, FILE_VM_RAM);
    g_assert_cmpuint(wrong, ==, 0);
}

/* Reads a number from a descriptor's information in /proc. */
static unsigned long fd_field(const char *info, const char *name, int base)
{
    const char *at = strstr(info, name);
    unsigned long value;

    g_assert_nonnull(at);
    at += strlen(name);
    g_assert_cmpint(qemu_strtoul(at, &at, base, &value), ==, 0);
    return value;
}

static bool fd_is_direct(pid_t pid, const char *fd)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fdinfo/%s", pid, fd);
    g_autofree char *info = NULL;

    /* It may have been closed meanwhile. */
    if (!g_file_get_contents(path, &info, NULL, NULL) ||
        !(fd_field(info, "flags:", 8) & O_DIRECT)) {
        return false;
    }
    /* RAM uses absolute offsets; only the stream's position moves. */
    g_assert_cmpuint(fd_field(info, "pos:", 10), ==, 0);
    return true;
}

unsigned file_vm_count_fds(FileVM *vm, const char *path, unsigned *direct)
{
    g_autofree char *fds = g_strdup_printf("/proc/%d/fd", vm->pid);
    unsigned count = 0;
    const char *fd;
    GDir *dir = g_dir_open(fds, 0, NULL);

    g_assert_nonnull(dir);
    if (direct) {
        *direct = 0;
    }
    while ((fd = g_dir_read_name(dir))) {
        g_autofree char *link = g_build_filename(fds, fd, NULL);
        g_autofree char *file = g_file_read_link(link, NULL);

        if (path && g_strcmp0(file, path) != 0) {
            continue;
        }
        count++;
        if (direct && fd_is_direct(vm->pid, fd)) {
            (*direct)++;
        }
    }
    g_dir_close(dir);
    return count;
}

void file_vm_wait_fds(FileVM *vm, const char *path, unsigned count)
{
    gint64 end = g_get_monotonic_time() + FILE_VM_TIMEOUT_US / 10;

    while (file_vm_count_fds(vm, path, NULL) != count &&
           g_get_monotonic_time() < end) {
        g_usleep(1000);
    }
    g_assert_cmpuint(file_vm_count_fds(vm, path, NULL), ==, count);
}

uint64_t file_size(const char *path)
{
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return st.st_size;
}

uint64_t file_cached(const char *path)
{
    uint64_t size = file_size(path);
    size_t page = qemu_real_host_page_size();
    size_t pages = DIV_ROUND_UP(size, page);
    g_autofree unsigned char *in_core = g_malloc(pages);
    int fd = open(path, O_RDWR);
    uint64_t cached = 0;
    void *map;

    g_assert_cmpint(fd, >=, 0);
    map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    g_assert_true(map != MAP_FAILED);
    g_assert_cmpint(mincore(map, size, in_core), ==, 0);
    for (size_t i = 0; i < pages; i++) {
        cached += in_core[i] & 1 ? page : 0;
    }
    munmap(map, size);
    close(fd);
    return cached;
}

void file_uncache(const char *path)
{
    int fd = open(path, O_RDONLY);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(fdatasync(fd), ==, 0);
    g_assert_cmpint(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), ==, 0);
    close(fd);
}

unsigned file_find_blocks(const char *path, FileBlock *blocks, unsigned max)
{
    static const uint8_t first[] = "\6pc.ram";
    g_autofree char *text = NULL;
    const uint8_t *image, *at;
    uint64_t left;
    size_t size;
    unsigned n;

    g_assert_true(g_file_get_contents(path, &text, &size, NULL));
    image = (uint8_t *)text;
    at = memmem(image, size, first, sizeof(first) - 1);
    g_assert_nonnull(at);
    /* The first name is preceded by the length of all blocks, with a flag. */
    left = ldq_be_p(at - 8) & -FILE_VM_PAGE;

    for (n = 0; left; n++) {
        FileBlock *b = &blocks[n];

        g_assert_cmpuint(n, <, max);
        memcpy(b->name, at + 1, *at);
        b->name[*at] = '\0';
        at += 1 + *at;
        b->length = ldq_be_p(at);
        b->header = at + 8 - image;
        g_assert_cmpuint(ldl_be_p(image + b->header), ==, 1);
        b->pages = ldq_be_p(image + b->header + FILE_HEADER_PAGES);
        g_assert_cmpuint(b->pages % MiB, ==, 0);
        g_assert_cmpuint(b->length, <=, left);
        left -= b->length;
        at = image + b->pages + b->length;
        g_assert_cmpuint(b->pages + b->length, <, size);
    }
    return n;
}
