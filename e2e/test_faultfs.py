# SPDX-License-Identifier: GPL-2.0-or-later
"""Saves to, and restores from, a file system that returns errors or short
counts, or is slow: errors as the kernel reports them, for each engine."""

import errno
import os

from lab.uring import io_uring_error
from lab.vm import Mode

from .checks import check_error, check_leftover, check_says
from .faults import broken, check_engine, each_engine, with_engine
from .harness import test

RAM = 32
GUEST = {'dirty': 32}
DIRECT = Mode(4, True)
ALL = range(1, 1 << 30)


def source(t, **kwargs):
    return t.source(ram=RAM, guest=GUEST, **kwargs)


def check_failed_save(t, fs, mode, number, emulator=None):
    path = os.path.join(fs.mount, 'image')
    vm = source(t, emulator=emulator)
    info = vm.try_save(f'file:{path}', mode)
    assert fs.hits, 'nothing went wrong'
    said = ('No space left',) if number == errno.ENOSPC else \
        (os.strerror(number),)
    check_error(info, path, said)
    vm.ticks_on()
    check_leftover(t, t.path('image'), mode, RAM)
    size = os.path.getsize(t.path('image'))
    assert size == 0, f'{size} bytes are left'
    vm.kill()


@test('broken disk: writes fail', quick=True, timeout=300)
def test_write_errors(t):
    """The first write fails, one in the middle fails, or all from some point
    on fail; also, the first error occurs while many writes are in flight."""
    def one(engine):
        emulator = with_engine(t, engine)
        for faults in (
                [('direct write', range(1, 2), errno.EIO)],
                [('direct write', range(9, 1 << 30), errno.ENOSPC)],
                [('direct write', range(25, 26), errno.EIO),
                 ('direct write', range(10, 25), 0.05)]):
            fs = broken(t, *faults)
            number = next(what for *_, what in faults)
            check_failed_save(t, fs, DIRECT, number, emulator)
            os.unlink(t.path('image'))
    each_engine(t, one)
    for nth in (1, 5, 30):
        check_failed_save(t, broken(t, ('write', range(nth, nth + 1),
                                        errno.EIO)), Mode(0), errno.EIO)


@test('broken disk: the sync fails, as with errors of late writes',
      quick=True)
def test_sync_errors(t):
    for mode in (Mode(0), Mode(4), DIRECT):
        check_failed_save(t, broken(t, ('sync', ALL, errno.EIO)), mode,
                          errno.EIO)
    # The kernel accepts all writes, and detects the error later
    for mode in (Mode(0), Mode(4)):
        fs = broken(t, ('write', range(3, 5), errno.EIO), writeback=True)
        check_failed_save(t, fs, mode, errno.EIO)


@test('broken disk: short writes', quick=True, timeout=240)
def test_short(t):
    """io_uring is not tested: there the kernel continues short writes, wrongly
    on FUSE, so io_uring must not be selected automatically."""
    for emulator, engine in ((None, 'linux-aio'),
                             (with_engine(t, 'sync'), 'sync')):
        fs = broken(t, ('write', ALL, 'short'))
        uri = f'file:{fs.mount}/image'
        vm = source(t, emulator=emulator)
        # With a disk this slow, the save of a busy guest might never end
        info = vm.save(uri, DIRECT, downtime_limit=100000)
        check_engine(info, engine)
        said = info['direct-io']['engine-reason']
        assert 'io_uring: ' in said, said
        if not emulator and not io_uring_error():
            assert 'FUSE' in said, said
        want = vm.ram_hash()
        vm.kill()
        assert fs.hits > 20, 'hardly anything was short'
        t.restores(f'file:{t.path("image")}', want, DIRECT, ram=RAM).kill()


@test('broken disk: answers that are late, and in any order', quick=True,
      timeout=240)
def test_late(t):
    """Every third reply is late, so that the others overtake it."""
    def one(engine):
        emulator = with_engine(t, engine)
        fs = broken(t, *[(kind, range(1, 1 << 30, 3), 0.03)
                         for kind in ('read', 'write')],
                    ('sync', ALL, 0.5))
        uri = f'file:{fs.mount}/image'
        vm = source(t, emulator=emulator)
        # Slower than the guest, this disk would never keep up with it
        vm.command('stop')
        check_engine(vm.save(uri, DIRECT), engine)
        want = vm.ram_hash()
        vm.kill()
        assert fs.hits > 10, 'hardly anything was late'
        t.restores(uri, want, DIRECT, ram=RAM, emulator=emulator).kill()
    each_engine(t, one)


@test('broken disk: reads fail', quick=True, timeout=240)
def test_read_errors(t):
    vm = source(t)
    vm.save(f'file:{t.path("image")}', DIRECT)
    vm.kill()

    def one(engine):
        emulator = with_engine(t, engine)
        for faults in ([('direct read', range(1, 2), errno.EIO)],
                       [('direct read', range(12, 1 << 30), errno.EIO),
                        ('direct read', range(8, 12), 0.05)],
                       [('read', ALL, errno.EIO)]):
            fs = broken(t, *faults)
            path = os.path.join(fs.mount, 'image')
            dst = t.vm(incoming=True, ram=RAM, emulator=emulator)
            said = dst.try_load(f'file:{path}', DIRECT)
            dst.kill()
            assert fs.hits, 'nothing went wrong'
            assert said, f'restored in spite of {faults}'
            check_says(said, path, os.strerror(errno.EIO))
    each_engine(t, one)
