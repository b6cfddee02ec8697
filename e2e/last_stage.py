# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds saves in their last stage, when the guest is stopped."""

import contextlib
import os
import time

from lab.freeze import frozen
from lab.vm import FINAL, Mode

from .faults import broken
from .harness import Skip

RAM = 64
GUEST = {'dirty': 32}
DIRECT = Mode(4, True)
GO_ON = 'migrate-continue', {'state': 'pre-switchover'}


def wait_for(vm, what, condition):
    """Waits until `condition()` holds; only the test's time limit applies."""
    while not condition():
        vm.raise_if_dead()
        status = vm.migration()['status']
        assert status not in FINAL, \
            f'the save {status} before {what}'
        time.sleep(0.01)


def to_switchover(vm, uri, mode):
    """Starts a save and holds it at the switchover, when the guest is
    stopped."""
    vm.setup(mode)
    vm.set_capabilities('pause-before-switchover')
    vm.start_save(uri)
    wait_for(vm, 'switchover',
             lambda: vm.migration()['status'] == 'pre-switchover')
    assert vm.command('query-status')['status'] == 'finish-migrate'


@contextlib.contextmanager
def freeze(vm, cpu=0):
    """Stops the thread of a CPU of the guest."""
    tid = vm.command('query-cpus-fast')[cpu]['thread-id']
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(frozen(tid))
        except PermissionError as err:
            raise Skip(f'not on this host: {err}') from None
        yield


def go_on(vm):
    """Continues with the last stage."""
    vm.command(*GO_ON)


def cancel_while_frozen(vm, uri, mode):
    """Saves, and sends a cancel while QEMU waits, in the last stage, for a CPU.
    Returns the result.  On a busy host the cancel may come when the image is
    complete: then tries again."""
    while True:
        to_switchover(vm, uri, mode)
        with freeze(vm):
            go_on(vm)
            vm.wait_until(lambda: vm.migration()['status'] == 'device')
            # This begins to resume the guest, and may wait for the CPU, too
            vm.qmp.send('migrate_cancel')
            time.sleep(0.5)
        vm.qmp.answer('migrate_cancel')
        info = vm.wait_migration()
        if info['status'] != 'completed':
            return info
        vm.command('cont')


def check_disk(vm, device):
    """Checks that the disk of this device can be written."""
    said = vm.hmp(f'qemu-io -d {device} "write 0 512"')
    assert not said, said
    vm.ticks_on()


def at_switchover(t, fs, mode=DIRECT, **kwargs):
    """Starts a save and holds it at the switchover; then continues with the
    last stage, in which the disk hangs."""
    vm = t.source(ram=RAM, guest=GUEST, **kwargs)
    to_switchover(vm, f'file:{os.path.join(fs.mount, "image")}', mode)
    fs.arm()
    go_on(vm)
    wait_for(vm, 'the disk hung', lambda: fs.held)
    return vm


def reached(fs, hits):
    """Returns whether that many faults occur soon."""
    for _ in range(500):
        if fs.hits >= hits:
            return True
        time.sleep(0.01)
    return False


def hung(t, *faults, mode=DIRECT, **kwargs):
    """Does the same on a file system with these faults, and returns when the
    disk hangs and all faults have occurred.  If the guest got little CPU time,
    it has dirtied few pages, and the last stage writes too little: then tries
    again."""
    while True:
        fs = broken(t, *faults, armed=False)
        try:
            vm = at_switchover(t, fs, mode, **kwargs)
        except AssertionError as err:
            if 'completed before the disk hung' not in str(err):
                raise
            continue
        if reached(fs, len(faults)):
            return fs, vm
        fs.release()
        vm.kill()
