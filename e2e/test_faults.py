# SPDX-License-Identifier: GPL-2.0-or-later
"""Saves that go wrong: the guest goes on, the error is clear, nothing is
called completed that is not."""

import contextlib
import errno
import hashlib
import os
import random
import re
import shutil
import subprocess
import threading
import time

from lab import fs
from lab.faultfd import build_library, with_faults
from lab.qmp import QMPError
from lab.vm import Crashed, Mode

from .harness import Skip, test

MIB = 1 << 20
DIRTY = {'dirty': 32}
SPINS = 5               # seconds of CPU time that no thread needs which waits
ALL_MODES = [Mode(0), Mode(1), Mode(4), Mode(1, True), Mode(4, True)]
SOME_MODES = [Mode(0), Mode(4), Mode(4, True)]


NO_SPACE = ('No space left', 'too small', 'is full')
TOO_LARGE = ('File too large', 'RLIMIT_FSIZE', 'file size limit')


def check_error(info, *words):
    """The save failed, and the error says to a reader what is wrong: it has
    all of `words` in it; where there is a tuple, one of its parts."""
    if info['status'] != 'failed':
        raise AssertionError(f'the save {info["status"]}, should have failed')
    said = info.get('error-desc') or ''
    for word in words:
        choice = word if isinstance(word, tuple) else (word,)
        if not any(w.lower() in said.lower() for w in choice):
            raise AssertionError(f'the error "{said}" does not say '
                                 f'"{choice[0]}"')


def cause(number):
    """How an error may be named."""
    return {errno.ENOSPC: NO_SPACE, errno.EFBIG: TOO_LARGE}.get(
        number, os.strerror(number))


def never_stopped(vm):
    """No STOP event: the failure was found while the guest ran."""
    if any(event['event'] == 'STOP' for event in vm.qmp.events):
        raise AssertionError('the guest was stopped before the error')


def check_leftover(t, path, mode=Mode(2), ram=128):
    """What a failed save left restores nowhere."""
    if not os.path.exists(path):
        return
    dst = t.vm(incoming=True, ram=ram)
    if dst.try_load(f'file:{path}', mode) is None:
        raise AssertionError('what the failed save left can be restored')
    dst.kill()


def good_save(t, vm, mode=Mode(4, True)):
    """A save to a good place works now; leaves the VM running."""
    path = t.path('good-image')
    vm.save(f'file:{path}', mode)
    want = vm.ram_hash()
    vm.command('cont')
    t.restores(f'file:{path}', want, mode, ram=vm.ram).kill()
    os.unlink(path)


def each(modes, function):
    """Calls function(mode) for each mode, says in which one it failed."""
    for mode in modes:
        try:
            function(mode)
        except Exception as err:
            err.args = (f'({mode}) {err}', *err.args[1:])
            raise


# Cancelling

def cancel_often(t, mode, count):
    """One QEMU, many saves, each cancelled at a random moment."""
    rng = random.Random(mode.channels)
    # with less RAM, what stock QEMU does wrong here hardly ever shows
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
            longest = max(0.02, longest * 0.9)  # hit more of the next ones
        vm.ticks_on(1)
        if i == 5:
            descriptors = vm.open_descriptors()
    t.note(f'{mode}: {results["cancelled"]} cancelled, '
           f'{results["completed"]} had completed')
    assert results['cancelled'], 'no save was cancelled'
    now = vm.open_descriptors()
    assert now <= descriptors, \
        f'{now - descriptors} descriptors leaked'
    # and what is left of a cancelled save restores nowhere
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
    """The disk hangs: QMP answers, cancel is accepted, the guest runs."""
    for op in ('write:d3:hold', 'write:b3:hold'):
        vm = t.source(args=(), guest=DIRTY, emulator=faulty(t, 'image', op))
        vm.setup(Mode(2, True))
        vm.start_save(f'file:{t.path("image")}')
        wait_stall(t)
        vm.command('migrate_cancel')
        vm.ticks_on()
        assert stalls(t) == ['stall'], 'the write was not held'
        open_gate(t)
        status = vm.wait_migration()['status']
        assert status in ('cancelled', 'completed'), status
        if status == 'completed':
            vm.command('cont')
        good_save(t, vm)
        vm.kill()
        forget_holds(t)


