# SPDX-License-Identifier: GPL-2.0-or-later
"""Saves that are refused immediately, with an error that gives the reason and
without any loss: the old image is unchanged, byte for byte, and no new file is
left."""

import errno
import os
import resource

from lab.qmp import QMPError
from lab.vm import Mode

from .checks import case, check_error, expect_error, file_hash, good_save, \
    never_stopped
from .faults import faulty
from .harness import Skip, test

MIB = 1 << 20
GUEST = {'dirty': 32}
MODES = (Mode(0), Mode(2), Mode(2, True))
O_PATH = 0o10000000


class OldImage:
    """An image that a refused save must not change, in `path`."""

    def __init__(self, t, path=None, vm=None):
        self.path = path or t.path('image')
        vm = vm or t.source(guest=GUEST)
        vm.save(f'file:{self.path}', Mode(2))
        vm.command('cont')
        vm.ticks_on(1)
        vm.qmp.events.clear()
        self.vm = vm
        self.before = file_hash(self.path)

    def check(self, what):
        assert file_hash(self.path) == self.before, \
            f'{what}: the old image is not what it was'
        never_stopped(self.vm)

    def refused(self, what, uri, mode, *words, **params):
        self.vm.qmp.events.clear()
        info = self.vm.try_save(uri, mode, **params)
        with case(what, mode):
            check_error(info, *words)
            self.check('refused')
        self.vm.ticks_on(1)


# Descriptors that are passed in

@test('refused: descriptors that cannot be used', quick=True)
def test_flags(t):
    """O_APPEND, O_PATH and the wrong access mode, in an fdset and with fd:,
    for the main and the direct descriptor."""
    old = OldImage(t)
    direct = os.O_DIRECT
    append = 'the descriptor was opened with O_APPEND'
    # The flags, what is said of fd:, and of an fdset
    bad = [(os.O_WRONLY | os.O_APPEND, append, (append,)),
           (os.O_RDWR | os.O_APPEND, append, (append,)),
           (os.O_RDONLY, 'the descriptor is open for reading only',
            ('is open for writing {} O_DIRECT', 'read-only {} O_DIRECT'))]
    # Since 10.2 the monitor closes a connection that passes one with O_PATH
    if t.config.ours.at_least(10, 2):
        t.note('O_PATH: the monitor of this QEMU takes no such descriptor')
    else:
        # Its access mode, which is not a mode, is that of O_RDONLY
        bad.append((O_PATH, 'the descriptor was opened with O_PATH',
                    bad[-1][2]))
    for flags, of_fd, of_set in bad:
        what = f'flags {flags:#o}'
        for mode in MODES:
            fd = t.open(old.path, flags)
            old.vm.command('getfd', {'fdname': 'bad'}, fds=[fd])
            old.refused(f'fd: with {what}', 'fd:bad', mode, of_fd)
            old.vm.add_fds(5, fd)
            if mode.direct:
                old.vm.add_fds(5, t.open(old.path, os.O_WRONLY | direct))
            old.refused(f'fdset with {what}', 'file:/dev/fdset/5', mode,
                        '/dev/fdset/5', *[s.format('without') for s in of_set])
            old.vm.command('remove-fd', {'fdset-id': 5})
        if flags & O_PATH:
            continue
        old.vm.add_fds(6, t.open(old.path, os.O_WRONLY))
        old.vm.add_fds(6, t.open(old.path, flags | direct))
        old.refused(f'direct with {what}', 'file:/dev/fdset/6', MODES[-1],
                    '/dev/fdset/6', *[s.format('with') for s in of_set])
        old.vm.command('remove-fd', {'fdset-id': 6})
    good_save(t, old.vm)


@test('refused: fd: where file: is refused', quick=True)
def test_fd_capabilities(t):
    old = OldImage(t)
    old.vm.set_capabilities('return-path')
    for mode in MODES:
        fd = t.open(old.path, os.O_RDWR)
        old.vm.command('getfd', {'fdname': 'file'}, fds=[fd])
        old.refused('return path', 'fd:file', mode, 'return path')
        old.refused('return path', f'file:{old.path}', mode, 'return path')


