# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that are full: the error says so, the guest continues, and once
there is space again a save succeeds."""

import errno
import os
import random
import re
import threading
import time

from lab import fs
from lab.qmp import QMPError
from lab.vm import FINAL, Mode

from .checks import DIRTY, SOME_MODES, case, cause, check_error, \
    check_leftover, each, good_save, never_stopped
from .harness import test

MIB = 1 << 20


def fill(directory, leave):
    """Fills the file system until only `leave` bytes are free."""
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
        modes = t.modes(target, [Mode(0), Mode(4, True)] if t.config.quick
                        else SOME_MODES)
        # With room for part of RAM, then with none at all
        leaves = (24 * MIB, 0) if kind in ('tmpfs', 'xfs') else (24 * MIB,)
        for leave in leaves:
            filler = fill(target, leave)

            def one(mode):
                vm = t.source(guest=DIRTY)
                free = fs.free_bytes(target)
                for _ in range(2):
                    info = vm.try_save(f'file:{path}', mode)
                    with case(kind):
                        check_error(info, path, cause(errno.ENOSPC))
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
            each(modes, one)
            os.unlink(filler)
        vm = t.source(guest=DIRTY)
        vm.save(f'file:{path}', modes[-1])
        want = vm.ram_hash()
        t.restores(f'file:{path}', want).kill()
        vm.kill()


@test('full: RAM that does not fit is refused before it is written',
      quick=True, timeout=200)
def test_does_not_fit(t):
    """The check happens while the guest runs.  Zero pages need no space."""
    for kind, size in (('tmpfs', 200 * MIB), ('ext4', 300 * MIB),
                       ('xfs', 400 * MIB)):
        # Only the memory of the firmware is not zero
        small = t.vm(guest=False, ram=256)
        for mode in (Mode(4, True), Mode(0)):
            # Created again, because file systems may free space late
            target = t.filesystem(kind, size, f'{kind}{mode.channels}')
            path = os.path.join(target, 'image')
            mode, *_ = t.modes(target, [mode, Mode(mode.channels)])
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


def check_early(vm, info, kind):
    """Checks that nothing was written, and that the guest was not affected."""
    never_stopped(vm)
    written = sum(info['direct-io'][kind]
                  for kind in ('direct-bytes', 'buffered-bytes'))
    assert not written, f'{kind}: {written} bytes were written'
    said = info['error-desc']
    assert kind in said, said
    assert re.search(r'needs at least \d{8} bytes', said), said
    vm.ticks_on(1)


@test('full: the old image in the file makes room for the new one',
      timeout=200)
def test_reused(t):
    for kind, size in (('tmpfs', 200 * MIB), ('ext4', 300 * MIB),
                       ('xfs', 400 * MIB)):
        target = t.filesystem(kind, size)
        path = os.path.join(target, 'image')
        mode, *_ = t.modes(target, [Mode(4, True), Mode(4)])
        vm = t.source(guest=DIRTY)
        vm.save(f'file:{path}', mode)
        fill(target, 24 * MIB)
        vm.command('cont')
        with case(kind):
            vm.save(f'file:{path}', mode)
        t.restores(f'file:{path}', vm.ram_hash(), Mode(1)).kill()
        vm.kill()


@test('full: a tmpfs without a limit has room', quick=True)
def test_no_limit(t):
    """Such a tmpfs reports no free space."""
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
    # RAM or the main stream, whichever hits the full file system first
    check_error(info, ('cannot write', 'Unable to write'),
                cause(errno.ENOSPC))
    assert 'RAM may need' in vm.stderr(), vm.stderr()
    vm.ticks_on(1)


@test('full: the target fills up and has space again', timeout=300)
def test_full_and_not(t):
    """A write is short if space runs out during it, and later ones succeed;
    the save may be reported as completed only if the file contains all
    data."""
    for kind, size in (('tmpfs', 160 * MIB), ('btrfs', 320 * MIB)):
        target = t.filesystem(kind, size)
        path = os.path.join(target, 'image')
        filler = os.path.join(target, 'filler')
        modes = t.modes(target, SOME_MODES)
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
                mode = modes[i % len(modes)]
                info = vm.try_save(f'file:{path}', mode)
                if info['status'] == 'completed':
                    completed += 1
                    want = vm.ram_hash()
                    with case(kind, mode, 'a completed save'):
                        t.restores(f'file:{path}', want, Mode(2)).kill()
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
            with case(f'offset {offset}'):
                info = vm.try_save(f'file:{path},offset={offset}', mode)
                check_error(info, path, cause(errno.EFBIG))
                vm.ticks_on()
            vm.kill()
            if os.path.exists(path):
                os.unlink(path)
        each([Mode(4, True), Mode(0)] if t.config.quick else SOME_MODES, one)


@test('full: a retry at once after a failure',
      quick=True, stock='duplicate yank instance|was killed by SIG')
def test_retry(t):
    """As soon as a failure is reported, the next save may begin."""
    bad = t.filesystem('tmpfs', 24 * MIB)
    refusing = t.filesystem('ramfs', MIB)
    good = t.path('good')
    for mode in t.modes(bad, SOME_MODES):
        vm = t.source(guest=DIRTY)
        vm.setup(mode)
        for i in range(6 if t.config.quick else 9):
            target = refusing if mode.direct and i % 3 == 0 else bad
            try:
                vm.start_save(f'file:{target}/image')
                # Without a pause, so that the retry follows at once
                while (status := vm.migration()['status']) not in FINAL:
                    pass
                assert status == 'failed', f'a full target: {status}'
            except QMPError:
                assert target == refusing
            try:
                vm.start_save(f'file:{good}')
            except QMPError as err:
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
