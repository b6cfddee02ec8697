# SPDX-License-Identifier: GPL-2.0-or-later
"""Restores from a disk that is slow: QMP answers, and no thread spins."""

import contextlib
import time

from lab.qmp import QMPError
from lab.vm import Mode

from .checks import case
from .faults import HeldRestore, faulty, forget_holds, open_gate, stalls, \
    wait_stall
from .harness import test

SPINS = 5               # CPU seconds; more than a waiting thread ever uses


@test('restore: QMP lives while the disk is slow', quick=True)
def test_busy_restore(t):
    """Reads take seconds; meanwhile QMP answers, and commands that conflict
    with the restore are refused or succeed, but do no harm."""
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
    # The main thread does the first reads, of the headers
    cases = [(f'read:{fault}', *command) for fault in ('d2:hold', 'b3:stall=2')
             for command in meddling]
    for fault, name, arguments in cases[:6] if t.config.quick else cases:
        dst = t.vm(incoming=True, emulator=faulty(t, 'image', fault))
        dst.setup(Mode(2, True))
        dst.command('migrate-incoming', {'uri': f'file:{path}'})
        wait_stall(t)
        with contextlib.suppress(QMPError):
            dst.command(name, arguments)
        with case(name, arguments or '', fault):
            if 'hold' in fault:
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
