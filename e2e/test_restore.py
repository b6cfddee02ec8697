# SPDX-License-Identifier: GPL-2.0-or-later
"""Restores from a disk that is slow: QMP answers, and no thread spins."""

import time

from lab.vm import Mode

from .checks import case, expect_error
from .faults import HeldRestore, faulty, forget_holds, open_gate, stalls, \
    wait_stall
from .harness import test

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
