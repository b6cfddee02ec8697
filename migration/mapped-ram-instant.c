/*
 * Instant restore: the guest runs while its RAM is loaded from a file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See mapped-ram-instant.h.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/block.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "file-direct.h"
#include "file-save.h"
#include "file-transport.h"
#include "hw/core/cpu.h"
#include "migration/instant-restore.h"
#include "mapped-ram-compat.h"
#include "mapped-ram-instant.h"
#include "mapped-ram-int.h"
#include "migration.h"
#include "options.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/madvise.h"
#include "qemu/timer.h"
#include "system/block-backend.h"
#include "system/cpu-timers.h"
#include "system/cpus.h"
#include "system/kvm.h"
#include "system/qtest.h"
#include "system/runstate.h"
#include "system/tcg.h"
#include "trace.h"

/*
 * Blocks below this size are loaded before the guest runs: firmware and tables,
 * which take a moment to read, and some of which change their size.
 */
#define MIN_LENGTH (1 * MiB)

/* How often to check whether the guest has stopped. */
#define STOP_MS 10

typedef struct Instant {
    MappedRamLazy *lazy;
    /* Duplicated descriptors; the second one is -1 if not direct */
    int fd, direct_fd;
    char *name;
    bool locked;
    /* The blocks' memory regions; each holds a reference */
    GPtrArray *regions;
    Error *blocker;
    QEMUBH *changed_bh, *ended_bh;
    QEMUTimer *stop_timer;
    VMChangeStateEntry *vm_state;
    bool started;
    bool reported;
    /* CPUs have been asked to stop, but the machine has not stopped yet */
    bool stopping;
    /* whether it shall stop for another reason than the loader's error */
    bool stop_wanted;
    RunState stop_state;
    Notifier wakeup;
} Instant;

static Instant *instant;

/* Devices that let another process map guest memory; under the BQL. */
static unsigned sharers;

/* Atomic: whether the load has been started, until its end is published */
static bool active;

/* Figures of the last load after it has ended; under the BQL. */
static MappedRamLazyInfo last_info;
static bool last_valid;
/* Why RAM, or part of it, was not loaded this way */
static char *last_reason;

bool mapped_ram_instant_active(void)
{
    return qatomic_read(&active);
}

void mapped_ram_instant_touch(const void *host)
{
    if (mapped_ram_instant_active()) {
        (void)qatomic_read((const uint8_t *)host);
    }
}

bool mapped_ram_instant_check_idle(Error **errp)
{
    if (!instant) {
        return true;
    }
    error_setg(errp, "The guest's RAM is still being loaded from '%s'; "
               "wait until query-migrate says 'completed'", instant->name);
    return false;
}

bool mapped_ram_instant_check_snapshot(Error **errp)
{
    if (runstate_check(RUN_STATE_INMIGRATE) && file_transport_active()) {
        error_setg(errp, "The machine is being restored from '%s'; wait until "
                   "query-migrate says 'completed'", file_transport_name());
        return false;
    }
    /* The end of a migration must not come in the middle of a snapshot. */
    return file_save_check_idle(errp) && mapped_ram_instant_check_idle(errp) &&
           mapped_ram_compat_finish_migration(errp);
}

bool mapped_ram_instant_add_sharer(Error **errp)
{
    if (!mapped_ram_instant_check_idle(errp)) {
        return false;
    }
    sharers++;
    return true;
}

void mapped_ram_instant_remove_sharer(void)
{
    assert(sharers);
    sharers--;
}

void mapped_ram_instant_forget(void)
{
    last_valid = false;
    g_clear_pointer(&last_reason, g_free);
}

/* Keeps the first reason only.  Takes ownership of @err. */
static void note_reason(Error *err)
{
    if (!last_reason) {
        last_reason = g_strdup(error_get_pretty(err));
        info_report("instant restore: %s; RAM is loaded before the guest runs",
                    last_reason);
    }
    error_free(err);
}

