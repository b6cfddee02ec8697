# SPDX-License-Identifier: GPL-2.0-or-later
"""Saves and restores that are interrupted: their remains take no space and
cannot be restored, and other data is preserved."""

import errno
import os
import time

from lab import fs
from lab.qmp import QMPClosed, QMPError
from lab.vm import Exited, Mode

from .checks import check_error, check_leftover, good_save
from .faults import faulty, forget_holds, stalls
from .harness import test

MIB = 1 << 20
RAM = 64
GUEST = {'dirty': 32}
MODES = [Mode(4, True), Mode(0)]
HEAD = bytes(range(256)) * 4096         # data before offset=
OFFSET = len(HEAD)


def wait_written(vm, size):
    """Waits until the save has written `size` bytes to the disk."""
    while vm.written() < size:
        status = vm.migration()['status']
        assert status in ('setup', 'active'), f'the save {status}'
        time.sleep(0.01)


def cancelled(t, path, mode):
    vm = t.source(ram=RAM, guest=GUEST)
    vm.setup(mode, max_bandwidth=8 * MIB, downtime_limit=1)
    vm.start_save(f'file:{path},offset={OFFSET}')
    wait_written(vm, 8 * MIB)
    vm.command('migrate_cancel')
    status = vm.wait_migration()['status']
    assert status == 'cancelled', status
    return vm


def failed(t, path, mode):
    """Runs a save that fails at a late write, when much has been written."""
    vm = t.source(ram=RAM, guest=GUEST, emulator=faulty(
        t, os.path.basename(path), 'write:40+:5'))
    check_error(vm.try_save(f'file:{path},offset={OFFSET}', mode),
                os.strerror(errno.EIO))
    return vm


@test('stopped: a save that ends early gives its space back', quick=True,
      timeout=400)
def test_space(t):
    for kind in ('ext4', 'xfs', 'btrfs'):
        target = t.filesystem(kind, 400 * MIB)
        path = os.path.join(target, 'image')
        for mode in MODES:
            for stop in (cancelled, failed):
                what = f'{kind}, {mode}, {stop.__name__}'
                with open(path, 'wb') as f:
                    f.write(HEAD)
                os.sync()
                free = fs.free_bytes(target)
                vm = stop(t, path, mode)
                # When the failure is reported, the space is already
                # available to the next save
                info = os.stat(path)
                assert info.st_size == OFFSET, \
                    f'{what}: {info.st_size} bytes are left'
                os.sync()
                kept = free - fs.free_bytes(target)
                assert kept < 2 * MIB, f'{what}: it keeps {kept} bytes'
                check_head(path, what)
                vm.ticks_on()
                check_leftover(t, path, mode, RAM)
                vm.kill()


def check_head(path, what):
    with open(path, 'rb') as f:
        assert f.read(OFFSET) == HEAD, \
            f'{what}: what lay before offset= has changed'


@test('stopped: what is left on a block device does not restore', quick=True)
def test_device(t):
    device = t.loop(t.path('disk'), 160 * MIB)
    uri = f'file:{device},offset={OFFSET}'
    for mode in MODES:
        for stop in (cancelled, failed):
            what = f'{mode}, {stop.__name__}'
            # Save over a good image, which must become invalid, too
            vm = t.source(ram=RAM, guest=GUEST)
            vm.save(uri, mode)
            vm.kill()
            with open(device, 'r+b') as f:
                f.write(HEAD)
            vm = stop(t, device, mode)
            check_head(device, what)
            vm.ticks_on()
            dst = t.vm(incoming=True, ram=RAM)
            assert dst.try_load(uri, mode) is not None, \
                f'{what}: what is left can be restored'
            dst.kill()
            good_save(t, vm, mode)
            vm.kill()


@test('stopped: QEMU is told to quit in the middle', quick=True, timeout=300)
def test_quit(t):
    """QEMU exits properly and soon; the image is invalid."""
    path = t.path('image')
    good = t.path('good')
    vm = t.source(ram=RAM, guest=GUEST)
    vm.save(f'file:{good}', MODES[0])
    vm.kill()
    for mode in MODES:
        for written in (0, 1, 8 * MIB, 32 * MIB):
            vm = t.source(ram=RAM, guest=GUEST)
            vm.setup(mode, max_bandwidth=8 * MIB, downtime_limit=1)
            vm.start_save(f'file:{path}')
            wait_written(vm, written)
            leave(vm, f'quit after {written} bytes of a save, {mode}')
            check_leftover(t, path, mode, RAM)
        for reads in range(4):
            dst = t.vm(incoming=True, ram=RAM, emulator=faulty(
                t, 'good', 'read:b3:stall=1', 'read:b4:stall=1',
                'read:d1+:stall=1'))
            dst.setup(mode)
            dst.command('migrate-incoming', {'uri': f'file:{good}'})
            # A restore without O_DIRECT has two such reads
            while stalls(t).count('stall') < min(reads, 3 if mode.direct
                                                 else 2):
                dst.raise_if_dead()
                time.sleep(0.01)
            leave(dst, f'quit at slow read {reads} of a restore, {mode}')
            forget_holds(t)


def leave(vm, what):
    try:
        vm.command('quit')
    except (QMPClosed, QMPError):
        pass
    except Exited as err:
        assert err.code == 0, f'{what}: {err}'
    try:
        vm.raise_if_dead(wait=30)
    except Exited as err:
        assert err.code == 0, f'{what}: {err}'
        return
    raise AssertionError(f'{what}: it is still there')