@test('refused: fd: with O_DIRECT', quick=True)
def test_fd_direct(t):
    """The main stream is not aligned."""
    old = OldImage(t)
    for mode in MODES:
        fd = t.open(old.path, os.O_RDWR | os.O_DIRECT)
        old.vm.command('getfd', {'fdname': 'file'}, fds=[fd])
        old.refused('O_DIRECT', 'fd:file', mode, 'was opened with O_DIRECT')
    good_save(t, old.vm)


@test('refused: a save with block migration does not leave it on', quick=True)
def test_block_migration(t):
    if t.config.ours.at_least(8):
        raise Skip(f'{t.config.ours.version} has no block migration')
    vm = t.source()
    before = vm.command('query-migrate-capabilities')
    with expect_error('it was accepted', 'No such file or directory'):
        vm.command('migrate', {'uri': 'file:/no/such/directory/image',
                               'blk': True})
    assert vm.command('query-migrate-capabilities') == before


# The direct descriptor has its own errors

@test('refused: late errors of the direct descriptor are heard', quick=True)
def test_direct_errors(t):
    for fault in ('sync:d1', 'close:d1+'):
        path = t.path(f'image-{fault[:4]}')
        vm = t.source(guest=GUEST, emulator=faulty(
            t, os.path.basename(path), f'{fault}:{errno.EIO}'))
        info = vm.try_save(f'file:{path}', Mode(2, True))
        check_error(info, path, 'O_DIRECT', os.strerror(errno.EIO))
        assert not os.path.getsize(path), f'{fault}: an image is left'
        vm.ticks_on()
        vm.kill()


# Every refusal precedes the truncation of the file

@test('refused: no room, and the old image survives', quick=True)
def test_no_room(t):
    where = t.filesystem('tmpfs', 48 * MIB)
    path = os.path.join(where, 'image')
    small = t.source(ram=16, guest={'dirty': 1})
    OldImage(t, path, small)
    small.kill()
    before = file_hash(path)
    vm = t.source(ram=128, guest=GUEST)
    for mode in t.modes(where, MODES):
        info = vm.try_save(f'file:{path}', mode)
        check_error(info, path, 'no space')
        assert file_hash(path) == before, f'{mode}: the old image has changed'
        info = vm.try_save(f'file:{path}-new', mode)
        check_error(info, path, 'no space')
        assert not os.path.exists(path + '-new'), f'{mode}: a file is left'
    vm.ticks_on()


@test('refused: too large a file, and the old image survives', quick=True)
def test_too_large(t):
    limit = 64 * MIB
    path = t.path('image')
    small = t.source(ram=16, guest={'dirty': 1})
    OldImage(t, path, small)
    small.kill()
    before = file_hash(path)
    vm = t.source(ram=128, guest=GUEST, rlimit_fsize=limit)
    for mode in MODES:
        info = vm.try_save(f'file:{path}', mode)
        check_error(info, path, ('large', 'limit'))
        assert file_hash(path) == before, f'{mode}: the old image has changed'
        info = vm.try_save(f'file:{path}-new', mode)
        check_error(info, path, ('large', 'limit'))
        assert not os.path.exists(path + '-new'), f'{mode}: a file is left'
    vm.ticks_on()


@test('refused: no room behind the offset, and the old image survives',
      quick=True)
def test_no_room_behind_offset(t):
    """Data before the offset is kept, and its space is not available to the
    image."""
    where = t.filesystem('tmpfs', 64 * MIB)
    path = os.path.join(where, 'image')
    offset = 40 * MIB
    with open(path, 'wb') as f:
        f.write(os.urandom(offset))
        f.write(b'an old image')
    before = file_hash(path)
    vm = t.source(ram=128, guest={'dirty': 8})
    for mode in t.modes(where, MODES):
        info = vm.try_save(f'file:{path},offset={offset:#x}', mode)
        check_error(info, path, 'no space')
        assert file_hash(path) == before, f'{mode}: the old image has changed'
    vm.ticks_on()


@test('refused: the limit leaves no room for devices, and the old image '
      'survives', quick=True)