# I/O errors made by an LD_PRELOAD library

HIDE = {'': '', 'aio': 'io_uring', 'sync': 'io_uring aio'}


def faulty(t, file, *faults, emulator=None, engine=''):
    """Our emulator, in which I/O on files whose names end with `file` goes
    wrong: see lab/faultfd.c.  With an `engine`, those preferred to it are
    hidden."""
    if not shutil.which('gcc'):
        raise Skip("there is no 'gcc' here, to build faultfd.c")
    library = t.path('faultfd.so')
    if not os.path.exists(library):
        build_library(library)
    return with_faults(emulator or t.config.ours, library, file, faults,
                       t.path('fault-log'), t.path('fault-gate'),
                       HIDE[engine])


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
                vm.command('cont')          # there were not so many writes
            else:
                try:
                    check_error(info, path, cause(number))
                except AssertionError as err:
                    raise AssertionError(f'write {nth}, {engine}: '
                                         f'{err}') from None
                vm.ticks_on()
                check_leftover(t, path, mode)
                if i % 4 == 1:
                    good_save(t, vm, mode)
            vm.kill()
    each([Mode(4, True)] if t.config.quick else SOME_MODES, one)


@test('errors: the disk fails at the last writes', timeout=180)
def test_late_write_error(t):
    """Somewhere in the device state and what follows it: the guest is
    stopped by then, and must run again."""
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
    """How many writes a save makes."""
    need_strace()
    vm = t.source()
    tracer = strace(vm, log, 'write,pwrite64,writev,pwritev,pwritev2')
    vm.save(f'file:{t.path("image")}', mode)
    tracer.stop()
    vm.kill()
    with open(log, errors='replace') as f:
        return sum('/image>' in line for line in f)


def need_strace():
    if not shutil.which('strace'):
        raise Skip("there is no 'strace' here")


class strace:
    """strace attached to a running emulator."""

    def __init__(self, vm, log, calls):
        self._process = subprocess.Popen(
            ['strace', '-f', '-y', '-qq', '-s0', '-o', log, '-e',
             'trace=' + calls, '-p', str(vm.pid)],
            stderr=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            tasks = f'/proc/{vm.pid}/task'
            if all(open(f'{tasks}/{tid}/status').read().find(
                    'TracerPid:\t0') < 0 for tid in os.listdir(tasks)):
                return
            time.sleep(0.05)
        self.stop()
        raise Skip('strace cannot attach here')

    def stop(self):
        self._process.terminate()
        self._process.wait()


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
            try:
                t.restores(uri, want, Mode()).kill()
            except AssertionError as err:
                raise AssertionError(f'({mode}, {engine}) {err}') from None


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
    """Whether the save completes or fails, QEMU lives, and completed means
    completed."""
    def one(mode):
        for number in (errno.EIO, errno.ENOSPC):
            path = t.path('image')
            vm = t.source(guest=DIRTY, emulator=faulty(
                t, 'image', f'close:1+:{number}'))
            info = vm.try_save(f'file:{path}', mode)
            time.sleep(0.5)
            if info['status'] == 'completed':
                want = vm.ram_hash()
                t.restores(f'file:{path}', want, mode).kill()
                vm.command('cont')
            else:
                check_error(info, path)
            vm.ticks_on()
            good_save(t, vm, mode)
            vm.kill()
    each(SOME_MODES, one)


def stalls(t):
    """What lab/faultfd.c noted about stalls."""
    try:
        with open(t.path('fault-log')) as f:
            return f.read().split()
    except FileNotFoundError:
        return []


def wait_stall(t):
    """Waits until a stall or a hold has begun."""
    while not stalls(t):
        time.sleep(0.02)


def open_gate(t):
    """Lets go of what is held."""
    open(t.path('fault-gate'), 'w').close()


def forget_holds(t):
    """Makes ready for the next stall or hold."""
    for name in ('fault-log', 'fault-gate'):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(t.path(name))


def save_with_hold(t, fault):
    """A save of which one call does not end for a while: QMP answers, and
    the save is not completed before."""
    vm = t.source(guest=DIRTY, emulator=faulty(t, 'image', fault + ':hold'))
    vm.setup(Mode(2, True))
    vm.start_save(f'file:{t.path("image")}')
    wait_stall(t)
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


# Targets that refuse

@test('refused: a file system without O_DIRECT', quick=True, stock='SIGSEGV')
def test_no_odirect(t):
    """Found before the guest is stopped; the message names file and file
    system; the image that was there is still there."""
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
    # and when restoring
    said = t.vm(incoming=True).try_load(f'file:{path}', Mode(2, True))
    assert said and path in said and 'ramfs' in said, \
        f'restoring says "{said}", which does not name the file and ramfs'


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
        (f'file:{nowhere}', nowhere),
        (f'file:{t.dir}', t.dir),
        ('file:/dev/fdset/99', 'fdset'),
        ('file:', 'file'),
        (f'file:{image},offset=rubbish', 'offset'),
        (f'file:{image},offset=-1', 'offset'),
        (f'file:{image},offset=', 'offset'),
        (f'file:{image},offset=9E', 'offset'),
        (f'file:{fifo}', fifo),
    ]
    wrong = []
    for uri, word in cases:
        for mode in (Mode(2, True), Mode(0)):
            info = vm.try_save(uri, mode, timeout=30)
            try:
                check_error(info, word)
            except AssertionError as err:
                wrong.append(f'{uri}, {mode}: {err}')
                if info['status'] == 'completed':
                    vm.command('cont')
            vm.ticks_on(1)
    never_stopped(vm) if not wrong else None
    good_save(t, vm)
    assert not wrong, '; '.join(wrong)