/* Called by a thread of the loader. */
static void lazy_changed(void *opaque)
{
    Instant *i = opaque;

    qemu_bh_schedule(i->changed_bh);
}

/* Called by a thread of the loader, too. */
static void lazy_ended(void *opaque)
{
    Instant *i = opaque;

    qemu_bh_schedule(i->ended_bh);
}

static bool waits(CPUState *cpu)
{
    return mapped_ram_lazy_waits(instant->lazy, cpu->thread_id);
}

/*
 * Whether @cpu is, or soon will be, waiting for another CPU that waits for a
 * page: TCG runs some instructions, and work that is "safe", only when no other
 * CPU is within an instruction.  Either the other one keeps it from beginning
 * with that, or has begun and touches the page meanwhile.
 */
static bool waits_for_other(CPUState *cpu)
{
    CPUState *other;

    if (qatomic_read(&cpu->running)) {
        return false;
    }
    CPU_FOREACH(other) {
        if (other != cpu && waits(other) &&
            (qatomic_read(&other->has_waiter) ||
             cpu_in_exclusive_context(other))) {
            return true;
        }
    }
    return false;
}

/*
 * A CPU that waits within KVM does not count, since to stop the machine asks
 * KVM for its state.  On x86 and since Linux 6.2 KVM returns from such a wait
 * when it is asked to stop, unless it reads guest memory on its own account, as
 * it does to emulate an instruction.  Elsewhere it may wait for the page.
 */
bool mapped_ram_instant_stuck(CPUState *cpu)
{
    return instant && tcg_enabled() && (waits(cpu) || waits_for_other(cpu));
}

static bool any_stuck(void)
{
    CPUState *cpu;

    CPU_FOREACH(cpu) {
        if (mapped_ram_instant_stuck(cpu)) {
            return true;
        }
    }
    return false;
}

/* Asks all CPUs to stop.  Returns whether each has stopped or is stuck. */
static bool stop_cpus(void)
{
    bool stopped = true;
    CPUState *cpu;

    CPU_FOREACH(cpu) {
        cpu->stop = true;
        qemu_cpu_kick(cpu);
        stopped &= cpu->stopped || mapped_ram_instant_stuck(cpu);
    }
    return stopped;
}

/* Returns whether @thread is the thread of a CPU. */
static bool is_cpu(uint64_t thread)
{
    CPUState *cpu;

    CPU_FOREACH(cpu) {
        if (cpu->thread_id == thread) {
            return true;
        }
    }
    return false;
}

/* Restarts CPUs that have stopped for an error that is gone by now. */
static void resume_cpus(Instant *i)
{
    /* A guest that has suspended itself runs again without vm_start(). */
    if (i->stopping &&
        (runstate_is_running() || runstate_check(RUN_STATE_SUSPENDED))) {
        cpu_enable_ticks();
        resume_all_vcpus();
    }
    i->stopping = false;
}

static bool others_wait(Instant *i)
{
    return mapped_ram_lazy_others_wait(i->lazy, is_cpu);
}

static bool has_error(Instant *i)
{
    Error *err = mapped_ram_lazy_error(i->lazy);
    bool failed = err != NULL;

    error_free(err);
    return failed;
}

/* Whether a device has requests whose buffers may be missing pages */
static bool devices_busy(void)
{
    BlockBackend *blk = NULL;

    while ((blk = blk_all_next(blk))) {
        if (blk_get_attached_dev(blk) && blk_has_in_flight(blk)) {
            return true;
        }
    }
    return false;
}

bool mapped_ram_instant_can_reset(void)
{
    return !instant ||
           (!any_stuck() && !(has_error(instant) &&
                              (others_wait(instant) || devices_busy())));
}

bool mapped_ram_instant_ready_for_reset(void)
{
    CPUState *cpu;

    if (instant) {
        CPU_FOREACH(cpu) {
            if (!cpu->stopped) {
                return false;
            }
        }
    }
    return mapped_ram_instant_can_reset();
}

