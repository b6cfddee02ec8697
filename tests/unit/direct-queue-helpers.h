/*
 * Shared code of the test programs of include/io/direct-queue.h
 *
 * Test data, checks, and test cases that run with each engine that works on
 * this host, in each directory and on each block device from direct-io-dirs.h,
 * buffered and direct.  Linux only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_DIRECT_QUEUE_HELPERS_H
#define TESTS_DIRECT_QUEUE_HELPERS_H

#include "qemu/memalign.h"
#include "qapi/error.h"
#include "io/direct-queue.h"
#include "direct-io-dirs.h"

#define KiB 1024u
#define MiB (1024u * KiB)

/* 64 KiB: the largest alignment that any file system or device requires */
#define BUF_ALIGN (64 * KiB)

/* Data whose every byte depends on its offset in the file */

void pattern_fill(uint8_t *buf, size_t len, uint64_t offset);

/* Abort unless @buf has the data that belongs at @offset. */
void pattern_check(const uint8_t *buf, size_t len, uint64_t offset);

/* The same for a file, read by pread() from a buffered @fd. */
void pattern_check_file(int fd, size_t len, uint64_t offset);

/* Checks */

/* Abort unless @err is set and its message matches @pattern.  Frees @err. */
void assert_error(Error *err, const char *pattern);

/*
 * Drain @q, which must fail with a message that matches @pattern.  All further
 * calls must fail with the same error and submit nothing.
 */
void assert_fails_fast(DirectQueue *q, const char *pattern);

/* The number of requests in the latency histogram. */
uint64_t histogram_sum(const DirectQueueStats *stats);

/* Engines, and places where they are tested */

/* Whether a queue can be created with @engine on this host. */
bool engine_works(DirectIoEngine engine);

/* Where a test case runs: the engine, and the directory or device. */
typedef struct TestPlace {
    const char *path;           /* a directory or a block device */
    const char *name;           /* for the paths of test cases */
    bool is_device;
    bool direct;                /* with O_DIRECT */
    DirectIoEngine engine;
} TestPlace;

/* A file, or the device, open twice, and a queue on one of the descriptors */
typedef struct QueueFixture {
    int buffered;
    int fd;
    DirectIOLimits limits;
    DirectQueue *q;
} QueueFixture;

DirectQueue *make_queue(int fd, const DirectIOLimits *limits,
                        DirectIoEngine engine, unsigned depth);

/*
 * Open the device, or a new file in the directory, with the access mode
 * @flags, and create a queue whose requests have @request_size bytes (0: the
 * file's opt_transfer).
 *
 * Returns: false if @place has no direct I/O.  The test case is then marked as
 * skipped, and there is nothing to close.
 */
bool fixture_open(QueueFixture *f, const TestPlace *place, int flags,
                  unsigned depth, uint32_t request_size);
void fixture_close(QueueFixture *f);

/* Test programs */

/* To be called instead of g_test_init(). */
void direct_queue_test_init(int *argc, char ***argv);

/* Add the test case /direct-queue/ENGINE/PLACE/direct|buffered/@what. */
void add_case(const TestPlace *place, const char *what, GTestDataFunc func);

/*
 * Call @add once for each place of a kind, working engine, and buffered or
 * direct I/O.
 */
void for_each_dir(void (*add)(const TestPlace *place));
void for_each_small_dir(void (*add)(const TestPlace *place));
void for_each_device(void (*add)(const TestPlace *place));

#endif /* TESTS_DIRECT_QUEUE_HELPERS_H */
