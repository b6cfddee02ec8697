/*
 * What file-aside.c needs of this version of QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_FILE_ASIDE_COMPAT_H
#define QEMU_MIGRATION_FILE_ASIDE_COMPAT_H

#include "block/aio.h"
#include "block/thread-pool.h"

/* Calls @func in QEMU's thread pool; the coroutine yields meanwhile. */
static inline void coroutine_fn file_aside_submit_co(ThreadPoolFunc *func,
                                                     void *arg)
{
    thread_pool_submit_co(func, arg);
}

#endif