def fdset_case(t, vm, uri, mode, *fds):
    vm.add_fds(3, *fds)
    info = vm.try_save(uri, mode)
    for entry in vm.command('query-fdsets'):
        vm.command('remove-fd', {'fdset-id': entry['fdset-id']})
    return info


@test('fdset: wrong descriptors are refused with a reason',
      quick=True, stock='different files: completed')
def test_fdset_wrong(t):
    """Each of these either fails with a message or gives a good image."""
    uri = 'file:/dev/fdset/3'
    direct = os.O_DIRECT
    wr, rd, rw = os.O_WRONLY | os.O_CREAT, os.O_RDONLY, os.O_RDWR | os.O_CREAT
    pipe = os.pipe()
    a, b = t.path('a'), t.path('b')
    open(a, 'w').close()
    cases = {
        'only a buffered one': [(a, wr)],
        'only a direct one': [(a, wr | direct)],
        'two buffered ones': [(a, wr), (a, wr)],
        'two direct ones': [(a, wr | direct), (a, wr | direct)],
        'read-only ones': [(a, rd), (a, rd | direct)],
        'read-write ones': [(a, rw), (a, rw | direct)],
        'a read-write and a direct one': [(a, rw), (a, wr | direct)],
        'different files': [(a, wr), (b, wr | direct)],
        'the direct one first': [(a, wr | direct), (a, wr)],
        'a directory': [(t.dir, rd), (t.dir, rd)],
        'a pipe': None,
        'a pipe and a direct one': [None, (a, wr | direct)],
        'none at all': [],
    }
    must_fail = {'only a buffered one', 'two buffered ones', 'read-only ones',
                 'different files', 'a directory', 'a pipe', 'none at all'}
    must_work = {'the direct one first'}
    wrong = []
    for name, files in cases.items():
        vm = t.source(guest=DIRTY)
        if files is None:
            fds = [os.dup(pipe[1])]
        else:
            fds = [os.open(*f, 0o600) if f else os.dup(pipe[1])
                   for f in files]
        try:
            info = fdset_case(t, vm, uri, Mode(2, True), *fds)
            if info['status'] == 'completed':
                if name in must_fail:
                    raise AssertionError('completed')
                want = vm.ram_hash()
                t.restores(f'file:{a}', want, Mode(2)).kill()
                vm.command('cont')
            else:
                assert name not in must_work, info
                check_error(info, '' if name == 'none at all' else 'fdset')
                never_stopped(vm)
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
    cases = {
        'only a buffered one': ([(a, rd)], True),
        'only a direct one': ([(a, rd | direct)], False),
        'read-write ones': ([(a, rw), (a, rw | direct)], False),
        'write-only ones': ([(a, os.O_WRONLY), (a, os.O_WRONLY | direct)],
                            True),
        'different files': ([(a, rd), (b, rd | direct)], True),
        'a directory': ([(t.dir, rd), (t.dir, rd)], True),
        'a pipe': (None, True),
    }
    wrong = []
    for name, (files, must_fail) in cases.items():
        fds = [os.open(*f) for f in files] if files else [os.dup(pipe[0])]
        dst = t.vm(incoming=True, ram=32)
        try:
            dst.add_fds(3, *fds)
            said = dst.try_load('file:/dev/fdset/3', Mode(2, True))
            if said is None:
                assert not must_fail, 'restored'
                assert dst.ram_hash() == want, 'restored RAM is wrong'
            else:
                assert 'fdset' in said, f'"{said}" does not name the fdset'
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
    for other in ('compress', 'xbzrle', 'postcopy-ram'):
        # Without multifd, which some versions do not combine with them
        vm.setup(Mode(0))
        try:
            vm.command('migrate-set-capabilities', {'capabilities': [
                {'capability': other, 'state': True}]})
        except Exception as err:
            assert 'mapped-ram' in str(err) or 'not found' in str(err) or \
                'does not accept' in str(err), str(err)
            continue
        info = vm.try_save(f'file:{t.path("image")}')
        assert info.get('refused'), f'{other} is accepted with mapped-ram'
        check_error(info, 'mapped-ram')
        vm.command('migrate-set-capabilities', {'capabilities': [
            {'capability': other, 'state': False}]})
    vm.ticks_on()
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


