# SPDX-License-Identifier: GPL-2.0-or-later
"""Saves and restores whose I/O fails, is short, or hangs: the guest continues,
the error is clear, and no incomplete save is reported as completed."""

import errno
import os

from lab import fs
from lab.vm import Mode

from .checks import ALL_MODES, DIRTY, SOME_MODES, case, cause, check_error, \
    check_leftover, check_says, each, good_save
from .faults import faulty, forget_holds, held_save, open_gate, stalls
from .harness import test
from .strace import need_strace, strace

MIB = 1 << 20


@test('errors: the disk fails at the n-th write', quick=True, timeout=240)
def test_write_error(t):
    def one(mode):
        cases = [(nth, '') for nth in ('b1', 'b2', 'b3', 'b4', 'b5+')]
        if mode.direct:
            cases += [('d1', ''), ('d7', ''), ('d40+', ''), ('d2', 'aio'),
                      ('d1', 'sync'), ('d7', 'sync')]
        for i, (nth, engine) in enumerate(cases):
            number = (errno.EIO, errno.ENOSPC)[i % 2]
            path = t.path('image')
            vm = t.source(guest=DIRTY, emulator=faulty(
                t, 'image', f'write:{nth}:{number}', engine=engine))
            info = vm.try_save(f'file:{path}', mode)
            if info['status'] == 'completed' and nth in ('d40+', 'b4', 'b5+'):
                vm.command('cont')          # there were fewer writes
            else:
                with case(f'write {nth}', engine):
                    check_error(info, path, cause(number))
                vm.ticks_on()
                check_leftover(t, path, mode)
                if i % 4 == 1:
                    good_save(t, vm, mode)
            vm.kill()
    each([Mode(4, True)] if t.config.quick else SOME_MODES, one)


@test('errors: the disk fails at the last writes', timeout=180)
def test_late_write_error(t):
    """Errors while or after writing the device state: the guest is already
    stopped, and must resume."""
    def one(mode):
        log = t.path('count')
        for back in range(0, 4):
            path = t.path('image')
            total = count_writes(t, mode, log)
            vm = t.source(emulator=faulty(t, 'image',
                                          f'write:{total - back}+:5'))
            info = vm.try_save(f'file:{path}', mode)
            if info['status'] != 'completed':
                check_error(info, path, os.strerror(5))
                vm.ticks_on()
                good_save(t, vm, mode)
            else:
                want = vm.ram_hash()
                t.restores(f'file:{path}', want, mode).kill()
            vm.kill()
    each([Mode(0), Mode(4, True)], one)


def count_writes(t, mode, log):
    """Returns the number of write calls of a save."""
    need_strace()
    vm = t.source()
    tracer = strace(vm, log, 'write,pwrite64,writev,pwritev,pwritev2')
    vm.save(f'file:{t.path("image")}', mode)
    tracer.stop()
    vm.kill()
    with open(log, errors='replace') as f:
        return sum('/image>' in line for line in f)


@test('errors: short writes are continued, at every write', quick=True,
      stock='restored RAM is not|BAD page|restore by')
def test_short_writes(t):
    for mode in [Mode(0), Mode(4, True)] if t.config.quick else ALL_MODES:
        for engine in ('', 'aio', 'sync') if mode.channels else ('',):
            uri = f'file:{t.path("image")}'
            vm = t.source(emulator=faulty(t, 'image', 'write:1+:short',
                                          engine=engine))
            vm.save(uri, mode)
            want = vm.ram_hash()
            vm.kill()
            with case(mode, engine):
                t.restores(uri, want, Mode()).kill()


@test('errors: short reads are continued, at every read',
      quick=True, stock='Partial read')
def test_short_reads(t):
    uri = f'file:{t.path("image")}'
    vm = t.source()
    vm.save(uri, Mode(4))
    want = vm.ram_hash()
    vm.kill()
    for mode in [Mode(0), Mode(4, True)] if t.config.quick else ALL_MODES:
        for engine in ('', 'aio', 'sync') if mode.channels else ('',):
            emulator = faulty(t, 'image', 'read:1+:short', engine=engine)
            t.restores(uri, want, mode, emulator=emulator).kill()


@test('errors: the sync fails, at the first or a later attempt', quick=True,
      stock='the save completed, should have failed')
