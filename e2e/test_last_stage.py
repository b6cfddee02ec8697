# SPDX-License-Identifier: GPL-2.0-or-later
"""The last stage of a live save, on a disk that hangs: the guest does not
wait for the disk when the save fails or is cancelled, and QMP never does."""

import errno
import fcntl
import os
import struct
import time

from lab.vm import Mode

from .checks import case, check_error, check_leftover, expect_error, \
    good_save, never_stopped
from .faults import UNFLUSHABLE, broken, held_save, let_flush_fail, \
    open_gate, stalls
from .harness import Skip, test
from .last_stage import DIRECT, GUEST, RAM, at_switchover, hung, wait_for


def check_runs(t, fs, vm):
    """Checks that the guest continues although the disk hangs, and that no new
    save begins."""
    vm.wait_runstate('running')
    vm.wait_guest('tick', 3)
    with expect_error('a second save began before the first had ended'):
        vm.start_save(f'file:{t.path("second")}')
    assert fs.held, 'the disk did not hang all the time'
    fs.release()
    info = vm.wait_migration()
    check_leftover(t, t.path('image'), DIRECT, RAM)
    vm.ticks_on()
    vm.set_capabilities('pause-before-switchover', state=False)
    good_save(t, vm, DIRECT)
    vm.kill()
    return info


def check_completes(t, fs, vm, mode=DIRECT):
    """Checks that the save completes when the disk no longer hangs."""
    assert fs.held, 'the disk did not hang all the time'
    fs.release()
    info = vm.wait_migration()
    assert info['status'] == 'completed', info
    want = vm.ram_hash()
    vm.kill()
    t.restores(f'file:{t.path("image")}', want, mode, ram=RAM).kill()


@test('last stage: cancelled while the disk hangs, the guest runs', quick=True,
      timeout=240)
def test_cancel(t):
    for kind in ('direct write', 'buffered write', 'sync'):
        fs, vm = hung(t, (kind, range(1, 3), 'hold'))
        assert vm.command('query-status')['status'] == 'finish-migrate'
        vm.command('migrate_cancel')
        assert check_runs(t, fs, vm)['status'] == 'cancelled'


@test('last stage: too late to cancel once the image is valid', quick=True)
def test_committed(t):
    """The first two syncs, one for each descriptor, come before the magic
    number is written; the third one hangs."""
    fs, vm = hung(t, ('sync', range(3, 4), 'hold'))
    vm.command('migrate_cancel')
    assert vm.command('query-status')['status'] == 'finish-migrate', \
        'the guest runs while its image is valid'
    check_completes(t, fs, vm)


@test('last stage: the last sync fails, and no image is left', quick=True)
def test_last_sync(t):
    fs = broken(t, ('sync', range(4, 5), errno.EIO))
    path = os.path.join(fs.mount, 'image')
    vm = t.source(ram=RAM, guest=GUEST)
    vm.command('stop')
    info = vm.try_save(f'file:{path}', DIRECT)
    assert fs.hits, 'there were fewer syncs'
    check_error(info, path, os.strerror(errno.EIO))
    check_leftover(t, t.path('image'), DIRECT, RAM)
    assert not any('Unable to discard' in line for line in vm.errors())
    vm.command('cont')
    vm.ticks_on()


@test('last stage: no sync succeeds, also not that of the discarded image',
      quick=True)
def test_discard_sync(t):
    """The disk may still have the valid image, so the operator must know."""
    fs = broken(t, ('sync', range(4, 1 << 30), errno.EIO))
    path = os.path.join(fs.mount, 'image')
    vm = t.source(ram=RAM, guest=GUEST)
    vm.command('stop')
    check_error(vm.try_save(f'file:{path}', DIRECT), path,
                os.strerror(errno.EIO))
    said = [line for line in vm.errors() if 'Unable to discard' in line]
    assert said and path in said[0], vm.errors()
    vm.command('cont')
    vm.ticks_on()


@test('cancel: the guest is not throttled while the disk hangs', quick=True,
      timeout=300)