# Targets that are full

def fill(directory, leave):
    """A file that leaves only `leave` bytes."""
    filler = os.path.join(directory, 'filler')
    with open(filler, 'ab') as f:
        step = 64 * MIB
        while step >= 4096:
            if fs.free_bytes(directory) - leave < step:
                step //= 2
                continue
            try:
                os.posix_fallocate(f.fileno(), f.tell(), step)
                f.seek(0, os.SEEK_END)
            except OSError:
                step //= 2
    os.sync()
    return filler


@test('full: the target has no space; then it has', quick=True, timeout=400)
def test_full(t):
    kinds = [('tmpfs', 200 * MIB), ('ext4', 300 * MIB)]
    if not t.config.quick:
        kinds += [('xfs', 400 * MIB), ('btrfs', 400 * MIB)]
    for kind, size in kinds:
        target = t.filesystem(kind, size)
        path = os.path.join(target, 'image')
        # with room for a part of RAM, then for nothing at all
        leaves = (24 * MIB, 0) if kind in ('tmpfs', 'xfs') else (24 * MIB,)
        for leave in leaves:
            filler = fill(target, leave)

            def one(mode):
                vm = t.source(guest=DIRTY)
                free = fs.free_bytes(target)
                for _ in range(2):
                    info = vm.try_save(f'file:{path}', mode)
                    try:
                        check_error(info, path,
                                    cause(errno.ENOSPC))
                    except AssertionError as err:
                        raise AssertionError(f'{kind}: {err}') from None
                    vm.ticks_on(1)
                check_leftover(t, path, mode)
                os.sync()
                now = fs.free_bytes(target)
                if now < free - 8 * MIB:
                    raise AssertionError(
                        f'{kind}: a failed save keeps {free - now} bytes')
                if leave:
                    good_save(t, vm, mode)
                vm.kill()
                if os.path.exists(path):
                    os.unlink(path)
            each([Mode(4, True), Mode(0)] if t.config.quick else SOME_MODES,
                 one)
            os.unlink(filler)
        vm = t.source(guest=DIRTY)
        vm.save(f'file:{path}', Mode(4, True))
        want = vm.ram_hash()
        t.restores(f'file:{path}', want).kill()
        vm.kill()


