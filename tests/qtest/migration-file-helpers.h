/*
 * Helpers for tests that save guests to files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The guest is that of migration-test: it increments the first byte of each
 * page in a range of RAM, over and over.  A boot ROM of a few instructions
 * starts it, so it runs at once and needs no firmware.
 *
 * All functions fail the test if an error occurs that their comment does not
 * mention.  None is thread-safe.
 */

#ifndef MIGRATION_FILE_HELPERS_H
#define MIGRATION_FILE_HELPERS_H

#include "libqtest.h"
#include "migration-file-base.h"
#include "qobject/qdict.h"
#include "qemu/units.h"

/* How long anything may take; an idle host needs far less than 1 % of it. */
#define FILE_VM_TIMEOUT_US  (1000 * G_USEC_PER_SEC)

#define FILE_VM_RAM         (64 * MiB)
#define FILE_VM_PAGE        (4 * KiB)
/* The guest changes all pages from here... */
#define FILE_VM_BUSY_START  (1 * MiB)
/* ...these are never zero... */
#define FILE_VM_BUSY_HALF   (12 * MiB)
/* ...up to here, and nothing else. */
#define FILE_VM_BUSY_END    (24 * MiB)
/* file_vm_fill() puts a run of pages here, then scattered pages, then none. */
#define FILE_VM_RUN         (28 * MiB)
#define FILE_VM_SCATTERED   (36 * MiB)
#define FILE_VM_ZERO        (44 * MiB)

/**
 * FileVM:
 * @qts: for functions of libqtest
 * @pid: the emulator's process
 * @log: path of the file with what it wrote to stderr
 */
typedef struct FileVM {
    QTestState *qts;
    pid_t pid;
    char *log;
} FileVM;

/**
 * FileWay:
 * @mapped: the mapped-ram capability
 * @channels: how many channels multifd has, or 0 to turn it off
 * @direct: the direct-io parameter
 *
 * How to save, or how to restore.
 */
typedef struct FileWay {
    bool mapped;
    unsigned channels;
    bool direct;
} FileWay;

/**
 * FileTarget:
 * @path: the file
 * @offset: offset in the file at which the migration starts, in bytes
 * @fdset: pass descriptors instead of the path
 */
typedef struct FileTarget {
    const char *path;
    uint64_t offset;
    bool fdset;
} FileTarget;

/* The place of one block's RAM in a mapped-ram file; see mapped-ram.h. */
typedef struct FileBlock {
    char name[256];
    uint64_t header;
    uint64_t pages;
    uint64_t length;
} FileBlock;

/* Offsets of the fields in the header that FileBlock.header points to */
#define FILE_HEADER_VERSION 0
#define FILE_HEADER_PAGE_SIZE 4
#define FILE_HEADER_BITMAP 12
#define FILE_HEADER_PAGES 20
#define FILE_HEADER_SIZE 28

/* The directory of the tests: $QDIO_TEST_DIR, or a temporary one. */
void file_test_init(void);
void file_test_cleanup(void);

/* Path of @name in that directory; to be freed. */
char *file_test_path(const char *name);

/* Whether files there can be opened with O_DIRECT. */
bool file_test_direct(void);

/* Whether they are in RAM anyway, with or without O_DIRECT. */
bool file_test_in_ram(void);

/**
 * file_vm_start: start an emulator
 *
 * @name: its name; must be unique among running emulators
 * @extra: more options, or NULL
 *
 * The guest does not run yet.
 */
FileVM *file_vm_start(const char *name, const char *extra);

/* The same, with filled RAM (see file_vm_fill()), and the guest running. */
FileVM *file_vm_start_source(void);

/* The same, to restore: waits for migrate-incoming. */
FileVM *file_vm_start_target(const char *extra);

/* Ends the emulator. */
void file_vm_stop(FileVM *vm);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(FileVM, file_vm_stop)

/* What the emulator has written to stderr so far; to be freed. */
char *file_vm_log(FileVM *vm);

