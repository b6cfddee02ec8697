# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures how soon a restored guest runs and how soon its RAM is loaded."""

import contextlib
import json
import signal
import subprocess
import time

from lab.content import MIB
from lab.guest import build_checker, configure_checker
from lab.meter import drop_caches
from lab.vm import VM

from .sides import MEMORY, RECLAIM_SECONDS, Guest, completed

CHECK = 1024                        # pages that the guest checks in a round
PAGE = 4096
FIGURES = {'running': 'running', 'first': 'first sign',
           'tenth': 'a tenth checked', 'sweep': 'all checked',
           'seconds': 'all loaded'}
# Microseconds, as query-migrate reports them; shown as milliseconds
FAULTS = {'fault-median': 'fault, median, ms', 'fault-p99': 'p99, ms',
          'probe-median': 'a read of 4 KiB, median, ms', 'probe-p99': 'p99, ms'}


class Probe:
    """Reads 4 KiB at a time from a file with direct I/O, with a pause after
    each read: shows how long a page read takes beside other reads."""

    PAUSE = 2000                        # microseconds

    def __init__(self, path):
        self._process = subprocess.Popen(
            ['fio', '--name=probe', f'--filename={path}', '--readonly',
             '--rw=randread', '--bs=4k', '--direct=1', '--ioengine=psync',
             f'--thinktime={self.PAUSE}', '--time_based', '--runtime=900',
             '--output-format=json'], stdout=subprocess.PIPE, text=True)

    def stop(self):
        """Microseconds: {'probe-median', 'probe-p99'}."""
        self._process.send_signal(signal.SIGINT)
        out, _ = self._process.communicate()
        times = json.loads(out[out.index('{'):])['jobs'][0]['read']['clat_ns']
        found = times.get('percentile', {})
        return {f'probe-{name}': found[key] / 1000 for name, key in
                (('median', '50.000000'), ('p99', '99.000000'))
                if key in found}


class Instant(Guest):
    """A guest that checks its memory, restored with a cold page cache.

    instant     whether it runs while its RAM is loaded, or after that

    The guest uses no more than 2 GiB.  In larger machines it uses LARGE_PAGES,
    and the rest of RAM is filled from outside.

    All times are in seconds since migrate-incoming: until `cont` has returned,
    until the first output of the guest, until the guest has checked a tenth of
    its RAM and all of it (if it uses all), and until all RAM is loaded."""

    LARGEST = 2048                  # MiB
    LARGE_PAGES = 256 * MIB // PAGE

    def __init__(self, program, emulator, channels, instant):
        super().__init__(program, emulator, channels, True, memory='fresh')
        self.instant = instant
        self.works_alone = False    # the guest works, too
        self.name += ', instant' if instant else ', eager'

    def facts(self):
        return {**super().facts(), 'instant': self.instant}

    def boot(self, place, content, incoming, memory):
        pages = {} if content.ram <= self.LARGEST else \
            {'pages': self.LARGE_PAGES}
        rom = configure_checker(build_checker(place.sockets),
                                place.path('guest.rom'), dirty=16, check=CHECK,
                                **pages)
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

    def watch(self, vm, begin, pages):
        """Records the times as the events occur; `pages`: the number of pages
        that the guest uses, if it uses all."""
        sweep = vm.last_number('sweep')
        while vm.migration()['status'] not in ('postcopy-active', 'completed'):
            time.sleep(0.001)
        vm.command('cont')
        found = {'running': time.monotonic() - begin}
        wanted = {'first', 'seconds'} | ({'tenth', 'sweep'} if pages else set())
        while wanted - found.keys():
            # Its own numbers continue from those of the image
            ticks = sum(line.startswith('tick ') for line in vm.serial())
            now = {'first': ticks > 0,
                   'tenth': ticks * CHECK * 10 >= pages,
                   'sweep': vm.last_number('sweep') > sweep,
                   'seconds': vm.migration()['status'] == 'completed'}
            for name in wanted:
                if now[name]:
                    found.setdefault(name, time.monotonic() - begin)
            vm.check_guest()
            vm.raise_if_dead()
            time.sleep(0.002)
        return found

    @contextlib.contextmanager
    def probe(self, image, figures):
        """Measures how long a read of a page takes meanwhile."""
        if not self.instant:
            yield
            return
        probe = Probe(image)
        try:
            yield
        finally:
            figures.update(probe.stop())

    def run(self, place, content):
        pages = content.ram * MIB // PAGE if content.ram <= self.LARGEST else 0
        image = place.image(content, 'checker', lambda path:
                            self.make_guest_image(place, content, path))
        drop_caches()
        time.sleep(RECLAIM_SECONDS)
        vm = self.boot(place, content, True, 'fresh')
        figures = {}
        try:
            self.setup(vm)
            if self.instant:
                vm.command('migrate-set-capabilities', {'capabilities': [
                    {'capability': 'postcopy-ram', 'state': True}]})
            drop_caches()
            with self.probe(image, figures):
                begin = time.monotonic()
                vm.command('migrate-incoming', {'uri': 'file:' + image})
                figures.update(self.watch(vm, begin, pages))
            info = completed(self, 'restore', vm.migration())
            told = info.get('direct-io', {}).get('instant', {})
            return {'restore': {**figures, **{
                key: told[key] for key in ('faults', 'fault-median',
                                           'fault-p99') if key in told}}}
        finally:
            vm.kill()