/*
 * Stops the machine as soon as that does not wait for a page, which might be
 * one that cannot be read.  A CPU that waits for a page is stuck within an
 * instruction, so this cannot simply wait for all CPUs.
 *
 * Nor can it wait for other threads: vm_stop() waits for the requests of block
 * devices, and for vhost, with the BQL held.  While one of their threads waits
 * for a page, only the CPUs are stopped, and likewise while a request is in
 * flight, whose thread may touch guest memory only when the disk has answered.
 */
static void try_stop(Instant *i)
{
    RunState state = i->stop_wanted ? i->stop_state : RUN_STATE_IO_ERROR;
    bool stopped;

    if (!runstate_is_running()) {
        resume_cpus(i);
        i->stop_wanted = false;
        return;
    }
    i->stopping = true;
    stopped = stop_cpus();
    if (stopped) {
        /* As vm_stop() does: lest a watchdog expires, also afterwards */
        cpu_disable_ticks();
        qemu_clock_enable(QEMU_CLOCK_VIRTUAL, false);
    }
    if (!stopped || others_wait(i) || devices_busy()) {
        timer_mod(i->stop_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + STOP_MS);
        return;
    }
    i->stopping = i->stop_wanted = false;
    vm_stop(state);
}

bool mapped_ram_instant_stop(RunState state)
{
    if (!instant || !runstate_is_running()) {
        return false;
    }
    instant->stop_wanted = true;
    instant->stop_state = state;
    try_stop(instant);
    return true;
}

/* Stops the guest if its RAM cannot be read. */
static void stop_guest(void *opaque)
{
    Instant *i = opaque;
    Error *err = mapped_ram_lazy_error(i->lazy);

    if (!err) {
        file_save_forget_error();
        if (i->stop_wanted) {
            try_stop(i);
        } else {
            resume_cpus(i);
        }
        return;
    }
    migrate_set_error(migrate_get_current(), err);
    if (!i->reported) {
        i->reported = true;
        error_reportf_err(err, "instant restore: stopping the guest because "
                          "its RAM cannot be read; 'cont' retries: ");
    } else {
        error_free(err);
    }
    try_stop(i);
}

/* The guest runs again, so try again to load what could not be read. */
static void try_again(Instant *i)
{
    i->reported = false;
    file_save_forget_error();
    mapped_ram_lazy_retry(i->lazy);
}

static void vm_state_changed(void *opaque, bool running, RunState state)
{
    if (running) {
        try_again(opaque);
    }
}

/* When a suspended guest wakes up, its state changes without notification. */
static void guest_woke_up(Notifier *notifier, void *reason)
{
    try_again(container_of(notifier, Instant, wakeup));
}

/*
 * Whether shared memory may be backed by huge pages.  Before Linux 6.4, and
 * with huge pages of more than MAPPED_RAM_LAZY_EXTENT, the kernel would fill
 * missing pages with zeros to make one, although they are registered.
 */
static void allow_huge_pages(RAMBlock *rb, bool allow)
{
    if (qemu_ram_is_shared(rb)) {
        qemu_madvise(rb->host, rb->max_length, allow ? QEMU_MADV_HUGEPAGE :
                                                       QEMU_MADV_NOHUGEPAGE);
    }
}

static void end_stop(Instant *i)
{
    resume_cpus(i);
    if (i->stop_wanted) {
        qemu_system_vmstop_request_prepare();
        qemu_system_vmstop_request(i->stop_state);
    }
}