@test('full: RAM that does not fit is refused before it is written',
      quick=True, timeout=200)
def test_does_not_fit(t):
    """While the guest runs.  What is zero needs no room."""
    for kind, size in (('tmpfs', 200 * MIB), ('ext4', 300 * MIB),
                       ('xfs', 400 * MIB)):
        # The firmware's is the only memory that is not zero
        small = t.vm(guest=False, ram=256)
        for mode in (Mode(4, True), Mode(0)):
            # Anew, since file systems give space back when it suits them
            target = t.filesystem(kind, size, f'{kind}{mode.channels}')
            path = os.path.join(target, 'image')
            fill(target, 24 * MIB)
            vm = t.source(guest=DIRTY)
            info = vm.try_save(f'file:{path}', mode)
            check_error(info, path, cause(errno.ENOSPC))
            check_early(vm, info, kind)
            vm.kill()
            small.save(f'file:{path}', mode)
            want = small.ram_hash()
            dst = t.vm(incoming=True, guest=False, ram=256)
            dst.load(f'file:{path}', mode)
            assert dst.ram_hash() == want, 'restored RAM differs'
            dst.kill()
            small.command('cont')
        small.kill()


@test('full: the old image in the file makes room for the new one',
      timeout=200)
def test_reused(t):
    for kind, size in (('tmpfs', 200 * MIB), ('ext4', 300 * MIB),
                       ('xfs', 400 * MIB)):
        target = t.filesystem(kind, size)
        path = os.path.join(target, 'image')
        vm = t.source(guest=DIRTY)
        vm.save(f'file:{path}', Mode(4, True))
        fill(target, 24 * MIB)
        vm.command('cont')
        try:
            vm.save(f'file:{path}', Mode(4, True))
        except AssertionError as err:
            raise AssertionError(f'{kind}: {err}') from None
        t.restores(f'file:{path}', vm.ram_hash(), Mode(1)).kill()
        vm.kill()


@test('full: a tmpfs without a limit has room', quick=True)
def test_no_limit(t):
    """It says that it has nothing."""
    target = t.filesystem('tmpfs', 0)
    vm = t.source(guest=DIRTY)
    vm.save(f'file:{target}/image', Mode(2))
    want = vm.ram_hash()
    t.restores(f'file:{target}/image', want, Mode(2)).kill()


@test('full: a file system that may compress only leads to a warning',
      timeout=120)
def test_may_fit(t):
    target = t.filesystem('btrfs', 400 * MIB)
    fill(target, 24 * MIB)
    vm = t.source(guest=DIRTY)
    info = vm.try_save(f'file:{target}/image', Mode(4, True))
    # RAM or the main stream, whichever finds the file system full first
    check_error(info, ('cannot write', 'Unable to write'),
                cause(errno.ENOSPC))
    assert 'RAM may need' in vm.stderr(), vm.stderr()
    vm.ticks_on(1)


def check_early(vm, info, kind):
    """Nothing was written for nothing, and the guest has not noticed."""
    never_stopped(vm)
    written = sum(info['direct-io'][kind]
                  for kind in ('direct-bytes', 'buffered-bytes'))
    assert not written, f'{kind}: {written} bytes were written'
    said = info['error-desc']
    assert kind in said, said
    assert re.search(r'needs at least \d{8} bytes', said), said
    vm.ticks_on(1)


