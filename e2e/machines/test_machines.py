# SPDX-License-Identifier: GPL-2.0-or-later
"""A few tests of each kind on machines other than x86-64 under TCG.

kvm         KVM has its own dirty page log, and the kernel itself accesses
            pages that are not loaded.  The guest is small and slow, because
            KVM emulates each instruction on hosts without virtualization
            hardware.
aarch64     a different target, whose RAM does not start at address 0"""

import copy
import errno
import os
import time

from lab.content import MIB
from lab.guest import build_aarch64
from lab.vm import MACHINE, Mode

from ..checks import case, check_error, check_leftover, each
from ..faults import broken
from ..harness import Skip, test
from ..instant import ALL, DIRECT, HELD, LATER, RAM, check_complete, follows, \
    restore, saved
from ..last_stage import GO_ON, cancel_while_frozen, check_disk, \
    to_switchover

MODES = [Mode(0), Mode(1, True), Mode(4, True)]


class KVM:
    """x86-64."""

    ram_at = 0
    machine = MACHINE

    @staticmethod
    def of(t):
        """What t.vm() needs."""
        return {'guest': {'dirty': 2, 'check': 16, 'pause': 100,
                          'pages': 256}}


class AArch64:
    """The machine virt."""

    ram_at = 1 << 30
    machine = 'virt-7.2'

    @staticmethod
    def of(t):
        return {'guest': build_aarch64(t.dir), 'args': ('-cpu', 'cortex-a57')}


MACHINES = {'kvm': KVM, 'aarch64': AArch64}


def guest(t, **more):
    """The arguments of t.vm() for the machine under test."""
    kind = MACHINES[t.config.machine]
    found = {**kind.of(t), 'machine': kind.machine, 'ram_at': kind.ram_at}
    return {**found, **more, 'args': (*found.get('args', ()),
                                      *more.get('args', ()))}


def machines(name, *kinds, **kwargs):
    """Registers a test for some machines, or for all."""
    def register(function):
        for kind in kinds or MACHINES:
            test(f'{kind}: {name}', **kwargs)(function)
        return function
    return register


def source(t, **kwargs):
    """Starts a guest with random bytes in RAM that it never touches."""
    content = t.path('content')
    with open(content, 'wb') as f:
        f.write(os.urandom(32 * MIB))
    at = MACHINES[t.config.machine].ram_at + 16 * MIB
    return t.source(ram=RAM, **guest(t, args=(
        '-device', f'loader,file={content},addr={at:#x},force-raw=on')),
        **kwargs)


def restores(t, uri, want, mode, **kwargs):
    t.restores(uri, want, mode, ram=RAM, **guest(t), **kwargs).kill()


@machines('a live save is whole', timeout=300)
def test_live(t):
    """The guest writes during the save, while its dirty page log is read
    repeatedly."""
    def one(mode):
        path = t.path('image')
        src = source(t)
        # The first pass takes longer than any guest needs for its ticks
        src.setup(mode, max_bandwidth=MIB, downtime_limit=1)
        src.start_save(f'file:{path}')
        src.ticks_on(5)
        src.hurry()
        info = src.wait_migration()
        assert info['status'] == 'completed', info
        assert info['ram']['dirty-sync-count'] > 2, info['ram']
        want = src.ram_hash()
        src.kill()
        restores(t, f'file:{path}', want, mode)
        os.unlink(path)
    each(MODES, one)


@machines('a failed save leaves the guest running', timeout=300)
def test_failed(t):
    src = source(t)
    for mode in MODES:
        with case(mode):
            disk = broken(t, ('write', LATER, errno.EIO))
            path = os.path.join(disk.mount, 'image')
            check_error(src.try_save(f'file:{path}', mode),
                        'Input/output error')
            src.ticks_on()
            check_leftover(t, path, mode, ram=RAM, **guest(t))
    path = t.path('image')
    src.save(f'file:{path}', DIRECT)
    restores(t, f'file:{path}', src.ram_hash(), DIRECT)


def cancel_late(t, vm):
    """Saves, and sends a cancel while QEMU waits for the disk with the lock
    that the cancel needs.  Returns the result."""
    disk = broken(t, ('write', ALL, 'hold'), armed=False)
    to_switchover(vm, f'file:{disk.mount}/image', None)
    disk.arm()
    # QMP may not even answer this one while the disk hangs
    vm.qmp.send(*GO_ON)
    vm.wait_until(lambda: disk.held)
    vm.qmp.send('migrate_cancel')
    time.sleep(0.2)
    disk.release()
    for command in (GO_ON[0], 'migrate_cancel'):
        vm.qmp.answer(command)
    return vm.wait_migration()