def test_throttled(t):
    bandwidth = 8 << 20
    while not (begun := begin_throttled(t, bandwidth)):
        # The guest got little CPU time, and so changed few pages
        bandwidth //= 2
    fs, vm = begun
    vm.command('migrate_cancel')
    wait_for(vm, 'the guest was released', lambda: not is_throttled(vm))
    assert fs.held, 'the disk did not hang all the time'
    fs.release()
    assert vm.wait_migration()['status'] == 'cancelled'


def is_throttled(vm):
    return 'cpu-throttle-percentage' in vm.migration()


def begin_throttled(t, bandwidth):
    """Starts a save whose guest is throttled, and whose disk then hangs;
    returns None if it has completed before."""
    fs = broken(t, ('direct write', range(1, 1 << 30), 'hold'), armed=False)
    vm = t.source(ram=RAM, guest=GUEST)
    vm.setup(DIRECT, max_bandwidth=bandwidth, downtime_limit=1,
             cpu_throttle_initial=99, throttle_trigger_threshold=1)
    vm.set_capabilities('auto-converge')
    vm.start_save(f'file:{os.path.join(fs.mount, "image")}')
    try:
        wait_for(vm, 'the guest was throttled', lambda: is_throttled(vm))
        fs.arm()
        wait_for(vm, 'the disk hung', lambda: fs.held)
    except AssertionError as err:
        if 'completed before' not in str(err):
            raise
        vm.kill()
        return None
    return fs, vm


@test('last stage: a valid image is gone before the guest runs', quick=True)
def test_undo(t):
    """A sync fails after the magic number has been written, so the file is
    truncated.  Until that is synced, a loss of power could restore the magic
    number."""
    fs, vm = hung(t, ('sync', range(3, 4), errno.EIO),
                  ('sync', range(4, 5), 'hold'))
    assert vm.command('query-status')['status'] == 'finish-migrate'
    assert os.path.getsize(t.path('image')) == 0
    fs.release()
    check_error(vm.wait_migration(), os.path.join(fs.mount, 'image'),
                os.strerror(errno.EIO))
    vm.ticks_on()


@test('last stage: a disk cannot be flushed, the guest runs', quick=True)
def test_unflushable(t):
    modes = ['normal']
    if t.config.ours.at_least(8, 2):
        modes.append('cpr-reboot')
    for mode in modes:
        vm = t.source(ram=RAM, guest=GUEST, args=UNFLUSHABLE)
        vm.setup(DIRECT)
        if mode != 'normal':
            vm.command('migrate-set-parameters', {'mode': mode})
        let_flush_fail(vm)
        with case(mode):
            vm.start_save(f'file:{t.path("image")}')
            assert vm.wait_migration()['status'] == 'failed'
            vm.ticks_on()
            vm.kill()


@test('cpr-reboot: the guest and QMP do not wait for the disk', quick=True,
      timeout=240)
def test_cpr(t):
    """The guest is stopped all the time."""
    if not t.config.ours.at_least(8, 2):
        raise Skip(f'QEMU {t.config.ours.version} has no parameter "mode"')

    def begin(*faults):
        fs = broken(t, *faults)
        vm = t.source(ram=RAM, guest=GUEST)
        vm.setup(DIRECT)
        vm.command('migrate-set-parameters', {'mode': 'cpr-reboot'})
        vm.start_save(f'file:{os.path.join(fs.mount, "image")}')
        wait_for(vm, 'the disk hung', lambda: fs.held)
        return fs, vm

    fs, vm = begin(('direct write', range(1, 3), 'hold'))
    vm.command('migrate_cancel')
    assert check_runs(t, fs, vm)['status'] == 'cancelled'

    fs, vm = begin(('direct write', range(1, 2), 'hold'),
                   ('direct write', range(10, 11), errno.EIO))
    check_error(check_runs(t, fs, vm), 'image', os.strerror(errno.EIO))
    os.unlink(t.path('image'))

    for nth in range(1, 40):
        try:
            fs, vm = begin(('buffered write', range(nth, nth + 1), 'hold'))
        except AssertionError as err:
            # There are fewer writes: all have been held.
            assert 'completed before the disk hung' in str(err), err
            break
        for _ in range(10):
            vm.command('query-status', timeout=30)
        vm.command('migrate_cancel')
        fs.release()
        assert vm.wait_migration()['status'] in ('cancelled', 'completed')
        vm.kill()
        os.unlink(t.path('image'))
    assert nth > 7, f'only {nth - 1} writes were held'