static void instant_free(Instant *i)
{
    mapped_ram_lazy_free(i->lazy);
    end_stop(i);
    if (i->started) {
        mapped_ram_compat_unblock(&i->blocker);
        qemu_del_vm_change_state_handler(i->vm_state);
        notifier_remove(&i->wakeup);
    }
    for (unsigned n = 0; n < i->regions->len; n++) {
        MemoryRegion *mr = g_ptr_array_index(i->regions, n);

        allow_huge_pages(mr->ram_block, true);
    }
#ifndef _WIN32
    if (i->locked) {
        qemu_unlock_fd(i->fd, 0, 0);
    }
#endif
    timer_free(i->stop_timer);
    qemu_bh_delete(i->changed_bh);
    qemu_bh_delete(i->ended_bh);
    g_ptr_array_free(i->regions, true);
    if (i->direct_fd >= 0) {
        close(i->direct_fd);
    }
    if (i->fd >= 0) {
        close(i->fd);
    }
    ram_block_discard_disable(false);
    g_free(i->name);
    g_free(i);
}

static void load_ended(void *opaque)
{
    MigrationIncomingState *mis = migration_incoming_get_current();
    Instant *i = opaque;

    mapped_ram_lazy_info(i->lazy, &last_info);
    last_valid = true;
    trace_mapped_ram_instant_end(last_info.faults, last_info.fault_bytes,
                                 last_info.background_bytes,
                                 last_info.p99_us);
    instant = NULL;
    instant_free(i);
    file_save_forget_error();
    /* If the guest does not run yet, the caller proceeds with this. */
    migrate_set_state(&mis->state, MIGRATION_STATUS_POSTCOPY_ACTIVE,
                      MIGRATION_STATUS_COMPLETED);
    qatomic_set(&active, false);
}

#define REASON_DISCARD "a device like virtio-mem discards guest memory"

/* Objects that rule out instant restore, with @property only if it is true */
static const struct {
    const char *type, *property, *reason;
} obstacles[] = {
    { "virtio-gpu-device", "blob",
      "a virtio-gpu device with blob=on accesses guest memory by its "
      "descriptor" },
    { "ivshmem-common", NULL,
      "an ivshmem device shares its memory with other processes" },
    { "x-pci-proxy-dev", NULL,
      "a remote device shares guest memory with another process" },
    { "virtio-net-device", "failover",
      "a network device with failover=on may add its primary device "
      "meanwhile" },
    /* Unlike others, it does not ask whether memory may be discarded. */
    { "hv-balloon", NULL, REASON_DISCARD },
};

/* If @obj is an obstacle, sets @opaque, a const char **, to the reason. */
static int find_obstacle(Object *obj, void *opaque)
{
    const char **reason = opaque;

    for (unsigned i = 0; i < ARRAY_SIZE(obstacles); i++) {
        if (object_dynamic_cast(obj, obstacles[i].type) &&
            (!obstacles[i].property ||
             object_property_get_bool(obj, obstacles[i].property, NULL))) {
            *reason = obstacles[i].reason;
            return 1;
        }
    }
    return 0;
}

/* Whether a process that serves a disk by vhost-user maps guest memory */
static bool has_vhost_user_disk(void)
{
    BlockDriverState *bs = NULL;

    while ((bs = bdrv_next_node(bs))) {
        if (!g_strcmp0(bdrv_get_format_name(bs), "virtio-blk-vhost-user")) {
            return true;
        }
    }
    return false;
}

/* Checks for what rules out instant restore for all blocks. */
static bool check_machine(Error **errp)
{
    const char *reason;

    if (mapped_ram_compat_memory_locked()) {
        error_setg(errp, "guest memory is locked (-overcommit mem-lock=on)");
        return false;
    }
    if (!kvm_enabled() && !tcg_enabled() && !qtest_enabled()) {
        /* For example, MSHV pins it, and Xen does not keep it in QEMU */
        error_setg(errp, "the accelerator is neither KVM nor TCG");
        return false;
    }
    if (sharers || has_vhost_user_disk()) {
        error_setg(errp, "a vhost-user device shares guest memory with "
                   "another process");
        return false;
    }
    if (ram_block_discard_is_disabled()) {
        error_setg(errp, "a device has guest memory pinned");
        return false;
    }
    if (object_child_foreach_recursive(object_get_root(), find_obstacle,
                                       &reason)) {
        error_setg(errp, "%s", reason);
        return false;
    }
    if (ram_block_discard_disable(true) < 0) {
        error_setg(errp, REASON_DISCARD);
        return false;
    }
    return true;
}

