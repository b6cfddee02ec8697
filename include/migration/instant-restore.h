/*
 * Instant restore: what other parts of QEMU need to know about it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * While RAM is loaded, threads that touch a missing page wait until it has been
 * read, however long that takes: reading is retried if it fails.  Only QEMU's
 * own mapping of RAM is guarded: an access through the descriptor of shared
 * memory would read zeros, and fill the missing page with zeros for good.
 *
 * All functions must be called with the BQL held, unless they say otherwise.
 */

#ifndef MIGRATION_INSTANT_RESTORE_H
#define MIGRATION_INSTANT_RESTORE_H

#include "qapi/qapi-types-run-state.h"

/*
 * Returns: whether RAM is still being loaded while the guest may run.  While it
 * is, the status of the migration is postcopy-active; it then becomes
 * completed.  Any thread.
 */
bool mapped_ram_instant_active(void);

/**
 * mapped_ram_instant_check_idle:
 * @errp: pointer to a NULL-initialized error object
 *
 * For operations that replace the guest's RAM, such as loading a snapshot, or
 * that may share it with another process, such as adding a device.
 *
 * Returns: true; or false with @errp set while RAM is being loaded
 */
bool mapped_ram_instant_check_idle(Error **errp);

/**
 * mapped_ram_instant_check_snapshot:
 * @errp: pointer to a NULL-initialized error object
 *
 * To be called before the guest is stopped for a snapshot to be loaded: a
 * snapshot that may not be loaded must leave the guest running, all the more if
 * it is being saved.  If a migration has just ended, finishes its cleanup,
 * which drops the BQL meanwhile and may resume the guest.
 *
 * Returns: true; or false with @errp set while the machine is saved to a file,
 *          restored from one, or RAM is being loaded, or a migration is running
 */
bool mapped_ram_instant_check_snapshot(Error **errp);

/**
 * mapped_ram_instant_add_sharer:
 * @errp: pointer to a NULL-initialized error object
 *
 * For a device that lets another process map the guest's RAM.  The process may
 * connect, or connect again, at any time from now on, so the restore is eager
 * as long as there is such a device.
 *
 * Returns: true; or false with @errp set while RAM is being loaded
 */
bool mapped_ram_instant_add_sharer(Error **errp);

/* To be called when that device has gone. */
void mapped_ram_instant_remove_sharer(void);

/**
 * mapped_ram_instant_stuck:
 * @cpu: a CPU
 *
 * Returns: whether @cpu waits, in the middle of an instruction, for RAM that
 *          could not be read or whose read hangs, or for another CPU that does.
 *          It can be treated as stopped, but cannot be reset.
 */
bool mapped_ram_instant_stuck(CPUState *cpu);

/*
 * Returns: whether the machine can be reset now.  It cannot while a CPU is
 * stuck, see mapped_ram_instant_stuck(), or while a device waits for RAM that
 * could not be read, as its reset would wait for that, too.
 */
bool mapped_ram_instant_can_reset(void);

/*
 * Returns: whether the machine can still be reset when pause_all_vcpus() has
 * returned: it does not wait for stuck CPUs, and a device may have begun to
 * wait meanwhile.
 */
bool mapped_ram_instant_ready_for_reset(void);

/**
 * mapped_ram_instant_stop:
 * @state: the state to stop in
 *
 * Instead of vm_stop(), for the main loop: stops the machine as soon as that
 * does not have to wait for RAM that cannot be read.
 *
 * Returns: false if no RAM is being loaded or the guest does not run; then call
 *          vm_stop()
 */
bool mapped_ram_instant_stop(RunState state);

/**
 * mapped_ram_instant_touch: load a page of RAM before a lock is taken
 * @host: an address in guest RAM
 *
 * Whoever needs the lock would spin while its owner waits for the page, which
 * it may never get.  Does nothing if no RAM is being loaded.  Any thread, but
 * not with a lock that the threads of other CPUs need.
 */
void mapped_ram_instant_touch(const void *host);

#endif /* MIGRATION_INSTANT_RESTORE_H */
