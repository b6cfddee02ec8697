# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures how soon a restored guest runs and how soon its RAM is loaded."""

import contextlib
import time

from lab.content import MIB
from lab.guest import build_checker, configure_checker
from lab.vm import VM

from . import conditions
from .probe import Probe
from .sides import MEMORY, PAGE, Guest, completed

CHECK = 1024                        # pages that the guest checks in a round
FIGURES = {'running': 'running', 'first': 'first sign',
           'tenth': 'a tenth checked', 'sweep': 'all checked',
           'seconds': 'all loaded'}
# Microseconds, as query-migrate reports them; shown as milliseconds
FAULTS = {'fault-median': 'fault, median, ms', 'fault-p99': 'p99, ms',
          'probe-median': 'a read of 4 KiB, median, ms', 'probe-p99': 'p99, ms'}


def status(vm):
    """The status of a restore, unless that has failed or QEMU has ended."""
    vm.raise_if_dead()
    info = vm.migration()
    # None before it has begun
    said = info.get('status')
    if said in ('failed', 'cancelled'):
        raise RuntimeError(f'{vm.name}: restore {said}: '
                           f'{info.get("error-desc")}')
    return said


class Instant(Guest):
    """A guest that checks its memory, restored with a cold page cache.

    instant     whether it runs while its RAM is loaded, or after that
    paused      whether it does not run at all until its RAM is loaded, which
                shows what the load costs without a guest that uses a CPU

    The guest uses no more than 2 GiB.  In larger machines it uses LARGE_PAGES,
    and the rest of RAM is filled from outside.

    All times are in seconds since migrate-incoming: until `cont` has returned,
    until the first output of the guest, until the guest has checked a tenth of
    its RAM and all of it (if it uses all), and until all RAM is loaded."""

    LARGEST = 2048                  # MiB
    LARGE_PAGES = 256 * MIB // PAGE

    def __init__(self, program, emulator, channels, instant, paused=False):
        super().__init__(program, emulator, channels, True, memory='fresh')
        self.instant = instant
        self.paused = paused
        self.works_alone = False    # the guest works, too
        self.name += (', instant' if instant else ', eager') + \
            (', paused' if paused else '')

    def facts(self):
        return {**super().facts(), 'instant': self.instant,
                **({'paused': True} if self.paused else {})}

    def boot(self, place, content, incoming, memory):
        pages = {} if content.ram <= self.LARGEST else \
            {'pages': self.LARGE_PAGES}
        rom = configure_checker(build_checker(place.sockets),
                                place.path('guest.rom'), dirty=16, check=CHECK,
                                **pages)
        conditions.prepare(content.ram, memory)
        return VM(self.emulator, place.sockets, 'instant', ram=content.ram,
                  firmware=rom, incoming=incoming, patience=300,
                  args=('-object', f'{MEMORY[memory]},id=ram0,'
                        f'size={content.ram}M',
                        '-machine', 'memory-backend=ram0',
                        *(() if incoming else ('-S',))))

    def make_guest_image(self, place, content, path):
        vm = self.boot(place, content, False, 'touched')
        try:
            if content.ram > self.LARGEST:
                content.fill(vm.pid)
            vm.command('cont')
            vm.wait_guest('tick', 1, timeout=900)
            self.save(vm, path)
        finally:
            vm.kill()

    def watch(self, vm, begin, pages, probe):
        """Records the times as the events occur, and until all RAM is loaded,
        how long a read of a page takes.  `pages`: the number of pages that the
        guest uses, if it uses all."""
        sweep = vm.last_number('sweep')
        found = {'running': self.resume(vm, begin)}
        probe.begin()
        self.watch_guest(vm, begin, pages, sweep, probe, found)
        if self.instant:
            found.update(probe.figures())
        return found

    @staticmethod
    def resume(vm, begin):
        """Lets the guest run as soon as it may.  Returns when that was."""
        while status(vm) not in ('postcopy-active', 'completed'):
            time.sleep(0.001)
        vm.command('cont')
        return time.monotonic() - begin

    @staticmethod
    def watch_paused(vm, begin):
        while status(vm) != 'completed':
            time.sleep(0.01)
        return {'seconds': time.monotonic() - begin}

    @staticmethod
    def watch_guest(vm, begin, pages, sweep, probe, found):
        wanted = {'first', 'seconds'} | ({'tenth', 'sweep'} if pages else set())
        while wanted - found.keys():
            # Its own numbers continue from those of the image
            ticks = vm.count_lines('tick')
            now = {'first': ticks > 0,
                   'tenth': ticks * CHECK * 10 >= pages,
                   'sweep': vm.last_number('sweep') > sweep,
                   'seconds': status(vm) == 'completed'}
            for name in wanted - found.keys():
                if now[name]:
                    found[name] = time.monotonic() - begin
            if 'seconds' in found:
                probe.stop()
            vm.check_guest()
            time.sleep(0.002)

    def run(self, place, content):
        pages = content.ram * MIB // PAGE if content.ram <= self.LARGEST else 0
        image = place.image(content, 'checker', lambda path:
                            self.make_guest_image(place, content, path))
        vm = self.boot(place, content, True, 'fresh')
        try:
            self.setup(vm)
            if self.instant:
                vm.set_capabilities('postcopy-ram')
            with contextlib.closing(Probe(image)) as probe:
                conditions.ready(content.ram, self.memory)
                begin = time.monotonic()
                vm.command('migrate-incoming', {'uri': 'file:' + image})
                return {'restore': self.measure(vm, begin, pages, probe)}
        finally:
            vm.kill()

    def measure(self, vm, begin, pages, probe):
        if self.paused:
            return self.watch_paused(vm, begin)
        figures = self.watch(vm, begin, pages, probe)
        info = completed(self, 'restore', vm.migration())
        told = info.get('direct-io', {}).get('instant', {})
        return {**figures, **{key: told[key] for key in
                              ('faults', 'fault-median', 'fault-p99')
                              if key in told}}


class Start(Instant):
    """The start of an instant restore alone, which takes so little time that
    only many rounds give a steady median."""

    def __init__(self, program, emulator, channels):
        super().__init__(program, emulator, channels, True)

    def measure(self, vm, begin, pages, probe):
        found = {'running': self.resume(vm, begin)}
        while not vm.count_lines('tick'):
            vm.raise_if_dead()
            time.sleep(0.001)
        return {**found, 'first': time.monotonic() - begin}
