# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that write to memory as fast as they can while being saved, with each
engine."""

import itertools
import os

from lab.vm import Mode

from .faults import check_engine, each_engine, engines, with_engine
from .harness import test

RAM = 32
BUSY = {'dirty': 512}


@test('engines: a guest that dirties its memory all the time', quick=True,
      timeout=400)
def test_busy_guest(t):
    """Pages are written more than once, and the last content counts."""
    def one(engine):
        emulator = with_engine(t, engine)
        uri = f'file:{t.path("image")}'
        rewritten = 0
        modes = (Mode(1, True), Mode(4, True))
        vm = t.source(ram=RAM, guest=BUSY, emulator=emulator)
        for i in itertools.count():
            # The guest writes much or little, depending on its CPU time
            if i >= len(modes) and rewritten > 1000:
                break
            mode = modes[i % len(modes)]
            # Slow enough for the guest to modify pages already written
            vm.setup(mode, max_bandwidth=32 << 20)
            vm.start_save(uri)
            info = vm.wait_or_hurry()
            assert info['status'] == 'completed', info
            check_engine(info, engine)
            ram = info['ram']
            rewritten += ram['normal'] + ram['duplicate'] - \
                ram['total'] // 4096
            want = vm.ram_hash()
            t.restores(uri, want, mode, ram=RAM, emulator=emulator).kill()
            vm.command('cont')
            vm.ticks_on(1)
            os.unlink(t.path('image'))
        vm.kill()
        t.note(f'{engine}: {rewritten} pages were saved more than once')
    each_engine(t, one)


@test('engines: all of them work here', quick=True)
def test_engines(t):
    """Otherwise the tests for each engine would test the same one three
    times."""
    found = []
    wanted = engines(t)
    for engine in wanted:
        vm = t.source(ram=RAM, emulator=with_engine(t, engine))
        info = vm.save(f'file:{t.path("image")}', Mode(1, True))
        found.append(info['direct-io']['engine'])
        vm.kill()
    t.note(', '.join(found))
    assert found == wanted, found