def test_no_size_for_devices(t):
    path = t.path('image')
    vm = t.source(ram=16, guest={'dirty': 1})
    limits = resource.prlimit(vm.pid, resource.RLIMIT_FSIZE)
    old = OldImage(t, path, vm)
    # RAM fits, but the device state does not
    limit = os.path.getsize(path) - 4096
    os.truncate(path, 16 << 10)
    before = file_hash(path)
    for mode in MODES:
        resource.prlimit(vm.pid, resource.RLIMIT_FSIZE, (limit, limits[1]))
        info = vm.try_save(f'file:{path}', mode)
        resource.prlimit(vm.pid, resource.RLIMIT_FSIZE, limits)
        check_error(info, path, ('large', 'limit'))
        assert file_hash(path) == before, f'{mode}: the old image has changed'
    old.vm.ticks_on()


@test('refused: few descriptors are left', quick=True, timeout=240)
def test_few_descriptors(t):
    """For any number of available descriptors, a save completes or changes
    nothing."""
    old = OldImage(t)
    vm = old.vm
    opened = max(map(int, os.listdir(f'/proc/{vm.pid}/fd'))) + 1
    hard = resource.prlimit(vm.pid, resource.RLIMIT_NOFILE)[1]
    completed = 0
    for more in range(40):
        vm.setup(Mode(2, True))
        resource.prlimit(vm.pid, resource.RLIMIT_NOFILE, (opened + more, hard))
        try:
            vm.start_save(f'file:{old.path}')
            info = vm.wait_migration()
        except QMPError as err:
            info = {'status': 'failed', 'error-desc': err.desc}
        resource.prlimit(vm.pid, resource.RLIMIT_NOFILE, (hard, hard))
        if info['status'] == 'completed':
            completed += 1
            vm.command('cont')
            break
        old.check(f'{more} more descriptors: {info.get("error-desc")}')
        vm.ticks_on(1)
    assert completed, 'no number of descriptors was enough'
    assert more, 'the limit has no effect'


@test('refused: no locks are no other user', quick=True)
def test_no_locks(t):
    """A security module that forbids locking a file returns EACCES."""
    path = t.path('image')
    emulator = faulty(t, 'image')
    emulator.env['FAULT_LOCK'] = str(errno.EACCES)
    vm = t.source(guest=GUEST, emulator=emulator)
    vm.save(f'file:{path}', Mode(2, True))
    vm.kill()
    emulator.env['FAULT_LOCK'] = str(errno.EAGAIN)
    vm = t.source(guest=GUEST, emulator=emulator)
    check_error(vm.try_save(f'file:{path}', Mode(2, True)), path, 'locked')


@test('refused: a QEMU that is to live on says why', quick=True)
def test_exit_on_error(t):
    path = t.path('image')
    src = t.source(ram=16, guest={'dirty': 1})
    src.save(f'file:{path}', Mode(2, True))
    src.kill()
    with open(path, 'r+b') as f:
        f.truncate(os.path.getsize(path) // 2)
    for mode in MODES:
        dst = t.vm(incoming=True, ram=16)
        dst.setup(mode)
        dst.command('migrate-incoming',
                    {'uri': f'file:{path}', 'exit-on-error': False})
        info = dst.wait_migration()
        check_error(info, path)
        state = dst.command('query-status')['status']
        assert state == 'inmigrate', f'{mode}: the guest is {state}'
        used = [fd for fd in os.listdir(f'/proc/{dst.pid}/fd')
                if os.path.realpath(f'/proc/{dst.pid}/fd/{fd}') == path]
        assert not used, f'{mode}: the file is still open'
        dst.command('quit')


@test('images: the very end is missing', quick=True)
def test_truncated_end(t):
    """The description that follows the device state is not needed for a
    restore, but QEMU warns that the file was truncated."""
    path = t.path('image')
    src = t.source(ram=64)
    src.save(f'file:{path}', Mode(2, True))
    want = src.ram_hash()
    size = os.path.getsize(path)
    for missing in (1, 100):
        os.truncate(path, size - missing)
        for mode in (Mode(0), Mode(2, True)):
            dst = t.restores(f'file:{path}', want, mode, ram=64)
            assert any('truncated' in line for line in dst.errors()), \
                f'{missing} bytes are missing, {mode}: {dst.errors()}'
            dst.kill()
