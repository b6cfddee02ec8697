# SPDX-License-Identifier: GPL-2.0-or-later
"""Internal snapshots while capability mapped-ram is set.  QEMU 10.2 and later
save them with mapped-ram, in its own code; earlier versions of the series as
if it were not set."""

import struct

from lab.memory import huge_pages
from lab.vm import Mode

from .checks import check_error
from .harness import Skip, test
from .instant import begin, check_complete, saved
from .snapshots import add_disk, snapshot

RAM = 64


def with_disk(t, path, create=False, emulator=None, mapped_ram=True):
    vm = t.source(ram=RAM, emulator=emulator)
    add_disk(vm, path, create)
    vm.set_capabilities('mapped-ram', state=mapped_ram)
    return vm


def check_loads(vm, tag, want):
    said = snapshot(vm, 'snapshot-load', tag)
    assert said is None, f'{said}: {vm.stderr()}'
    assert vm.ram_hash() == want, 'RAM is not as in the snapshot'
    vm.command('cont')
    vm.ticks_on()
    vm.wait_guest('sweep')


def changed(vm, want):
    """Lets the guest run until its RAM differs."""
    vm.command('cont')
    vm.ticks_on()
    vm.command('stop')
    assert vm.ram_hash() != want


def is_mapped(disk):
    """Returns whether a disk has a snapshot in which the header of mapped-ram
    follows the name and the length of a block of RAM."""
    with open(disk, 'rb') as f:
        return b'\6pc.ram' + struct.pack('>QIQ', RAM << 20, 1, 4096) in f.read()


@test('snapshot: with mapped-ram, RAM is as it was', quick=True)
def test_mapped_ram(t):
    disk = t.path('disk.qcow2')
    vm = with_disk(t, disk, create=True)
    vm.command('stop')
    want = vm.ram_hash()
    assert snapshot(vm, 'snapshot-save', 'one') is None
    assert is_mapped(disk) == vm.emulator.at_least(10, 2)
    changed(vm, want)
    check_loads(vm, 'one', want)
    # Saving and loading again in the same process, with the monitor
    vm.command('stop')
    want = vm.ram_hash()
    assert vm.hmp('savevm two') == ''
    changed(vm, want)
    assert vm.hmp('loadvm two') == ''
    assert vm.ram_hash() == want, 'RAM is not as in the snapshot'
    # Nor does it disturb what follows
    vm.command('cont')
    vm.ticks_on()
    path = t.path('image')
    vm.save(f'file:{path}', Mode(2, True))
    t.restores(f'file:{path}', vm.ram_hash(), Mode(2, True), ram=RAM)
    vm.kill()


@test('snapshot: after a save and a restore with mapped-ram', quick=True)
def test_after_save(t):
    disk, path = t.path('disk.qcow2'), t.path('image')
    src = with_disk(t, disk, create=True)
    src.save(f'file:{path}', Mode(0))
    image = src.ram_hash()
    changed(src, image)
    saved = src.ram_hash()
    assert snapshot(src, 'snapshot-save', 'saved') is None
    src.kill()
    dst = t.restores(f'file:{path}', image, Mode(0), ram=RAM)
    add_disk(dst, disk)
    dst.command('stop')
    restored = dst.ram_hash()
    assert snapshot(dst, 'snapshot-save', 'restored') is None
    check_loads(dst, 'saved', saved)
    dst.command('stop')
    check_loads(dst, 'restored', restored)


@test('snapshot: loaded after a save that failed', quick=True)
def test_after_failure(t):
    """The error of the save is not one of the load."""
    vm = with_disk(t, t.path('disk.qcow2'), create=True)
    vm.command('stop')
    want = vm.ram_hash()
    assert snapshot(vm, 'snapshot-save', 'one') is None
    changed(vm, want)
    path = t.path('missing/image')
    check_error(vm.try_save(f'file:{path}', Mode(0)), path)
    check_loads(vm, 'one', want)


@test('snapshot: after an instant restore into huge pages', quick=True)
def test_after_instant(t):
    """The capability postcopy-ram is still set, with which a stream has the
    size of such pages."""
    t.need_root()
    disk, path = t.path('disk.qcow2'), t.path('image')
    saved(t, path, Mode(0), RAM)
    backend = f'memory-backend-memfd,id=pc.ram,size={RAM}M,hugetlb=on,' \
              'hugetlbsize=2M'
    with huge_pages(RAM + 2) as free:
        if not free:
            raise Skip('the host has no huge pages to give')
        vm = t.vm(incoming=True, ram=RAM, args=(
            '-object', backend, '-machine', 'memory-backend=pc.ram'))
        begin(vm, f'file:{path}', Mode(0))
        check_complete(t, vm)
        want = vm.ram_hash()
        add_disk(vm, disk, create=True)
        assert snapshot(vm, 'snapshot-save', 'one') is None
        changed(vm, want)
        check_loads(vm, 'one', want)
        vm.kill()


@test('snapshot: whether mapped-ram must be set to load one', quick=True)
def test_capability(t):
    """It is part of the format since 10.2, as without the series."""
    disk = t.path('disk.qcow2')
    src = with_disk(t, disk, create=True)
    src.command('stop')
    want = {}
    for state in True, False:
        src.set_capabilities('mapped-ram', state=state)
        want[state] = src.ram_hash()
        tag = f'mapped-ram {state}'
        assert snapshot(src, 'snapshot-save', tag) is None
        changed(src, want[state])
    src.kill()
    for state in True, False:
        vm = with_disk(t, disk, mapped_ram=not state)
        vm.command('stop')
        tag = f'mapped-ram {state}'
        if vm.emulator.at_least(10, 2):
            said = snapshot(vm, 'snapshot-load', tag)
            assert said, 'it was loaded'
            assert 'Capability mapped-ram is' in vm.stderr(), vm.stderr()
            vm.set_capabilities('mapped-ram', state=state)
        check_loads(vm, tag, want[state])
        vm.kill()


@test('snapshot: exchanged with stock QEMU', quick=True)
def test_stock(t):
    """Stock QEMU 10.0 cannot make one with mapped-ram, ours can do without."""
    stock = t.config.stock
    if not stock:
        raise Skip('no stock QEMU: give --stock')
    mapped_ram = t.config.ours.at_least(10, 2) and stock.at_least(10, 2)
    for saver, loader in ((stock, t.config.ours), (t.config.ours, stock)):
        disk = t.path(f'{saver.name}.qcow2')
        src = with_disk(t, disk, True, saver, mapped_ram)
        src.command('stop')
        want = src.ram_hash()
        assert snapshot(src, 'snapshot-save', 'one') is None
        src.kill()
        dst = with_disk(t, disk, False, loader, mapped_ram)
        dst.command('stop')
        check_loads(dst, 'one', want)
        dst.kill()
