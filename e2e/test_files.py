# SPDX-License-Identifier: GPL-2.0-or-later
"""More than one save to one file, and files that change beneath a save."""

import hashlib
import os
import shutil
import time

from lab.vm import Mode

from .checks import DIRTY, SOME_MODES, check_error, each, fdset_case
from .harness import test

MIB = 1 << 20


@test('files: two virtual machines save to one file',
      quick=True, stock='both saves completed')
def test_two_savers(t):
    """At most one completes, and then the file contains that guest's RAM."""
    path = t.path('image')

    def one(mode):
        first, second = t.source(guest=DIRTY), t.source(guest=DIRTY)
        first.setup(mode, max_bandwidth=4 * MIB)
        first.start_save(f'file:{path}')
        time.sleep(0.5)
        if first.migration()['status'] not in ('active', 'setup'):
            raise AssertionError('the first save is not slow enough')
        info = second.try_save(f'file:{path}', mode)
        if info['status'] != 'completed':
            check_error(info, path)
            second.ticks_on()
        first.command('migrate-set-parameters', {'max-bandwidth': 1 << 40})
        other = first.wait_migration()
        done = [vm for vm, i in ((first, other), (second, info))
                if i['status'] == 'completed']
        if len(done) == 2:
            raise AssertionError('both saves completed')
        if done:
            want = done[0].ram_hash()
            t.restores(f'file:{path}', want, mode).kill()
        first.kill()
        second.kill()
        os.unlink(path)
    each([Mode(2, True), Mode(0)] if t.config.quick else SOME_MODES, one)


@test('files: the previous image stays if a save cannot start',
      quick=True, stock='SIGSEGV')
def test_previous_image(t):
    target = t.filesystem('ramfs', 512 * MIB)
    path = os.path.join(target, 'image')
    vm = t.source(guest=DIRTY)
    vm.save(f'file:{path}', Mode(2))
    vm.command('cont')

    def digest():
        with open(path, 'rb') as f:
            return hashlib.file_digest(f, 'sha256').hexdigest()
    before = digest()
    cases = [
        ('no O_DIRECT', f'file:{path}', Mode(2, True)),
        ('bad offset', f'file:{path},offset=x', Mode(2)),
    ]
    wrong = []
    for name, uri, mode in cases:
        info = vm.try_save(uri, mode)
        if info['status'] == 'completed':
            vm.command('cont')
        if info['status'] != 'failed':
            wrong.append(f'{name}: {info["status"]}')
        if digest() != before:
            wrong.append(f'{name}: the previous image is lost')
            vm.save(f'file:{path}', Mode(2))
            vm.command('cont')
            before = digest()
        vm.ticks_on(1)
    # Descriptors of two different files
    a, b = t.path('a'), t.path('b')
    shutil.copy(path, a)
    shutil.copy(path, b)
    fds = [os.open(a, os.O_WRONLY), os.open(b, os.O_WRONLY | os.O_DIRECT)]
    fdset_case(t, vm, 'file:/dev/fdset/3', Mode(2, True), *fds)
    for fd in fds:
        os.close(fd)
    for kept in (a, b):
        with open(kept, 'rb') as f:
            if hashlib.file_digest(f, 'sha256').hexdigest() != before:
                wrong.append('different files in an fdset: '
                             f'{os.path.basename(kept)} is overwritten')
    assert not wrong, '; '.join(wrong)


@test('files: renamed or unlinked during the save', quick=True)
def test_renamed(t):
    """The second descriptor refers to the same file even if the name no longer
    exists."""
    path, other = t.path('image'), t.path('other')
    for mode in (Mode(2, True), Mode(0)):
        vm = t.source(guest=DIRTY)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        vm.setup(mode, max_bandwidth=4 * MIB)
        vm.start_save(f'file:{path}')
        os.close(fd)
        os.rename(path, other)
        with open(path, 'wb') as f:
            f.write(b'someone else')
        vm.command('migrate-set-parameters', {'max-bandwidth': 1 << 40})
        info = vm.wait_migration()
        assert info['status'] == 'completed', info
        want = vm.ram_hash()
        vm.kill()
        with open(path, 'rb') as f:
            if f.read() != b'someone else':
                raise AssertionError('another file of that name was written')
        t.restores(f'file:{other}', want, mode).kill()
        os.unlink(path)
        os.unlink(other)
