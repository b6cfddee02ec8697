# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulators and disks with I/O faults, and how to observe these."""

import contextlib
import functools
import json
import os
import shutil
import time

from lab.faultfd import build_library, with_faults
from lab.faultfs import FaultFS
from lab.fuse import NoFuse
from lab.uring import io_uring_error
from lab.vm import FINAL, Mode

from .checks import case
from .harness import Skip

HIDE = {'': '', 'aio': 'io_uring', 'sync': 'io_uring aio'}
ENGINES = {'io_uring': '', 'linux-aio': 'aio', 'sync': 'sync'}


def faulty(t, file, *faults, emulator=None, engine=''):
    """Our emulator, with faults injected into the I/O on files whose names end
    with `file`: see lab/faultfd.c.  If `engine` is set, the engines preferred
    to it are hidden."""
    if not shutil.which('gcc'):
        raise Skip("there is no 'gcc' here, to build faultfd.c")
    library = t.path('faultfd.so')
    if not os.path.exists(library):
        build_library(library)
    return with_faults(emulator or t.config.ours, library, file, faults,
                       t.path('fault-log'), t.path('fault-gate'),
                       HIDE[engine])


def stalls(t):
    """The stalls that lab/faultfd.c has recorded."""
    try:
        with open(t.path('fault-log')) as f:
            return f.read().split()
    except FileNotFoundError:
        return []


def wait_stall(t, vm, ask=True):
    """Waits until a stall or a hold has begun in the machine's migration;
    `ask` is False if QMP may not be used meanwhile."""
    while not stalls(t):
        vm.raise_if_dead()
        status = vm.migration().get('status') if ask else None
        if status in FINAL and not stalls(t):
            raise AssertionError(f'the migration {status} before anything was '
                                 'held')
        time.sleep(0.02)


def open_gate(t):
    """Releases held calls."""
    open(t.path('fault-gate'), 'w').close()


def forget_holds(t):
    """Prepares for the next stall or hold."""
    for name in ('fault-log', 'fault-gate'):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(t.path(name))


def held_save(t, mode, fault, **kwargs):
    """Starts a save, to `image`, in which `fault` holds a call until
    open_gate(); returns the machine when the call is held."""
    vm = t.source(emulator=faulty(t, 'image', fault + ':hold'), **kwargs)
    vm.setup(mode)
    vm.start_save(f'file:{t.path("image")}')
    wait_stall(t, vm)
    return vm


class HeldRestore:
    """A restore in which one read of RAM does not complete until release()."""

    def __init__(self, t, mode):
        self.t = t
        path = t.path('image')
        self.want = t.saved(path, Mode(4))
        self.vm = t.vm(incoming=True,
                       emulator=faulty(t, 'image', 'read:d2:hold'))
        self.vm.setup(mode)
        self.vm.command('migrate-incoming', {'uri': f'file:{path}'})
        # Stock QEMU's QMP does not answer meanwhile
        wait_stall(t, self.vm, ask=False)

    def release(self):
        assert stalls(self.t) == ['stall'], 'the read was not held'
        open_gate(self.t)
        info = self.vm.wait_migration()
        assert info['status'] == 'completed', info
        assert self.vm.ram_hash() == self.want, 'restored RAM is wrong'


def broken(t, *faults, **kwargs):
    """Mounts a file system with faults over the test's directory."""
    t.need_root()
    t.count += 1
    try:
        fs = FaultFS(t.path(f'broken{t.count}'), t.dir, faults, **kwargs)
    except NoFuse as err:
        raise Skip(f'no FUSE here: {err}') from None
    t.stack.callback(fs.close)
    t.releases.callback(fs.release)
    return fs


# A disk that cannot be flushed, once
UNFLUSHABLE = ('-blockdev', json.dumps({
    'driver': 'blkdebug', 'node-name': 'unflushable',
    'image': {'driver': 'null-co', 'read-zeroes': True},
    'inject-error': [{'event': 'none', 'iotype': 'flush', 'once': True}]}))


def let_flush_fail(vm):
    """Writes to the disk UNFLUSHABLE: QEMU flushes nothing without need."""
    said = vm.hmp('qemu-io unflushable "write 0 512"')
    assert not said, said


def with_engine(t, engine):
    """Our emulator, with no engine better than this one."""
    emulator = faulty(t, 'no-such-file', engine=ENGINES[engine])
    if engine == 'io_uring':
        # On FUSE it is not selected automatically
        emulator.params = {'x-direct-io-engine': engine}
    return emulator


def check_engine(info, engine):
    have = info['direct-io']['engine']
    assert have == engine, f'the engine was {have}'


@functools.cache
def engines(t):
    """The engines that this host permits."""
    if not io_uring_error():
        return list(ENGINES)
    t.note(f'not tested with io_uring: {io_uring_error()}')
    return [engine for engine in ENGINES if engine != 'io_uring']


def each_engine(t, function):
    for engine in engines(t):
        with case(engine):
            function(engine)
