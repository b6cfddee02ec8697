# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices, 16 KiB sectors, and disks whose backing storage runs out."""

import os
import time

from lab import fs
from lab.vm import Mode

from .checks import ALL_MODES, DIRTY, SOME_MODES, case, check_error, \
    check_leftover, each, file_hash, good_save
from .faults import broken
from .harness import Skip, test

MIB = 1 << 20


@test('devices: a block device as the target',
      quick=True, stock='failed to truncate')
def test_block_device(t):
    device = t.loop(t.path('disk'), 512 * MIB)
    for mode in [Mode(0), Mode(4, True)] if t.config.quick else ALL_MODES:
        for offset in ('', ',offset=1M'):
            vm = t.source(guest=DIRTY)
            vm.save(f'file:{device}{offset}', mode)
            want = vm.ram_hash()
            vm.kill()
            t.restores(f'file:{device}{offset}', want, mode).kill()
            t.restores(f'file:{device}{offset}', want, Mode(2)).kill()


@test('devices: QMP does not wait for a slow block device', quick=True)
def test_slow_device(t):
    """The page cache holds what was written; the last to close the device has
    to wait until it is on the disk."""
    for mode, cancel in ((Mode(0), True), (Mode(4, True), True),
                         (Mode(0), False)):
        with case(f'{mode}{", cancelled" if cancel else ""}'):
            disk = broken(t, ('write', range(1, 1 << 30), 'hold'),
                          armed=False)
            t.open(t.path('disk'), os.O_RDWR | os.O_CREAT)
            device = t.loop(os.path.join(disk.mount, 'disk'), 512 * MIB)
            vm = t.source(ram=64)
            # So slow that the save does not end before the disk hangs
            vm.setup(mode, max_bandwidth=MIB, file_sync=False)
            vm.start_save(f'file:{device}')
            vm.wait_until(lambda: vm.written() >= MIB)
            disk.arm()
            if cancel:
                vm.command('migrate_cancel')
            else:
                vm.command('migrate-set-parameters',
                           {'max-bandwidth': 1 << 40})
            vm.wait_until(lambda: disk.held)
            for _ in range(30):
                vm.command('query-status', timeout=30)
                time.sleep(0.1)
            assert disk.held, 'the disk did not hang all the time'
            disk.release()
            assert vm.wait_migration()['status'] == \
                ('cancelled' if cancel else 'completed')
            vm.kill()


@test('devices: a block device that is too small', quick=True)
def test_small_device(t):
    device = t.loop(t.path('disk'), 48 * MIB)

    def one(mode):
        vm = t.source(guest=DIRTY)
        info = vm.try_save(f'file:{device}', mode)
        check_error(info, device)
        vm.ticks_on()
        check_leftover(t, device, mode)
        good_save(t, vm, mode)
        vm.kill()
    each(SOME_MODES, one)


@test('devices: a device with room for RAM, but not for the rest',
      quick=True)
def test_little_room(t):
    """That is known before the previous image is lost."""
    vm = t.source(guest=DIRTY)
    mode = Mode(2, True)
    vm.save(f'file:{t.path("image")}', mode)
    total = vm.migration()['ram']['total']
    vm.command('cont')
    device = t.loop(t.path('disk'), (total // MIB + 1) * MIB)
    with open(device, 'wb') as f:
        f.write(os.urandom(MIB))
    before = file_hash(device)
    check_error(vm.try_save(f'file:{device}', mode), device, 'needs more than')
    assert file_hash(device) == before, 'it was overwritten'
    vm.ticks_on()


def check_restores(t, path):
    for mode in [Mode(0), Mode(2, True)] if t.config.quick else ALL_MODES:
        for guest in ({}, {'dirty': 64, 'pause': 20000}):
            with case(mode):
                vm = t.source(guest=guest)
                vm.save(f'file:{path}', mode)
                want = vm.ram_hash()
                vm.kill()
                t.restores(f'file:{path}', want, mode).kill()


@test('devices: sectors of 16 KiB', quick=True)
def test_big_sectors(t):
    try:
        device = t.loop(t.path('disk'), 512 * MIB, sector_size=16384)
    except OSError as err:
        raise Skip(f'no sectors of 16 KiB here: {err}') from None
    check_restores(t, device)


@test('devices: xfs on sectors of 16 KiB', quick=True)
def test_xfs(t):
    try:
        target = t.filesystem('xfs', 640 * MIB, sector_size=16384,
                              mkfs=('-b', 'size=16384', '-s', 'size=16384'))
    except OSError as err:
        raise Skip(f'no such file system here: {err}') from None
    check_restores(t, os.path.join(target, 'image'))


@test('devices: 16 KiB sectors read an image saved on 512-byte ones',
      quick=True, stock='SIGSEGV')
def test_moved_to_big_sectors(t):
    try:
        device = t.loop(t.path('disk'), 512 * MIB, sector_size=16384)
    except OSError as err:
        raise Skip(f'no sectors of 16 KiB here: {err}') from None
    vm = t.source()
    vm.save(f'file:{t.path("image")}', Mode(4, True))
    want = vm.ram_hash()
    vm.kill()
    fs.run('dd', f'if={t.path("image")}', f'of={device}', 'bs=1M',
           'conv=notrunc,fsync')
    for mode in (Mode(4, True), Mode(1, True), Mode(0)):
        t.restores(f'file:{device}', want, mode).kill()


@test('devices: the disk runs out beneath, found at write or at sync',
      quick=True, timeout=240)
def test_thin(t):
    """A sparse disk image in a full file system: buffered writes succeed and
    are lost when the kernel writes them back."""
    small = t.filesystem('tmpfs', 48 * MIB, name='small')
    device = t.loop(os.path.join(small, 'disk'), 400 * MIB)

    def one(mode):
        vm = t.source(guest=DIRTY)
        info = vm.try_save(f'file:{device}', mode)
        check_error(info, device)
        vm.ticks_on()
        good_save(t, vm, mode)
        vm.kill()
    each(SOME_MODES, one)
    os.truncate(os.path.join(small, 'disk'), 0)


@test('devices: ext4 on a disk that runs out beneath')
def test_thin_ext4(t):
    for mode in SOME_MODES:
        small = t.filesystem('tmpfs', 48 * MIB, name=f'small{mode.channels}'
                             f'{mode.direct}')
        target = t.filesystem('ext4', 400 * MIB, name=f'e{mode.channels}'
                              f'{mode.direct}',
                              backing=os.path.join(small, 'disk'),
                              mkfs=('-E', 'lazy_itable_init=1', '-J',
                                    'size=4'), options='errors=continue')
        path = os.path.join(target, 'image')
        vm = t.source(guest=DIRTY)
        info = vm.try_save(f'file:{path}', mode)
        with case(mode):
            check_error(info, path)
            vm.ticks_on()
            good_save(t, vm, mode)
        vm.kill()
