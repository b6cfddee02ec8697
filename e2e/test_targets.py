# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets and settings that cannot work: refused before the guest stops, and
with the reason."""

import errno
import os
import shutil
import threading

from lab import fs
from lab.qmp import QMPError
from lab.vm import Mode

from .checks import DIRTY, case, check_error, check_says, expect_error, \
    fdset_case, good_save, never_stopped
from .faults import faulty, forget_holds, open_gate, wait_stall
from .harness import test

MIB = 1 << 20


@test('refused: a file system without O_DIRECT', quick=True, stock='SIGSEGV')
def test_no_odirect(t):
    """The error is detected before the guest is stopped, the message names the
    file and the file system, and the previous image is preserved."""
    target = t.filesystem('ramfs', 512 * MIB)
    path = os.path.join(target, 'image')
    vm = t.source(guest=DIRTY)
    vm.save(f'file:{path}', Mode(2))
    want = vm.ram_hash()
    vm.command('cont')
    vm.qmp.events.clear()
    for channels in (1, 4):
        for _ in range(3):
            info = vm.try_save(f'file:{path}', Mode(channels, True))
            check_error(info, path, 'ramfs')
            never_stopped(vm)
            vm.ticks_on(1)
    good_save(t, vm)
    t.restores(f'file:{path}', want, Mode(2)).kill()
    # The same applies to restoring
    said = t.vm(incoming=True).try_load(f'file:{path}', Mode(2, True))
    assert said and path in said and 'ramfs' in said, \
        f'restoring says "{said}", which does not name the file and ramfs'


class Start(threading.Thread):
    """Starts a save that is held while QEMU handles the command.  Then
    `error` is what QEMU said."""

    def __init__(self, t, vm, uri, mode):
        super().__init__(daemon=True)
        self.error = None
        self.vm = vm
        self.uri = uri
        vm.setup(mode)
        self.start()
        # Its thread uses the connection
        wait_stall(t, vm, ask=False)

    def run(self):
        try:
            self.vm.start_save(self.uri)
        except QMPError as err:
            self.error = str(err)

    def finish(self, t):
        open_gate(t)
        self.join()
        return self.error


@test('targets: two saves create a file at the same time', quick=True)
def test_created_twice(t):
    """The second one finds no file, but the first one creates it before."""
    path = t.path('image')
    second = t.source(guest=DIRTY, emulator=faulty(t, 'image',
                                                   'create:1:hold'))
    held = Start(t, second, f'file:{path}', Mode(2, True))
    first = t.source(guest=DIRTY)
    first.setup(Mode(2, True), max_bandwidth=MIB)
    first.start_save(f'file:{path}')
    first.wait_until(lambda: first.migration()['status'] == 'active')
    error = held.finish(t)
    assert error and 'is locked' in error, error
    assert os.path.exists(path), 'the other image was removed'
    first.hurry()
    assert first.wait_migration()['status'] == 'completed'
    want = first.ram_hash()
    t.restores(f'file:{path}', want, Mode(2, True)).kill()


@test('targets: a file that is about to be removed is not used', quick=True)
def test_removed(t):
    """A new file on a file system without O_DIRECT is removed again."""
    path = os.path.join(t.filesystem('ramfs', 512 * MIB), 'image')
    refused = t.source(guest=DIRTY, emulator=faulty(t, 'image',
                                                    'unlink:1:hold'))
    held = Start(t, refused, f'file:{path}', Mode(2, True))
    vm = t.source(guest=DIRTY)
    info = vm.try_save(f'file:{path}', Mode(2))
    assert 'ramfs' in held.finish(t)
    check_error(info, path, 'is locked')
    assert not os.path.exists(path)
    vm.save(f'file:{path}', Mode(2))
    want = vm.ram_hash()
    t.restores(f'file:{path}', want, Mode(2)).kill()


@test('targets: a file that is replaced while it is opened is not used',
      quick=True)
def test_replaced(t):
    """Whether QEMU has found or created it; the other file is left alone."""
    path, other = t.path('image'), t.path('other')
    for found in (True, False):
        for replaced in (True, False):
            with case('found' if found else 'created',
                      'replaced' if replaced else 'removed'):
                if found:
                    open(path, 'w').close()
                vm = t.source(guest=DIRTY,
                              emulator=faulty(t, 'image', 'lock:1:hold'))
                held = Start(t, vm, f'file:{path}', Mode(2, True))
                os.unlink(path)
                if replaced:
                    with open(other, 'w') as f:
                        f.write('someone else')
                    os.rename(other, path)
                error = held.finish(t)
                assert error, 'the file was used'
                check_says(error, path, 'was removed or replaced')
                if replaced:
                    with open(path) as f:
                        assert f.read() == 'someone else', 'it was written'
                    os.unlink(path)
                else:
                    assert not os.path.exists(path), 'it was created again'
                never_stopped(vm)
                good_save(t, vm)
                vm.kill()
                forget_holds(t)


@test('targets: a file that may only be appended to', quick=True)
def test_append_only(t):
    """It cannot be opened for writing.  With a descriptor opened before, a
    stream cannot cut it off, and mapped-ram cannot extend it to its size."""
    path = os.path.join(t.filesystem('ext4', 300 * MIB), 'image')
    with open(path, 'w') as f:
        f.write('kept')
    vm = t.source(guest=DIRTY)
    for mode in (None, Mode(0), Mode(2, True)):
        fds = [t.open(path, os.O_WRONLY)]
        if mode and mode.direct:
            fds.append(t.open(path, os.O_WRONLY | os.O_DIRECT))
        fs.run('chattr', '+a', path)
        try:
            with case(mode or 'a stream'):
                check_error(vm.try_save(f'file:{path}', mode), path,
                            'Could not open', os.strerror(errno.EPERM))
                check_error(fdset_case(t, vm, 'file:/dev/fdset/3', mode, *fds),
                            "the file can't grow to" if mode else
                            'Unable to set the size of', '/dev/fdset/3',
                            os.strerror(errno.EPERM))
                with open(path) as f:
                    assert f.read() == 'kept', 'the file was written'
                never_stopped(vm)
                vm.ticks_on(1)
        finally:
            fs.run('chattr', '-a', path)
    vm.save(f'file:{path}', Mode(2, True))
    t.restores(f'file:{path}', vm.ram_hash(), Mode(2, True)).kill()


@test('targets: btrfs with compression, and without checksums', quick=True)
def test_btrfs(t):
    """The kernel compresses nothing that is written directly, but what it
    writes is whole; without checksums it copies nothing."""
    for options, flag in (('compress-force=zstd', None), ('', '+C'),
                          ('', '+c')):
        with case(options, flag):
            name = f'btrfs{options}{flag}'
            target = t.filesystem('btrfs', 640 * MIB, name, options=options)
            if flag:
                fs.run('chattr', flag, target)
            path = os.path.join(target, 'image')
            vm = t.source(ram=32)
            # A guest that runs may be faster than a compressing file system
            vm.command('stop')
            vm.save(f'file:{path}', Mode(2, True))
            want = vm.ram_hash()
            vm.kill()
            t.restores(f'file:{path}', want, Mode(2, True), ram=32).kill()


@test('refused: bad targets', quick=True)
def test_bad_targets(t):
    vm = t.source(guest=DIRTY)
    nowhere = t.path('no/such/dir/image')
    fifo = t.path('fifo')
    os.mkfifo(fifo)
    threading.Thread(target=lambda: os.open(fifo, os.O_RDONLY),
                     daemon=True).start()
    image = t.path('image')
    cases = [
        (f'file:{nowhere}', nowhere, os.strerror(errno.ENOENT)),
        (f'file:{t.dir}', t.dir, 'is a directory'),
        ('file:/dev/fdset/99', 'the fdset does not exist'),
        ('file:/dev/fdset/x', 'not the name of an fdset'),
        ('file:', 'has no path'),
        (f'file:{image},offset=rubbish', "'offset'", "'rubbish'"),
        (f'file:{image},offset=-1', "'offset'", "'-1'"),
        (f'file:{image},offset=', "'offset'", "''"),
        (f'file:{image},offset=9E', "'offset'", "'9E'"),
        (f'file:{fifo}', fifo, 'is not a seekable file'),
    ]
    wrong = []
    for uri, *words in cases:
        for mode in (Mode(2, True), Mode(0)):
            info = vm.try_save(uri, mode, timeout=30)
            try:
                check_error(info, *words)
            except AssertionError as err:
                wrong.append(f'{uri}, {mode}: {err}')
                if info['status'] == 'completed':
                    vm.command('cont')
            vm.ticks_on(1)
    never_stopped(vm) if not wrong else None
    good_save(t, vm)
    assert not wrong, '; '.join(wrong)


@test('fdset: wrong descriptors are refused with a reason',
      quick=True, stock='different files: completed')
def test_fdset_wrong(t):
    uri = 'file:/dev/fdset/3'
    direct = os.O_DIRECT
    wr, rd, rw = os.O_WRONLY | os.O_CREAT, os.O_RDONLY, os.O_RDWR | os.O_CREAT
    pipe = os.pipe()
    a, b = t.path('a'), t.path('b')
    open(a, 'w').close()
    missing = 'no descriptor in the fdset is open for writing {} O_DIRECT'
    buffered, with_flag = (missing.format(s) for s in ('without', 'with'))
    # The descriptors, and the error, if there must be one
    cases = {
        'only a buffered one': ([(a, wr)], None),
        'only a direct one': ([(a, wr | direct)], buffered),
        'two buffered ones': ([(a, wr), (a, wr)], None),
        'a buffered one and a direct one for reading':
            ([(a, wr), (a, rd | direct)], with_flag),
        'two direct ones': ([(a, wr | direct), (a, wr | direct)], buffered),
        'read-only ones': ([(a, rd), (a, rd | direct)],
                           buffered + '; it has: read-only'),
        'read-write ones': ([(a, rw), (a, rw | direct)], None),
        'a read-write and a direct one': ([(a, rw), (a, wr | direct)], None),
        'different files': ([(a, wr), (b, wr | direct)],
                            'belong to different files'),
        'the direct one first': ([(a, wr | direct), (a, wr)], None),
        'a directory': ([(t.dir, rd), (t.dir, rd)],
                        buffered + '; it has: read-only'),
        'a pipe': ([None], 'is not a seekable file'),
        'a pipe and a direct one': ([None, (a, wr | direct)],
                                    'is not a seekable file'),
        'none at all': ([], 'the fdset does not exist'),
    }
    wrong = []
    for name, (files, reason) in cases.items():
        vm = t.source(guest=DIRTY)
        fds = [os.open(*f, 0o600) if f else os.dup(pipe[1]) for f in files]
        try:
            info = fdset_case(t, vm, uri, Mode(2, True), *fds)
            if reason:
                assert info['status'] != 'completed', 'completed'
                check_error(info, '/dev/fdset/3', reason)
                never_stopped(vm)
            else:
                assert info['status'] == 'completed', info
                want = vm.ram_hash()
                t.restores(f'file:{a}', want, Mode(2)).kill()
                vm.command('cont')
            vm.ticks_on(1)
            vm.save(f'file:{t.path("good-image")}', Mode(2, True))
        except Exception as err:
            wrong.append(f'{name}: {err}')
        for fd in fds:
            os.close(fd)
        for path in (a, b):
            open(path, 'w').close()
        vm.kill()
    assert not wrong, '; '.join(wrong)


@test('fdset: without a descriptor with O_DIRECT a save is buffered',
      quick=True)
def test_fdset_buffered(t):
    """libvirt never turns direct-io off again."""
    path = t.path('image')
    vm = t.source(ram=32)
    fd = t.open(path, os.O_WRONLY | os.O_CREAT)
    info = fdset_case(t, vm, 'file:/dev/fdset/3', Mode(2, True), fd)
    assert info['status'] == 'completed', info
    found = info['direct-io']
    assert not found['active'] and not found['direct-bytes'], found
    assert found['reason'] == 'no descriptor in the fdset has O_DIRECT', found
    assert any('direct-io has no effect' in x for x in vm.errors())
    want = vm.ram_hash()
    vm.kill()
    dst = t.vm(incoming=True, ram=32)
    dst.add_fds(3, t.open(path, os.O_RDONLY))
    dst.load('file:/dev/fdset/3', Mode(2, True))
    assert dst.ram_hash() == want
    found = dst.migration()['direct-io']
    assert not found['active'] and 'fdset' in found['reason'], found


@test('fdset: wrong descriptors are refused when restoring',
      quick=True, stock='different files: restored')
def test_fdset_wrong_load(t):
    a, b = t.path('a'), t.path('b')
    src = t.source(ram=32)
    src.save(f'file:{a}', Mode(2))
    want = src.ram_hash()
    src.kill()
    shutil.copy(a, b)
    with open(b, 'r+b') as f:
        f.seek(8 * MIB)
        f.write(os.urandom(8 * MIB))
    direct, rd, rw = os.O_DIRECT, os.O_RDONLY, os.O_RDWR
    pipe = os.pipe()
    missing = 'no descriptor in the fdset is open for reading {} O_DIRECT'
    buffered, with_flag = (missing.format(s) for s in ('without', 'with'))
    cases = {
        'only a buffered one': ([(a, rd)], None),
        'only a direct one': ([(a, rd | direct)], buffered),
        'a buffered one and a direct one for writing':
            ([(a, rd), (a, os.O_WRONLY | direct)], with_flag),
        'read-write ones': ([(a, rw), (a, rw | direct)], None),
        'write-only ones': ([(a, os.O_WRONLY), (a, os.O_WRONLY | direct)],
                            buffered + '; it has: write-only'),
        'different files': ([(a, rd), (b, rd | direct)],
                            'belong to different files'),
        'a directory': ([(t.dir, rd), (t.dir, rd)], 'is a directory'),
        'a pipe': ([None], 'is not a seekable file'),
    }
    wrong = []
    for name, (files, reason) in cases.items():
        fds = [os.open(*f) if f else os.dup(pipe[0]) for f in files]
        dst = t.vm(incoming=True, ram=32)
        try:
            dst.add_fds(3, *fds)
            said = dst.try_load('file:/dev/fdset/3', Mode(2, True))
            if reason:
                assert said, 'restored'
                check_says(said, '/dev/fdset/3', reason)
            else:
                assert said is None, said
                assert dst.ram_hash() == want, 'restored RAM is wrong'
        except Exception as err:
            wrong.append(f'{name}: {err}')
        for fd in fds:
            os.close(fd)
        dst.kill()
    assert not wrong, '; '.join(wrong)


@test('refused: capabilities that do not go together',
      quick=True)
def test_capabilities(t):
    vm = t.source(guest=DIRTY)
    others = ['xbzrle', 'postcopy-ram']
    if not t.config.ours.at_least(9, 1):
        others.append('compress')
    for other in others:
        # Without multifd, which some versions cannot combine with them
        vm.setup(Mode(0))
        with expect_error(f'{other} is accepted with mapped-ram',
                          "'mapped-ram' is not compatible", f"'{other}'"):
            vm.set_capabilities(other)
        vm.set_capabilities('mapped-ram', state=False)
        vm.set_capabilities(other)
        with expect_error(f'mapped-ram is accepted with {other}',
                          "'mapped-ram' is not compatible", f"'{other}'"):
            vm.set_capabilities('mapped-ram')
        vm.set_capabilities(other, state=False)
    vm.ticks_on()
    good_save(t, vm)


@test('refused: capabilities that a file does not have', quick=True)
def test_file_capabilities(t):
    """With mapped-ram they are refused when they are set; these are plain
    streams."""
    path = t.path('image')
    vm = t.source(guest=DIRTY)
    for what, on in (
            ('A return path', ('return-path',)),
            ('Postcopy', ('postcopy-ram',)),
            ('Postcopy preemption', ('postcopy-ram', 'postcopy-preempt')),
            ('Multifd without mapped-ram', ('multifd',))):
        vm.set_capabilities(*on)
        info = vm.try_save(f'file:{path}')
        assert info.get('refused'), f'{what} is accepted'
        check_error(info, f'{what} is not supported for migration to a file')
        assert not os.path.exists(path), f'{what}: a file is left'
        vm.set_capabilities(*on, state=False)
        vm.ticks_on(1)
    never_stopped(vm)
    good_save(t, vm)


@test('refused: direct-io without multifd says that it has no effect',
      quick=True, stock='query-migrate does not tell about direct-io')
def test_direct_without_multifd(t):
    vm = t.source()
    vm.setup(Mode(0, True))
    info = vm.try_save(f'file:{t.path("image")}')
    assert info['status'] == 'completed', info
    direct = info.get('direct-io')
    assert direct, 'query-migrate does not tell about direct-io'
    assert direct['active'] is False and 'multifd' in direct['reason'], direct
    assert any('multifd' in line for line in vm.errors()), \
        'there is no warning on stderr'