@test('full: the target fills up and has space again', timeout=300)
def test_full_and_not(t):
    """Writes come back short when space ends inside them, and the next ones
    succeed; only what is really in the file may be called completed."""
    for kind, size in (('tmpfs', 160 * MIB), ('btrfs', 320 * MIB)):
        target = t.filesystem(kind, size)
        path = os.path.join(target, 'image')
        filler = os.path.join(target, 'filler')
        stop = threading.Event()
        rng = random.Random(1)

        def toggle():
            fd = os.open(filler, os.O_RDWR | os.O_CREAT, 0o600)
            while not stop.is_set():
                free = fs.free_bytes(target)
                try:
                    os.posix_fallocate(fd, 0, max(free - rng.randrange(
                        4096, 4 * MIB), 4096))
                except OSError:
                    pass
                time.sleep(rng.uniform(0, 0.004))
                os.ftruncate(fd, 0)
                time.sleep(rng.uniform(0, 0.002))
            os.close(fd)

        completed = failed = 0
        thread = threading.Thread(target=toggle)
        thread.start()
        try:
            vm = t.source(guest={'dirty': 4})
            for i in range(8 if t.config.quick else 16):
                mode = SOME_MODES[i % len(SOME_MODES)]
                info = vm.try_save(f'file:{path}', mode)
                if info['status'] == 'completed':
                    completed += 1
                    want = vm.ram_hash()
                    try:
                        t.restores(f'file:{path}', want, Mode(2)).kill()
                    except AssertionError as err:
                        raise AssertionError(f'{kind}, {mode}: a completed '
                                             f'save: {err}') from None
                    vm.command('cont')
                else:
                    failed += 1
                    check_error(info, path)
                vm.ticks_on(1)
        finally:
            stop.set()
            thread.join()
        t.note(f'{kind}: {completed} completed, {failed} failed')
        vm.kill()


@test('full: RLIMIT_FSIZE, above and below offset=', quick=True)
def test_rlimit(t):
    limit = 40 * MIB
    for offset in (0, MIB, limit - 4096, limit, limit + 4096, 4 * limit):
        def one(mode):
            path = t.path('image')
            vm = t.source(guest=DIRTY, rlimit_fsize=limit)
            try:
                info = vm.try_save(f'file:{path},offset={offset}', mode)
                check_error(info, path, cause(errno.EFBIG))
                vm.ticks_on()
            except (AssertionError, Crashed) as err:
                err.args = (f'offset {offset}: {err}',)
                raise
            vm.kill()
            if os.path.exists(path):
                os.unlink(path)
        each([Mode(4, True), Mode(0)] if t.config.quick else SOME_MODES, one)


@test('full: a retry at once after a failure',
      quick=True, stock='duplicate yank instance|was killed by SIG')
def test_retry(t):
    """As soon as a failure is told, the next save may begin."""
    bad = t.filesystem('tmpfs', 24 * MIB)
    refusing = t.filesystem('ramfs', MIB)
    good = t.path('good')
    for mode in SOME_MODES:
        vm = t.source(guest=DIRTY)
        vm.setup(mode)
        for i in range(6 if t.config.quick else 9):
            target = refusing if mode.direct and i % 3 == 0 else bad
            try:
                vm.start_save(f'file:{target}/image')
            except Exception:
                pass
            while vm.migration().get('status') not in ('failed', 'cancelled',
                                                       None):
                pass
            try:
                vm.start_save(f'file:{good}')
            except Exception as err:
                raise AssertionError(f'({mode}) an immediate retry is '
                                     f'refused: {err}') from err
            info = vm.wait_migration()
            assert info['status'] == 'completed', info
            if i % 5 == 0:
                want = vm.ram_hash()
                t.restores(f'file:{good}', want).kill()
            vm.command('cont')
            vm.ticks_on(1)
        vm.kill()


# Devices

@test('devices: a block device as the target',
      quick=True, stock='failed to truncate')
def test_block_device(t):
    device = t.loop(t.path('disk'), 512 * MIB)
    for mode in [Mode(0), Mode(4, True)] if t.config.quick else ALL_MODES:
        for offset in ('', ',offset=1M'):
            vm = t.source(guest=DIRTY)
            vm.save(f'file:{device}{offset}', mode)
            want = vm.ram_hash()
            vm.kill()
            t.restores(f'file:{device}{offset}', want, mode).kill()
            t.restores(f'file:{device}{offset}', want, Mode(2)).kill()