/*
 * Like file_vm_stop(), but the emulator must end by itself, with status 1.
 * Returns the same as file_vm_log().
 */
char *file_vm_stop_failed(FileVM *vm);

/* Gives each page of the guest's RAM that must not be zero a value. */
void file_vm_fill(FileVM *vm);

/* Executes a command that must succeed, with %-formats as in qtest_qmp(). */
void file_vm_do(FileVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* Likewise, and returns the command's result. */
QDict *file_vm_ask(FileVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* Likewise, but the command must fail.  Returns the error, to be freed. */
char *file_vm_refuse(FileVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* Like file_vm_refuse(), but returns NULL if the command succeeds. */
char *file_vm_try(FileVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

void file_vm_set_cap(FileVM *vm, const char *name, bool on);
void file_vm_set_int(FileVM *vm, const char *parameter, int64_t value);
void file_vm_set_bool(FileVM *vm, const char *parameter, bool value);

/* Sets everything in @way, and no bandwidth limit. */
void file_vm_set_way(FileVM *vm, const FileWay *way);

/* Waits until the guest has changed its memory. */
void file_vm_check_runs(FileVM *vm);

/* Lets the guest run, and checks that it does. */
void file_vm_cont(FileVM *vm);

/*
 * The URI of @target; to be freed.  With an fdset, first replaces the set: it
 * then has a descriptor for the main stream and, if @direct, one with
 * O_DIRECT, opened for writing if @save and for reading otherwise.
 */
char *file_vm_uri(FileVM *vm, const FileTarget *target, bool direct,
                  bool save);

/* Puts a descriptor of @path into the set @id, opened with @flags. */
void file_vm_add_fd(FileVM *vm, int id, const char *path, int flags);

/* Passes a descriptor for use as "fd:NAME", and closes it here. */
void file_vm_pass_fd(FileVM *vm, const char *name, int fd);

/* Waits until the migration's status is @status; it must not end otherwise. */
void file_vm_wait(FileVM *vm, const char *status);

/* The status; to be freed. */
char *file_vm_status(FileVM *vm);

/* The member direct-io of query-migrate, to be unreferenced; or NULL. */
QDict *file_vm_direct_io(FileVM *vm);

/* Executes an HMP command, and checks that its output has @expected. */
void file_vm_check_hmp(FileVM *vm, const char *command, const char *expected);

/* Waits until the dirty bitmap has been synchronized @count times. */
void file_vm_wait_syncs(FileVM *vm, int64_t count);

/* Saves as @way says, to the end, and leaves the guest stopped. */
void file_vm_save(FileVM *vm, const FileWay *way, const FileTarget *target);

/* Restores as @way says, to the end, and leaves the guest stopped. */
void file_vm_restore(FileVM *vm, const FileWay *way, const FileTarget *target);

/* Compares all of RAM.  Neither guest may run. */
void file_vm_compare(FileVM *a, FileVM *b);

/*
 * Counts the emulator's descriptors of the file @path, or all if @path is
 * NULL; and, unless @direct is NULL, how many of them have O_DIRECT.
 */
unsigned file_vm_count_fds(FileVM *vm, const char *path, unsigned *direct);

/*
 * Waits until there are @count descriptors of the file @path, or in all if
 * @path is NULL; fails if there are not within a tenth of the timeout.  The
 * emulator closes the file a moment after it has reported the result.
 */
void file_vm_wait_fds(FileVM *vm, const char *path, unsigned count);

/* Size of a file in bytes. */
uint64_t file_size(const char *path);

/* How many bytes of a file are in the page cache. */
uint64_t file_cached(const char *path);

/* Takes a file out of the page cache. */
void file_uncache(const char *path);

/*
 * Finds the blocks in a mapped-ram file, at most @max, in the order in which
 * they are stored.  Returns how many there are.
 */
unsigned file_find_blocks(const char *path, FileBlock *blocks, unsigned max);

#endif