def test_sync_error(t):
    def one(mode):
        path = t.path('image')
        vm = t.source(guest=DIRTY,
                      emulator=faulty(t, 'image', 'sync:1+:5'))
        info = vm.try_save(f'file:{path}', mode)
        check_error(info, path, os.strerror(5))
        vm.ticks_on()
        check_leftover(t, path, mode)
        good_save(t, vm, mode)
        vm.kill()
    each(SOME_MODES, one)


@test('errors: close fails', quick=True)
def test_close_error(t):
    """Some file systems report errors of earlier writes there."""
    def one(mode):
        for number in (errno.EIO, errno.ENOSPC):
            path = t.path('image')
            vm = t.source(guest=DIRTY, emulator=faulty(
                t, 'image', f'close:1+:{number}'))
            info = vm.try_save(f'file:{path}', mode)
            check_error(info, 'Unable to finish writing', path,
                        os.strerror(number))
            vm.ticks_on()
            check_leftover(t, path, mode)
            good_save(t, vm, mode)
            vm.kill()
    each(SOME_MODES, one)


def save_with_hold(t, fault):
    """Runs a save in which one call hangs for a while; checks that QMP
    answers, and that the save does not complete before the call."""
    vm = held_save(t, Mode(2, True), fault, guest=DIRTY)
    for _ in range(5):
        vm.command('query-status')
        status = vm.migration()['status']
        assert status != 'completed', f'{fault}: completed too early'
    assert stalls(t) == ['stall'], f'{fault} was not held'
    open_gate(t)
    info = vm.wait_migration()
    assert info['status'] == 'completed', f'{fault}: {info}'
    assert stalls(t) == ['stall', 'done'], stalls(t)
    vm.kill()
    forget_holds(t)


@test('errors: QMP answers while a sync does not end', quick=True)
def test_held_sync(t):
    save_with_hold(t, 'sync:1')


@test('errors: QMP answers while a write does not end', quick=True)
def test_held_write(t):
    for fault in ('write:d2', 'write:b2'):
        save_with_hold(t, fault)


@test('read errors: the disk fails at the n-th read', quick=True)
def test_read_error(t):
    path = t.path('image')
    src = t.source()
    src.save(f'file:{path}', Mode(4))
    src.kill()
    for mode in (Mode(0), Mode(4), Mode(4, True)):
        cases = [(nth, '') for nth in ('1', '2', '9', '30', 'b3', 'b5')]
        if mode.direct:
            cases += [('d1', ''), ('d2+', ''), ('d20', ''), ('d1', 'sync'),
                      ('d2+', 'sync'), ('d1', 'aio')]
        for nth, engine in cases:
            dst = t.vm(incoming=True, emulator=faulty(
                t, 'image', f'read:{nth}:5', engine=engine))
            said = dst.try_load(f'file:{path}', mode, timeout=60)
            dst.kill()
            if said is None and nth in ('9', '30', 'd20', 'b5'):
                continue                # there were fewer reads
            with case(mode, f'read {nth}', engine):
                assert said, 'it failed, but all was restored'
                check_says(said, path, os.strerror(5))


@test('read errors: btrfs finds bad checksums', quick=True)
def test_bad_checksums(t):
    """Real read errors, somewhere in RAM."""
    target = t.filesystem('btrfs', 640 * MIB)
    path = os.path.join(target, 'image')
    src = t.source()
    src.save(f'file:{path}', Mode(4, True))
    src.kill()
    with open(path, 'rb') as f:
        f.seek(40 * MIB)
        while True:
            page = f.read(4096)
            if any(page):
                break
    fs.unmount(target)
    hit = 0
    device = fs.run('losetup', '-n', '-O', 'NAME', '-j', target + '.img')
    with open(device, 'r+b') as f:
        where = 0
        while chunk := f.read(MIB):
            at = chunk.find(page)
            if at >= 0:
                f.seek(where + at)
                f.write(b'\xff' * 16)
                f.seek(where + MIB)
                hit += 1
            where += MIB
    fs.run('mount', '-t', 'btrfs', device, target)
    assert hit, 'could not find the data on the device'
    for mode in SOME_MODES:
        dst = t.vm(incoming=True)
        said = dst.try_load(f'file:{path}', mode, timeout=60)
        dst.kill()
        assert said, f'({mode}) restored in spite of a read error'
        assert path in said, f'({mode}) "{said}" does not name the file'