@machines('a save is cancelled just before devices are saved', 'kvm')
def test_cancel_late(t):
    """KVM is asked for the state of the CPUs then, which releases the lock that
    the cancel has waited for.  The guest runs, and nothing more is saved."""
    src = t.source(ram=RAM, **guest(t, args=(
        '-smp', '4', '-device', 'virtio-scsi-pci',
        '-blockdev', 'null-co,node-name=d0,read-zeroes=on',
        '-device', 'scsi-hd,drive=d0')))
    # On a busy host the cancel may come when the image is complete
    while (info := cancel_late(t, src))['status'] == 'completed':
        src.command('cont')
    assert info['status'] == 'cancelled', info
    src.ticks_on()


@machines('a save is cancelled while a CPU is asked for its state', 'kvm')
def test_cancel_slow_cpu(t):
    """QEMU waits for the CPU without its lock.  The guest runs afterwards, and
    its disks are active."""
    vm = t.source(ram=RAM, **guest(t, args=(
        '-device', 'virtio-scsi-pci',
        '-blockdev', 'null-co,node-name=d0,read-zeroes=on',
        '-device', 'scsi-hd,drive=d0,id=disk')))
    for mode in (None, DIRECT):
        with case(str(mode)):
            info = cancel_while_frozen(vm, f'file:{t.path("image")}', mode)
            assert info['status'] == 'cancelled', info
            vm.ticks_on()
            check_disk(vm, 'disk')


@machines('a failed save ends the dirty limit', 'kvm')
def test_dirty_limit(t):
    """The limit belongs to the migration, if its capability is set."""
    if not t.config.ours.at_least(8, 1):
        raise Skip(f'{t.config.ours.version} has no capability dirty-limit')
    emulator = copy.copy(t.config.ours)
    emulator.accel += ',dirty-ring-size=4096'
    src = source(t, emulator=emulator)
    src.set_capabilities('dirty-limit')
    src.command('set-vcpu-dirty-limit', {'dirty-rate': 1000})
    assert src.command('query-vcpu-dirty-limit')
    disk = broken(t, ('write', LATER, errno.EIO))
    check_error(src.try_save(f'file:{disk.mount}/image', DIRECT),
                'Input/output error')
    assert not src.command('query-vcpu-dirty-limit'), 'it is still there'


@machines('images go to stock QEMU and back', 'kvm', timeout=300)
def test_stock(t):
    if not t.config.stock:
        raise Skip('no stock QEMU: give --stock')
    for saver, loader in ((t.config.ours, t.config.stock),
                          (t.config.stock, t.config.ours)):
        path = t.path('image')
        src = source(t, emulator=saver)
        src.save(f'file:{path}', DIRECT)
        want = src.ram_hash()
        src.kill()
        with case(f'saved by {saver.name}'):
            restores(t, f'file:{path}', want, DIRECT, emulator=loader)
        os.unlink(path)


@machines('RAM that follows the guest is what was saved', timeout=300)
def test_instant(t):
    for mode in MODES:
        with case(mode):
            path = t.path('image')
            want = saved(t, path, mode, source=source(t))
            follows(t, f'file:{path}', mode, want, **guest(t))
            os.unlink(path)


@machines('the guest runs, and writes, before its RAM is there', timeout=300)
def test_runs(t):
    disk, _, _, vm, info = restore(t, HELD, source=source(t), **guest(t))
    assert info['status'] == 'postcopy-active', info
    vm.command('cont')
    vm.wait_guest('sweep')
    info = vm.migration()
    assert info['status'] == 'postcopy-active', info
    disk.release()
    found = check_complete(t, vm)
    vm.wait_guest('sweep', 2)
    t.note(f'{found["faults"]} faults of {found["fault-median"]} us')


@machines('a disk that fails while the guest runs', timeout=300)
def test_error(t):
    """A vCPU thread waits for a page in the kernel.  If KVM itself waits, QEMU
    cannot stop the guest, but keeps running."""
    def wait_error():
        if t.config.machine != 'kvm':
            vm.wait_runstate('io-error')
        while 'error-desc' not in vm.migration():
            time.sleep(0.005)

    disk, path, _, vm, _ = restore(t, ('direct read', LATER, errno.EIO),
                                   source=source(t), **guest(t))
    for _ in range(3):
        vm.command('cont')
        wait_error()
    info = vm.migration()
    assert info['status'] == 'postcopy-active', info
    assert path in info['error-desc'], info
    disk.disarm()
    while vm.migration()['status'] != 'completed':
        vm.command('cont')
    check_complete(t, vm)
    vm.command('cont')
    vm.wait_guest('sweep', 2)


@machines('quit and kill while RAM is being loaded', timeout=300)
def test_quit(t):
    for how in ('quit', 'kill'):
        disk, path, want, vm, _ = restore(t, HELD, source=source(t),
                                          **guest(t))
        vm.command('cont')
        vm.wait_guest('tick')
        disk.release()
        if how == 'quit':
            vm.command('quit')
            assert vm.wait_exit() == 0
        vm.kill()
        restores(t, f'file:{path}', want, DIRECT)