@test('last stage: no snapshot is made or loaded meanwhile', quick=True)
def test_snapshots(t):
    # With multifd, newer versions of QEMU refuse snapshots anyway
    fs, vm = hung(t, ('buffered write', range(1, 2), 'hold'), mode=Mode(0))
    for command in ('savevm x', 'loadvm x'):
        said = vm.hmp(command)
        assert 'being saved to' in said and fs.mount in said, said
    for command in ('xen-save-devices-state', 'xen-load-devices-state'):
        with expect_error(f'{command} was accepted', 'being saved to',
                          fs.mount):
            vm.command(command, {'filename': t.path('devices')})
    check_completes(t, fs, vm, Mode(0))


@test('live: a snapshot that may not be loaded leaves the guest running',
      quick=True)
def test_refused_loadvm(t):
    vm = held_save(t, Mode(0), 'sync:1', ram=RAM, guest=GUEST)
    said = vm.hmp('loadvm x')
    assert 'being saved to' in said, said
    assert vm.command('query-status')['status'] == 'running'
    open_gate(t)
    assert vm.wait_migration()['status'] == 'completed'


@test('last stage: a guest that is stopped meanwhile stays stopped',
      quick=True)
def test_stop(t):
    fs, vm = hung(t, ('direct write', range(1, 3), 'hold'))
    vm.command('stop')
    vm.command('migrate_cancel')
    vm.wait_runstate('paused')
    fs.release()
    assert vm.wait_migration()['status'] == 'cancelled'
    assert vm.command('query-status')['status'] == 'paused'
    vm.command('cont')
    vm.ticks_on()


@test('last stage: failed, and another process uses the disk then',
      quick=True)
