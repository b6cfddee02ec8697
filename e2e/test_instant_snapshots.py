# SPDX-License-Identifier: GPL-2.0-or-later
"""Internal snapshots while RAM is still being loaded."""

from .checks import case, expect_error
from .harness import test
from .instant import HELD, RAM, check_complete, restore
from .snapshots import add_disk, snapshot


@test('instant: no snapshot is made or loaded meanwhile', quick=True)
def test_snapshots(t):
    disk = t.path('disk.qcow2')
    src = t.source(ram=RAM)
    src.command('stop')
    older = src.ram_hash()
    add_disk(src, disk, create=True)
    assert snapshot(src, 'snapshot-save', 'older') is None
    src.command('blockdev-del', {'node-name': 'disk'})
    src.command('cont')
    src.ticks_on()
    faults, path, want, vm, _ = restore(t, HELD, source=src)
    assert want != older
    add_disk(vm, disk)
    vm.set_capabilities('postcopy-ram', 'multifd', 'mapped-ram', state=False)
    for command in ('snapshot-save', 'snapshot-load'):
        with case(command):
            said = snapshot(vm, command, 'older')
            assert said and 'still being loaded' in said and path in said, said
    said = vm.hmp('loadvm older')
    assert 'still being loaded' in said, said
    with expect_error('device state was loaded', 'still being loaded', path):
        vm.command('xen-load-devices-state', {'filename': disk})
    faults.release()
    check_complete(t, vm, want)
    assert snapshot(vm, 'snapshot-load', 'older') is None
    assert vm.ram_hash() == older, 'RAM is not as in the snapshot'
    vm.command('cont')
    vm.ticks_on()
    vm.wait_guest('sweep')


@test('instant: a snapshot that is not loaded leaves the guest running',
      quick=True)
def test_running(t):
    faults, _, _, vm, _ = restore(t, HELD)
    vm.command('cont')
    said = vm.hmp('loadvm x')
    assert 'still being loaded' in said, said
    assert vm.command('query-status')['status'] == 'running'
    faults.release()
    check_complete(t, vm)
    vm.ticks_on()
    vm.wait_guest('sweep')
