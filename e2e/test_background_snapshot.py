# SPDX-License-Identifier: GPL-2.0-or-later
"""Background snapshots to files: RAM is write-protected, and a thread that
writes to it waits until the page has been saved."""

import errno
import os
import socket

from lab.qmp import QMPError

from .checks import check_error
from .faults import UNFLUSHABLE, broken, let_flush_fail
from .harness import Skip, test

RAM = 64
GUEST = {'dirty': 32}
LAST = (RAM << 20) - 4096               # a page that is saved late


def setup(vm):
    vm.setup(None)
    try:
        vm.set_capabilities('background-snapshot')
    except QMPError as err:
        if 'not supported by host kernel' not in err.desc:
            raise
        raise Skip(f'not on this host: {err.desc}') from None


def start(t, *faults, args=()):
    """Starts a snapshot to a file system with these faults."""
    disk = broken(t, *faults)
    vm = t.source(ram=RAM, guest=GUEST, args=args)
    setup(vm)
    vm.start_save(f'file:{os.path.join(disk.mount, "image")}')
    return disk, vm


class Writer:
    """Writes to guest RAM in QEMU's main thread, like a device, with the lock
    that all of them share."""

    def __init__(self, t):
        self.path = t.path('qtest')
        self.args = ('-qtest', f'unix:{self.path},server=on,wait=off',
                     '-qtest-log', '/dev/null')
        self.file = None

    def __enter__(self):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        self.file = connection.makefile('rwb', buffering=0)
        return self

    def __exit__(self, *_):
        self.file.close()

    def send(self, command):
        self.file.write(command.encode() + b'\n')

    def answer(self):
        line = self.file.readline().split()
        assert line[0] == b'OK', line
        return line[1:]

    def rewrite(self, vm):
        """Writes the page's first bytes again; returns when QEMU waits."""
        self.send(f'read {LAST:#x} 8')
        data, = self.answer()
        self.send(f'write {LAST:#x} 8 {data.decode()}')
        vm.wait_until(lambda: waits_for_page(vm.pid))


def waits_for_page(pid):
    with open(f'/proc/{pid}/wchan') as f:
        return 'userfault' in f.read()


def check_runs(vm):
    vm.ticks_on()
    vm.wait_guest('sweep')


@test('background snapshot: the image is of its start', quick=True)
def test_snapshot(t):
    """The guest continues to run and to write meanwhile."""
    path = t.path('image')
    src = t.source(guest=GUEST)
    setup(src)
    src.save(f'file:{path}')
    src.ticks_on(1)
    src.kill()
    dst = t.vm(incoming=True)
    dst.setup(None)
    dst.load(f'file:{path}')
    # The guest checks all of its memory
    dst.command('cont')
    dst.wait_guest('sweep', 1)
    dst.kill()


@test('background snapshot: a guest that is stopped stays so', quick=True)
def test_stopped(t):
    src = t.source(ram=RAM, guest=GUEST)
    setup(src)
    src.command('stop')
    src.save(f'file:{t.path("image")}')
    status = src.command('query-status')['status']
    assert status == 'paused', status
    src.command('cont')
    check_runs(src)


@test('background snapshot: the guest cannot be stopped', quick=True)
def test_not_stopped(t):
    """A disk cannot be flushed.  Also to a program, which has no file."""
    for uri in (f'file:{t.path("image")}', f'exec:cat > {t.path("stream")}'):
        vm = t.source(ram=RAM, guest=GUEST, args=UNFLUSHABLE)
        setup(vm)
        let_flush_fail(vm)
        vm.start_save(uri)
        info = vm.wait_migration()
        assert info['status'] == 'failed', info
        if uri.startswith('file:'):
            check_runs(vm)
        vm.command('cont')
        check_runs(vm)
        vm.kill()


@test('background snapshot: fails while the main thread waits for a page',
      quick=True)
def test_failed(t):
    writer = Writer(t)
    disk, vm = start(t, ('write', range(5, 6), 'hold, fail'),
                     ('write', range(6, 1 << 30), errno.EIO),
                     args=writer.args)
    vm.wait_until(lambda: disk.held_to_fail)
    with writer:
        writer.rewrite(vm)
        disk.fail_held()
        writer.answer()
    info = vm.wait_migration()
    assert info['status'] == 'failed', info
    check_error(info, os.strerror(errno.EIO))
    check_runs(vm)


@test('background snapshot: cancelled while the main thread waits for a page',
      quick=True)
def test_cancelled(t):
    writer = Writer(t)
    disk, vm = start(t, ('write', range(5, 6), 'hold'), args=writer.args)
    vm.wait_until(lambda: disk.held)
    vm.command('migrate_cancel')
    with writer:
        writer.rewrite(vm)
        disk.release()
        writer.answer()
    info = vm.wait_migration()
    assert info['status'] == 'cancelled', info
    check_runs(vm)


@test('background snapshot: the file cannot be truncated', quick=True)
def test_refused(t):
    disk, vm = start(t, ('truncate', range(1, 2), errno.EIO))
    info = vm.wait_migration()
    assert info['status'] == 'failed', info
    check_error(info, disk.mount, os.strerror(errno.EIO))
    check_runs(vm)