def test_busy_disk(t):
    """At the end of the last stage QEMU lets go of the guest's disks.  If it
    cannot get them back, the guest waits for `cont`."""
    if not t.config.ours.at_least(10, 2):
        raise Skip('older ones do not notice that they have no disk')
    disk = t.path('disk')
    with open(disk, 'wb') as f:
        f.truncate(1 << 20)
    fs = broken(t, ('sync', range(1, 2), 'hold'),
                ('sync', range(2, 3), errno.EIO), armed=False)
    vm = at_switchover(t, fs, args=('-drive', f'file={disk},format=raw'))
    with open(disk, 'r+b') as user:
        fcntl.fcntl(user, fcntl.F_OFD_SETLK, struct.pack(
            'hhqqi', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        fs.release()
        info = vm.wait_migration()
        check_error(info, os.path.join(fs.mount, 'image'),
                    os.strerror(errno.EIO))
        assert vm.command('query-status')['status'] == 'paused'
        with expect_error('the guest runs without its disk'):
            vm.command('cont')
    vm.command('cont')
    vm.ticks_on()


@test('setup: QMP answers while a write or sync does not end', quick=True)
def test_setup(t):
    """A refused device_add waits for the end of all RCU sections.  TCG may run
    for long within one, so the guest is stopped."""
    for kind, nth in (('sync', 1), *(('buffered write', n)
                                     for n in range(1, 6))):
        with case(f'{kind} {nth}'):
            fs = broken(t, (kind, range(nth, nth + 1), 'hold'))
            vm = t.source(ram=RAM, guest=GUEST)
            vm.command('stop')
            vm.setup(DIRECT)
            with open(os.path.join(fs.mount, 'image'), 'wb') as f:
                vm.command('getfd', {'fdname': 'image'}, fds=[f.fileno()])
            vm.start_save('fd:image')
            wait_for(vm, 'the disk hung', lambda: fs.held)
            with expect_error('a device was added during a migration'):
                vm.command('device_add', {'driver': 'pci-testdev'},
                           timeout=30)
            check_completes(t, fs, vm)


@test('last stage: the RAM of a stopped guest is written before', quick=True)
def test_stopped(t):
    """With such a limit on the downtime, all of RAM would be written in the
    last stage if the guest ran; write 20 is of the second half."""
    fs = broken(t, ('direct write', range(20, 21), 'hold'))
    vm = t.source(ram=RAM, guest=GUEST)
    vm.wait_guest('sweep')
    vm.command('stop')
    vm.setup(DIRECT, max_bandwidth=16 << 20, downtime_limit=2000000)
    vm.start_save(f'file:{os.path.join(fs.mount, "image")}')
    wait_for(vm, 'the disk hung', lambda: fs.held)
    assert vm.command('query-status')['status'] == 'paused'
    check_completes(t, fs, vm)


@test('last stage: failed while the disk hangs, the guest runs', quick=True,
      timeout=240)
def test_failure(t):
    """The failure comes late, when all writes have been submitted; often one
    worker has both of them."""
    second = ('direct write', range(2, 3))
    for mode in (Mode(1, True), DIRECT, Mode(1, True)):
        with case(mode):
            fs, vm = hung(t, ('direct write', range(1, 2), 'hold'),
                          (*second, 0.5), (*second, errno.EIO), mode=mode)
            info = check_runs(t, fs, vm)
            check_error(info, os.path.join(fs.mount, 'image'),
                        os.strerror(errno.EIO))
        os.unlink(t.path('image'))


@test('last stage: what was written is synced while the guest runs',
      quick=True)
def test_early_sync(t):
    vm = held_save(t, Mode(0), 'sync:1', ram=RAM, guest=GUEST)
    assert vm.command('query-status')['status'] == 'running'
    assert vm.migration()['direct-io']['phase'] == 'sync'
    vm.wait_guest('tick', 3)
    assert stalls(t) == ['stall'], 'the sync was not held all the time'
    never_stopped(vm)
    open_gate(t)
    info = vm.wait_migration()
    assert info['status'] == 'completed', info
    want = vm.ram_hash()
    vm.kill()
    t.restores(f'file:{t.path("image")}', want, ram=RAM)


@test('last stage: QMP answers while the end of a save does not end',
      quick=True, timeout=240)
def test_buffered_writes(t):
    """Holds each write of the main stream: bitmaps, devices, the magic."""
    for nth in range(1, 40):
        fs = broken(t, ('buffered write', range(nth, nth + 1), 'hold'),
                    armed=False)
        try:
            vm = at_switchover(t, fs)
        except AssertionError as err:
            # There are fewer writes: all have been held.
            assert 'completed before the disk hung' in str(err), err
            break
        assert vm.command('query-status')['status'] == 'finish-migrate'
        check_completes(t, fs, vm)
        os.unlink(t.path('image'))
    # A bitmap for each block of RAM, the state of devices, the magic
    assert nth > 7, f'only {nth - 1} writes were held'


@test('restore: QMP answers while a read of the main stream does not end',
      quick=True, timeout=240)
def test_buffered_reads(t):
    vm = t.source(ram=RAM, guest=GUEST)
    vm.save(f'file:{t.path("image")}', DIRECT)
    want = vm.ram_hash()
    vm.kill()
    for nth in range(1, 5):
        fs = broken(t, ('buffered read', range(nth, nth + 1), 'hold'))
        dst = t.vm(incoming=True, ram=RAM)
        dst.setup(DIRECT)
        dst.command('migrate-incoming',
                    {'uri': f'file:{os.path.join(fs.mount, "image")}'})
        wait_for(dst, 'the disk hung', lambda: fs.held)
        assert dst.command('query-status')['status'] == 'inmigrate'
        assert fs.held, 'the disk did not hang all the time'
        fs.release()
        info = dst.wait_migration()
        assert info['status'] == 'completed', info
        assert dst.ram_hash() == want, 'restored RAM differs'
        dst.kill()