/* Duplicates the descriptors, since the transport closes its own early. */
static bool take_descriptors(Instant *i, QEMUFile *f, DirectIOLimits *limits,
                             Error **errp)
{
    int direct_fd = file_transport_direct_fd(limits);

    i->fd = file_direct_dup(mapped_ram_stream_fd(f));
    i->direct_fd = direct_fd < 0 ? -1 : file_direct_dup(direct_fd);
    if (i->fd < 0 || (direct_fd >= 0 && i->direct_fd < 0)) {
        error_setg_errno(errp, errno, "unable to duplicate a descriptor of "
                         "'%s'", i->name);
        return false;
    }
    return true;
}

static Instant *instant_new(QEMUFile *f, Error **errp)
{
    MappedRamLazyConfig config = {
        .file.thread_started = mapped_ram_compat_thread_started,
        .file.thread_ended = mapped_ram_compat_thread_ended,
        .changed = lazy_changed,
        .ended = lazy_ended,
    };
    Instant *i;

    if (!check_machine(errp)) {
        return NULL;
    }
    i = g_new0(Instant, 1);
    i->fd = i->direct_fd = -1;
    i->name = g_strdup(mapped_ram_stream_name(f));
    i->regions = g_ptr_array_new_with_free_func(
        (GDestroyNotify)memory_region_unref);
    /* Not in the context that block devices poll while the guest stops */
    i->changed_bh = aio_bh_new(iohandler_get_aio_context(), stop_guest, i);
    i->ended_bh = aio_bh_new(iohandler_get_aio_context(), load_ended, i);
    i->stop_timer = timer_new_ms(QEMU_CLOCK_REALTIME, stop_guest, i);
    config.opaque = i;
    if (take_descriptors(i, f, &config.file.direct_limits, errp)) {
        config.file.name = i->name;
        config.file.fd = i->fd;
        config.file.direct_fd = i->direct_fd;
        config.file.engine = migrate_direct_io_engine();
        config.file.workers = mapped_ram_workers();
        config.file.depth = file_direct_depth(config.file.workers);
        i->lazy = mapped_ram_lazy_new(&config, errp);
    }
    if (!i->lazy) {
        instant_free(i);
        return NULL;
    }
    return i;
}

/* Whether all memory of @rb was allocated when it was created. */
static bool is_preallocated(RAMBlock *rb)
{
    Object *owner = memory_region_owner(rb->mr);

    return object_dynamic_cast(owner, "memory-backend") &&
           object_property_get_bool(owner, "prealloc", NULL);
}

/*
 * Checks for what rules it out for @rb alone.  @worth: set to whether to report
 * the reason.
 */
static bool check_block(RAMBlock *rb, bool *worth, Error **errp)
{
    *worth = rb->used_length >= MIN_LENGTH &&
             !(rb->flags & RAM_RESIZEABLE);
    if (!*worth) {
        return false;
    }
    if (rb->fd >= 0 && !qemu_ram_is_shared(rb) &&
        rb->page_size == qemu_real_host_page_size()) {
        error_setg(errp, "RAM block '%s': it is a private mapping of a file "
                   "(share=off)", rb->idstr);
        return false;
    }
    if (is_preallocated(rb)) {
        /* Others could take it when it is discarded, above all huge pages */
        error_setg(errp, "RAM block '%s': its memory is preallocated "
                   "(prealloc=on)", rb->idstr);
        return false;
    }
    return true;
}

bool mapped_ram_instant_has(RAMBlock *rb)
{
    return instant && g_ptr_array_find(instant->regions, rb->mr, NULL);
}

