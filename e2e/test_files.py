# SPDX-License-Identifier: GPL-2.0-or-later
"""More than one save to one file, and files that change beneath a save."""

import os
import shutil
import time

from lab.vm import Mode

from .checks import DIRTY, SOME_MODES, case, check_error, each, fdset_case, \
    file_hash
from .harness import test

MIB = 1 << 20


def start_slowly(vm, path, mode):
    """Starts a save that takes minutes, and waits until it is under way."""
    vm.setup(mode, max_bandwidth=MIB)
    vm.start_save(f'file:{path}')
    while (info := vm.migration())['status'] == 'setup':
        time.sleep(0.01)
    assert info['status'] == 'active', info


@test('files: two virtual machines save to one file',
      quick=True, stock='both saves completed')
def test_two_savers(t):
    """The second one is refused, and the first one is not disturbed."""
    path = t.path('image')

    def one(mode):
        first, second = t.source(guest=DIRTY), t.source(guest=DIRTY)
        start_slowly(first, path, mode)
        info = second.try_save(f'file:{path}', mode)
        status = first.migration()['status']
        assert status == 'active', f'the first save {status}'
        first.hurry()
        other = first.wait_migration()
        if info['status'] == other['status'] == 'completed':
            raise AssertionError('both saves completed')
        check_error(info, path, 'is locked')
        second.ticks_on()
        assert other['status'] == 'completed', other
        t.restores(f'file:{path}', first.ram_hash(), mode).kill()
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
    before = file_hash(path)
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
        if file_hash(path) != before:
            wrong.append(f'{name}: the previous image is lost')
            vm.save(f'file:{path}', Mode(2))
            vm.command('cont')
            before = file_hash(path)
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
        if file_hash(kept) != before:
            wrong.append('different files in an fdset: '
                         f'{os.path.basename(kept)} is overwritten')
    assert not wrong, '; '.join(wrong)


@test('files: renamed or unlinked during the save', quick=True)
def test_renamed(t):
    """All is written to the file that was opened, whatever its name is.  If it
    has none any more, the save fails: the image would be gone with QEMU."""
    path, other = t.path('image'), t.path('other')
    for mode in (Mode(2, True), Mode(0)):
        for how in ('renamed', 'replaced', 'unlinked'):
            vm = t.source(guest=DIRTY)
            start_slowly(vm, path, mode)
            with case(how, mode):
                if how == 'renamed':
                    os.rename(path, other)
                else:
                    os.unlink(path)
                if how != 'unlinked':
                    with open(path, 'wb') as f:
                        f.write(b'someone else')
                vm.hurry()
                info = vm.wait_migration()
                if how == 'renamed':
                    assert info['status'] == 'completed', info
                    t.restores(f'file:{other}', vm.ram_hash(), mode).kill()
                    os.unlink(other)
                else:
                    check_error(info, path, 'was removed during the save')
                    vm.ticks_on()
                if how == 'unlinked':
                    assert not os.path.exists(path), 'it was created again'
                else:
                    with open(path, 'rb') as f:
                        assert f.read() == b'someone else', \
                            'another file of that name was written'
                    os.unlink(path)
                vm.kill()


@test('files: direct I/O in a chroot without /proc', quick=True)
def test_chroot(t):
    t.need_root()
    root = t.path('root')
    os.mkdir(root)
    option = '-run-with', f'chroot={root}'
    if not t.config.ours.at_least(9):
        option = '-chroot', root
    mode = Mode(2, True)
    src = t.source(args=option)
    info = src.save('file:/image', mode)
    assert info['direct-io']['direct-bytes'], info
    src.kill()
    t.restores(f'file:{root}/image', None, mode)
    dst = t.vm(incoming=True, args=option)
    dst.load('file:/image', mode)
    dst.command('cont')
    dst.ticks_on()
    dst.wait_guest('sweep')


@test('files: the disk of a virtual machine is not overwritten', quick=True)
def test_disk_of_guest(t):
    """Behind an offset, too."""
    disk = t.path('disk')
    with open(disk, 'wb') as f:
        f.write(os.urandom(4 * MIB))
    before = file_hash(disk)
    user = t.vm(guest=False,
                args=('-drive', f'if=none,id=d0,format=raw,file={disk}',
                      '-device', 'virtio-blk-pci,drive=d0'))
    vm = t.source(guest=DIRTY)
    for offset in (0, 4096, MIB):
        info = vm.try_save(f'file:{disk},offset={offset}', Mode(2, True))
        check_error(info, disk, 'is locked')
        assert file_hash(disk) == before, f'offset {offset}: it is overwritten'
    vm.ticks_on()
    user.kill()


@test('files: a refused save leaves a symbolic link alone', quick=True)
def test_link(t):
    link, target = t.path('link'), t.path('target')
    os.symlink(target, link)
    vm = t.source(guest=DIRTY, rlimit_fsize=MIB)
    info = vm.try_save(f'file:{link},offset={2 * MIB}', Mode(2, True))
    check_error(info, link, 'RLIMIT_FSIZE')
    assert not os.path.exists(target), 'an empty file is left'
    assert os.readlink(link) == target