@test('devices: a block device that is too small', quick=True)
def test_small_device(t):
    device = t.loop(t.path('disk'), 48 * MIB)

    def one(mode):
        vm = t.source(guest=DIRTY)
        info = vm.try_save(f'file:{device}', mode)
        check_error(info, device)
        vm.ticks_on()
        check_leftover(t, device, mode)
        good_save(t, vm, mode)
        vm.kill()
    each(SOME_MODES, one)


@test('devices: sectors of 16 KiB', quick=True)
def test_big_sectors(t):
    try:
        device = t.loop(t.path('disk'), 512 * MIB, sector_size=16384)
    except OSError as err:
        raise Skip(f'no sectors of 16 KiB here: {err}') from None
    targets = [device]
    try:
        target = t.filesystem('xfs', 640 * MIB, sector_size=16384,
                              mkfs=('-b', 'size=16384', '-s', 'size=16384'))
        targets.append(os.path.join(target, 'image'))
    except OSError as err:
        t.note(f'only the raw device: {err}')
    for path in targets:
        for mode in [Mode(0), Mode(2, True)] if t.config.quick else ALL_MODES:
            for guest in ({}, {'dirty': 64, 'pause': 20000}):
                try:
                    vm = t.source(guest=guest)
                    vm.save(f'file:{path}', mode)
                    want = vm.ram_hash()
                    vm.kill()
                    t.restores(f'file:{path}', want, mode).kill()
                except Exception as err:
                    kind = 'raw device' if path == device else 'xfs'
                    err.args = (f'{kind}, {mode}: {err}',)
                    raise


@test('devices: 16 KiB sectors read an image saved on 512-byte ones',
      quick=True, stock='SIGSEGV')
def test_moved_to_big_sectors(t):
    try:
        device = t.loop(t.path('disk'), 512 * MIB, sector_size=16384)
    except OSError as err:
        raise Skip(f'no sectors of 16 KiB here: {err}') from None
    vm = t.source()
    vm.save(f'file:{t.path("image")}', Mode(4, True))
    want = vm.ram_hash()
    vm.kill()
    fs.run('dd', f'if={t.path("image")}', f'of={device}', 'bs=1M',
           'conv=notrunc,fsync')
    for mode in (Mode(4, True), Mode(1, True), Mode(0)):
        t.restores(f'file:{device}', want, mode).kill()


@test('devices: the disk runs out beneath, found at write or at sync',
      quick=True, timeout=240)
def test_thin(t):
    """A sparse disk image in a full file system: buffered writes succeed and
    are lost when the kernel writes them back."""
    small = t.filesystem('tmpfs', 48 * MIB, name='small')
    device = t.loop(os.path.join(small, 'disk'), 400 * MIB)

    def one(mode):
        vm = t.source(guest=DIRTY)
        info = vm.try_save(f'file:{device}', mode)
        check_error(info, device)
        vm.ticks_on()
        good_save(t, vm, mode)
        vm.kill()
    each(SOME_MODES, one)
    os.truncate(os.path.join(small, 'disk'), 0)


@test('devices: ext4 on a disk that runs out beneath')
def test_thin_ext4(t):
    for mode in SOME_MODES:
        small = t.filesystem('tmpfs', 48 * MIB, name=f'small{mode.channels}'
                             f'{mode.direct}')
        target = t.filesystem('ext4', 400 * MIB, name=f'e{mode.channels}'
                              f'{mode.direct}',
                              backing=os.path.join(small, 'disk'),
                              mkfs=('-E', 'lazy_itable_init=1', '-J',
                                    'size=4'), options='errors=continue')
        path = os.path.join(target, 'image')
        vm = t.source(guest=DIRTY)
        info = vm.try_save(f'file:{path}', mode)
        try:
            check_error(info, path)
            vm.ticks_on()
            good_save(t, vm, mode)
        except AssertionError as err:
            raise AssertionError(f'({mode}) {err}') from None
        vm.kill()


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
                continue                # there were not so many reads
            assert said, f'({mode}) read {nth} failed, but it was restored'
            if path not in said or os.strerror(5).lower() not in said.lower():
                raise AssertionError(f'({mode}) read {nth}: "{said}" does '
                                     'not name the file and the cause')


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