/* Discards the memory of @rb, so that each page faults when it is touched. */
static bool empty_block(RAMBlock *rb, Error **errp)
{
    int ret = ram_block_discard_range(rb, 0, ROUND_UP(rb->used_length,
                                                      rb->page_size));

    if (ret < 0) {
        error_setg_errno(errp, -ret, "RAM block '%s': its memory cannot be "
                         "discarded", rb->idstr);
    }
    return ret >= 0;
}

/* Checks first: what is discarded from a file of the user's may be needed. */
static bool take_block(RAMBlock *rb, const MappedRamBlock *b, Error **errp)
{
    if (!mapped_ram_lazy_check(instant->lazy, b, rb->page_size, errp)) {
        return false;
    }
    allow_huge_pages(rb, false);
    if (!empty_block(rb, errp) ||
        !mapped_ram_lazy_add(instant->lazy, b, rb->page_size, errp)) {
        allow_huge_pages(rb, true);
        return false;
    }
    return true;
}

bool mapped_ram_instant_add(QEMUFile *f, RAMBlock *rb, const MappedRamBlock *b)
{
    Error *err = NULL;
    bool worth;

    if (!migrate_postcopy_ram()) {
        return false;
    }
    if (!check_block(rb, &worth, &err)) {
        if (worth) {
            note_reason(err);
        }
        return false;
    }
    if (!instant) {
        /* If this has failed once for the machine, it fails again, silently. */
        instant = instant_new(f, &err);
    }
    if (!instant || !take_block(rb, b, &err)) {
        note_reason(err);
        return false;
    }
    memory_region_ref(rb->mr);
    g_ptr_array_add(instant->regions, rb->mr);
    return true;
}

bool mapped_ram_instant_start(Error **errp)
{
    Instant *i = instant;

    if (!i) {
        return true;
    }
    mapped_ram_instant_check_idle(&i->blocker);
    if (!mapped_ram_compat_block(&i->blocker, errp)) {
        return false;
    }
    i->vm_state = qemu_add_vm_change_state_handler(vm_state_changed, i);
    i->wakeup.notify = guest_woke_up;
    qemu_register_wakeup_notifier(&i->wakeup);
    i->started = true;
    qatomic_set(&active, true);
    i->locked = file_transport_take_lock();
    if (!mapped_ram_lazy_start(i->lazy, errp)) {
        return false;
    }
    trace_mapped_ram_instant_start(i->name);
    return true;
}

void mapped_ram_instant_abort(void)
{
    Instant *i = instant;

    if (i) {
        instant = NULL;
        instant_free(i);
        qatomic_set(&active, false);
    }
}

static bool get_info(MappedRamLazyInfo *info)
{
    if (instant) {
        mapped_ram_lazy_info(instant->lazy, info);
    } else {
        *info = last_info;
    }
    return instant || last_valid;
}

void mapped_ram_instant_add_stats(MappedRamStats *stats)
{
    MappedRamLazyInfo lazy;

    if (get_info(&lazy)) {
        mapped_ram_stats_add(stats, &lazy.stats);
    }
}

void mapped_ram_instant_fill_info(MigrationDirectIO *info, uint64_t loaded)
{
    MigrationInstantRestore *out;
    MappedRamLazyInfo lazy;
    bool valid = get_info(&lazy);

    if (!valid && !last_reason) {
        return;
    }
    out = g_new0(MigrationInstantRestore, 1);
    info->instant = out;
    out->active = mapped_ram_instant_active();
    out->reason = g_strdup(last_reason);
    if (!valid) {
        return;
    }
    info->load_done = loaded + lazy.length - lazy.missing;
    info->channels = lazy.workers;
    out->total = lazy.total;
    out->fault_bytes = lazy.fault_bytes;
    out->background_bytes = lazy.background_bytes;
    out->moved_bytes = lazy.moved_bytes;
    out->faults = lazy.faults;
    out->zero_faults = lazy.zero_faults;
    out->fault_median = lazy.median_us;
    out->fault_p99 = lazy.p99_us;
    out->fault_slowest = lazy.slowest_us;
    out->fault_slowest_offset = lazy.slowest_offset;
}
