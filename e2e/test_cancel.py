# SPDX-License-Identifier: GPL-2.0-or-later
"""Saves that are cancelled: the guest continues, and the remains cannot be
restored."""

import random
import time

from lab.vm import Mode

from .checks import DIRTY, check_leftover, good_save
from .faults import forget_holds, held_save, open_gate, stalls
from .harness import test


def cancel_often(t, mode, count):
    """Runs many saves in one QEMU, and cancels each at a random moment."""
    rng = random.Random(mode.channels)
    # With less RAM, stock QEMU's bugs rarely show up here
    vm = t.source(ram=256, guest={'dirty': 128})
    path = t.path('image')
    uri = f'file:{path}'
    vm.setup(mode)
    descriptors = None
    results = {'completed': 0, 'cancelled': 0}
    longest = 0.3
    for i in range(count):
        vm.start_save(uri)
        time.sleep(rng.uniform(0, longest))
        vm.command('migrate_cancel')
        status = vm.wait_migration()['status']
        if status not in results:
            raise AssertionError(
                f'cancel {i}: {status}: {vm.migration().get("error-desc")}')
        results[status] += 1
        if status == 'completed':
            vm.command('cont')
            longest = max(0.02, longest * 0.9)  # cancel earlier next time
        vm.ticks_on(1)
        if i == 5:
            descriptors = vm.open_descriptors()
    t.note(f'{mode}: {results["cancelled"]} cancelled, '
           f'{results["completed"]} had completed')
    assert results['cancelled'], 'no save was cancelled'
    vm.wait_descriptors(descriptors)
    # The remains of a cancelled save cannot be restored
    while True:
        vm.start_save(uri)
        vm.command('migrate_cancel')
        if vm.wait_migration()['status'] == 'cancelled':
            break
        vm.command('cont')
    check_leftover(t, path, mode, vm.ram)
    vm.wait_guest('sweep')
    good_save(t, vm, mode)


def register_cancels():
    for channels, direct in ((0, False), (1, True), (2, True), (2, False),
                             (4, True), (8, True)):
        mode = Mode(channels, direct)

        def function(t, mode=mode):
            cancel_often(t, mode, 15 if t.config.quick else 50)
        test(f'cancel: many times at random moments, {mode}',
             quick=channels in (0, 2, 8) and (direct or not channels),
             timeout=240)(function)


register_cancels()


@test('cancel: while a write does not end', quick=True)
def test_cancel_held(t):
    """While the disk hangs, QMP answers, cancel is accepted, and the guest
    runs."""
    for op in ('write:d3', 'write:b3'):
        vm = held_save(t, Mode(2, True), op, args=(), guest=DIRTY)
        vm.command('migrate_cancel')
        vm.ticks_on()
        assert stalls(t) == ['stall'], 'the write was not held'
        open_gate(t)
        status = vm.wait_migration()['status']
        assert status == 'cancelled', f'{op}: {status}'
        check_leftover(t, t.path('image'))
        good_save(t, vm)
        vm.kill()
        forget_holds(t)
