# SPDX-License-Identifier: GPL-2.0-or-later
"""How soon a restored guest runs, and how soon it has all of its RAM."""

import time

from lab.guest import build_checker, configure_checker
from lab.meter import drop_caches
from lab.vm import VM

from .sides import RECLAIM_SECONDS, Guest, completed, start

CHECK = 1024                        # pages that the guest checks in a round
FIGURES = {'running': 'running', 'first': 'first sign',
           'sweep': 'all checked', 'seconds': 'all loaded'}


class Instant(Guest):
    """A guest that checks its memory, restored with a cold page cache.

    instant     whether it runs while its RAM is loaded, or after that

    The guest knows no more than 2 GiB.  Larger machines have RAM that is filled
    from outside, and no guest that runs: how soon one may run is measured, and
    when all is loaded.

    All times are seconds from migrate-incoming on: until `cont` is done, until
    the guest says anything, until it has checked all of its RAM, and until all is
    loaded."""

    LARGEST = 2048                  # MiB of the guest

    def __init__(self, program, emulator, channels, instant):
        super().__init__(program, emulator, channels, True, memory='fresh')
        self.instant = instant
        self.works_alone = False    # the guest works, too
        self.name += ', instant' if instant else ', eager'

    def facts(self):
        return {**super().facts(), 'instant': self.instant}

    def boot(self, place, content, incoming):
        rom = configure_checker(build_checker(place.sockets),
                                place.path('guest.rom'), dirty=16, check=CHECK)
        return VM(self.emulator, place.sockets, 'instant', ram=content.ram,
                  firmware=rom, incoming=incoming, patience=300)

    def make_guest_image(self, place, content, path):
        vm = self.boot(place, content, False)
        try:
            vm.wait_guest('tick', 1, timeout=900)
            self.save(vm, path)
        finally:
            vm.kill()

    def watch(self, vm, begin, checks):
        """The times, as they come; without a guest that checks, two."""
        tick, sweep = vm.last_number('tick'), vm.last_number('sweep')
        while vm.migration()['status'] not in ('postcopy-active', 'completed'):
            time.sleep(0.001)
        if checks:
            vm.command('cont')
        found = {'running': time.monotonic() - begin}
        while len(found) < (len(FIGURES) if checks else 2):
            now = {'first': vm.last_number('tick') > tick,
                   'sweep': vm.last_number('sweep') > sweep,
                   'seconds': vm.migration()['status'] == 'completed'}
            for name, done in now.items():
                if done:
                    found.setdefault(name, time.monotonic() - begin)
            vm.check_guest()
            vm.raise_if_dead()
            time.sleep(0.002)
        return found

    def run(self, place, content):
        checks = content.ram <= self.LARGEST
        make = self.make_guest_image if checks else self.make_image
        image = place.image(content, 'checker' if checks else self.image,
                            lambda path: make(place, content, path))
        if checks:
            drop_caches()
            time.sleep(RECLAIM_SECONDS)
            vm = self.boot(place, content, True)
        else:
            vm = start(self.emulator, place, content, True, memory='fresh')
        try:
            self.setup(vm)
            if self.instant:
                vm.command('migrate-set-capabilities', {'capabilities': [
                    {'capability': 'postcopy-ram', 'state': True}]})
            drop_caches()
            begin = time.monotonic()
            vm.command('migrate-incoming', {'uri': 'file:' + image})
            found = self.watch(vm, begin, checks)
            info = completed(self, 'restore', vm.migration())
            if not checks:
                content.check(vm.pid)
            told = info.get('direct-io', {}).get('instant', {})
            return {'restore': {**found, **{
                key: told[key] for key in ('faults', 'fault-median',
                                           'fault-p99') if key in told}}}
        finally:
            vm.kill()