@test('restore: QMP lives while the disk is slow', quick=True)
def test_busy_restore(t):
    """Reads take seconds; meanwhile QMP answers, and what can't be done now
    is refused or done, but hurts nothing."""
    path = t.path('image')
    src = t.source()
    src.save(f'file:{path}', Mode(4))
    want = src.ram_hash()
    src.kill()
    meddling = [
        ('query-migrate', None),
        ('migrate-set-capabilities', {'capabilities': [
            {'capability': 'mapped-ram', 'state': False}]}),
        ('migrate-set-capabilities', {'capabilities': [
            {'capability': 'multifd', 'state': False}]}),
        ('migrate-set-parameters', {'direct-io': False}),
        ('migrate-set-parameters', {'multifd-channels': 1}),
        ('device_add', {'driver': 'no-such-device'}),
        ('migrate-incoming', {'uri': f'file:{path}'}),
        ('migrate', {'uri': f'file:{path}.other'}),
        ('migrate_cancel', None),
    ]
    # The first reads, of the headers, are done by the main thread
    cases = [(f'read:{fault}', *command) for fault in ('d2:hold', 'b3:stall=2')
             for command in meddling]
    for fault, name, arguments in cases[:6] if t.config.quick else cases:
        dst = t.vm(incoming=True, emulator=faulty(t, 'image', fault))
        dst.setup(Mode(2, True))
        dst.command('migrate-incoming', {'uri': f'file:{path}'})
        wait_stall(t)
        with contextlib.suppress(QMPError):
            dst.command(name, arguments)
        what = f'{name} {arguments or ""} ({fault})'
        if 'hold' in fault:
            assert stalls(t) == ['stall'], f'{what}: the read was not held'
            open_gate(t)
        try:
            info = dst.wait_migration()
            assert info['status'] == 'completed', info
            assert dst.ram_hash() == want, 'restored RAM is wrong'
        except Exception as err:
            raise AssertionError(f'{what}: {err}') from None
        dst.kill()
        forget_holds(t)


class HeldRestore:
    """A restore of which one read of RAM does not end until release()."""

    def __init__(self, t, mode):
        self.t = t
        path = t.path('image')
        src = t.source()
        src.save(f'file:{path}', Mode(4))
        self.want = src.ram_hash()
        src.kill()
        self.vm = t.vm(incoming=True,
                       emulator=faulty(t, 'image', 'read:d2:hold'))
        self.vm.setup(mode)
        self.vm.command('migrate-incoming', {'uri': f'file:{path}'})
        wait_stall(t)

    def release(self):
        assert stalls(self.t) == ['stall'], 'the read was not held'
        open_gate(self.t)
        info = self.vm.wait_migration()
        assert info['status'] == 'completed', info
        assert self.vm.ram_hash() == self.want, 'restored RAM is wrong'


@test('restore: QMP answers while a read does not end', quick=True,
      stock='QMP does not answer')
def test_held_read(t):
    held = HeldRestore(t, Mode(2, True))
    for command in ('query-status', 'query-migrate', 'query-name') * 5:
        held.vm.command(command, timeout=10)
    held.release()


@test('restore: no thread spins while a read does not end', quick=True,
      stock='spins')
def test_spinning(t):
    """A thread that waits takes no CPU time for a while; one that spins takes
    more and more of it, if slowly on a busy machine."""
    held = HeldRestore(t, Mode(1, True))
    start = last = held.vm.cpu_times()
    at_rest = 0
    while at_rest < 10:
        time.sleep(0.05)
        now = held.vm.cpu_times()
        at_rest = 0 if now != last else at_rest + 1
        last = now
        for thread, used in now.items():
            used -= start.get(thread, 0)
            assert used < SPINS, f'thread {thread} spins: it took {used:.1f} s'
    held.release()


# More than one save

@test('files: two virtual machines save to one file',
      quick=True, stock='both saves completed')
def test_two_savers(t):
    """At most one completes, and then the file has its RAM."""
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
    # descriptors of two files
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
    """The second descriptor is the same file even if the name has gone."""
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
