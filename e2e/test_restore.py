# SPDX-License-Identifier: GPL-2.0-or-later
"""Restores from a disk that is slow or damaged: QMP answers, no thread spins,
and only what is needed is read."""

import contextlib
import errno
import mmap
import os
import time

from lab import image
from lab.vm import Mode

from .checks import case, expect_error
from .faults import HeldRestore, faulty, forget_holds, open_gate, stalls, \
    wait_stall
from .harness import test

MIB = 1 << 20
SPINS = 5               # CPU seconds; more than a waiting thread ever uses


BUSY = 'a migration process in progress'
# Commands, and what the error says if they are refused
MEDDLING = [
    ('query-migrate', None, None),
    ('migrate-set-capabilities', {'capabilities': [
        {'capability': 'mapped-ram', 'state': False}]}, BUSY),
    ('migrate-set-capabilities', {'capabilities': [
        {'capability': 'multifd', 'state': False}]}, BUSY),
    ('migrate-set-parameters', {'direct-io': False}, None),
    ('migrate-set-parameters', {'multifd-channels': 1}, None),
    ('device_add', {'driver': 'no-such-device'}, 'no-such-device'),
    ('migrate-incoming', {'uri': 'file:/nowhere'}, 'already been started'),
    ('migrate', {'uri': 'file:/nowhere'}, 'incoming migration'),
    ('migrate_cancel', None, None),
]


@test('restore: QMP lives while the disk hangs', quick=True, timeout=240)
def test_busy_restore(t):
    """A read of RAM, or one of the main stream, does not end.  Meanwhile QMP
    answers, and commands that conflict with the restore are refused or
    succeed, but do no harm."""
    path = t.path('image')
    src = t.source()
    src.save(f'file:{path}', Mode(4))
    want = src.ram_hash()
    src.kill()
    faults = ('read:d2:hold', 'read:b3:hold')
    cases = [(fault, *command) for i, command in enumerate(MEDDLING)
             for fault in (faults[i % 2:][:1] if t.config.quick else faults)]
    for fault, name, arguments, refused in cases:
        dst = t.vm(incoming=True, emulator=faulty(t, 'image', fault))
        dst.setup(Mode(2, True))
        dst.command('migrate-incoming', {'uri': f'file:{path}'})
        wait_stall(t, dst)
        with case(name, arguments or '', fault):
            if refused:
                with expect_error('it was not refused', refused):
                    dst.command(name, arguments)
            else:
                dst.command(name, arguments)
            assert stalls(t) == ['stall'], 'the read was not held'
            open_gate(t)
            info = dst.wait_migration()
            assert info['status'] == 'completed', info
            assert dst.ram_hash() == want, 'restored RAM is wrong'
        dst.kill()
        forget_holds(t)


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
    """A waiting thread uses no CPU time for a while; a spinning one keeps
    using more, though slowly on a busy machine."""
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


@test('restore: pages that are not in the image are not read from btrfs',
      quick=True)
def test_btrfs_gap(t):
    """What the guest changed while it was written has a wrong checksum there,
    on older kernels, and stays so if it then becomes zero."""
    target = t.filesystem('btrfs', 400 * MIB)
    path = os.path.join(target, 'image')
    t.saved(path, Mode(2, True))
    ram = max(image.blocks(path), key=lambda block: block.length)
    page = ram.length // 4096 // 2 + 5      # within a large read
    place = ram.pages_offset + page * 4096
    with open(path, 'r+b') as f:
        f.seek(place)
        data = f.read(4096)
        clear_bit(f, ram.bitmap_offset, page)
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert any(data), 'that page is zero'
    damage(target + '.img', data)
    with open(path, 'rb') as f, expect_errno(errno.EIO):
        f.seek(place)
        f.read(4096)
    for mode in (Mode(2, True), Mode(0)):
        vm = t.vm(incoming=True)
        vm.load(f'file:{path}', mode)
        said = vm.hmp(f'xp /2gx {page * 4096:#x}')
        assert said.split()[1:] == ['0x0000000000000000'] * 2, said
        vm.kill()


def clear_bit(f, bitmap, bit):
    f.seek(bitmap + bit // 8)
    byte = f.read(1)[0]
    f.seek(bitmap + bit // 8)
    f.write(bytes([byte & ~(1 << bit % 8)]))


def damage(disk, data):
    """Changes a byte of the only sector of the disk that has this data."""
    with open(disk, 'r+b') as f, mmap.mmap(f.fileno(), 0) as memory:
        at = memory.find(data)
        assert at >= 0 and memory.find(data, at + 1) < 0
        memory[at] ^= 1


@contextlib.contextmanager
def expect_errno(number):
    try:
        yield
    except OSError as err:
        assert err.errno == number, err
    else:
        raise AssertionError(f'no {errno.errorcode[number]}')
