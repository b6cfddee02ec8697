# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the tasks, round after round."""

import os
import shutil
import sys
import time

from lab.meter import field
from lab.reserve import LEAVE

from . import conditions
from .scenarios import order

GIB = 1 << 30
ROOM = 2 * GIB              # how much memory and disk space must stay free
# If others use more of the CPU time than this, a run is worthless
BUSY = 0.25
ATTEMPTS = 3


def say(text):
    print('# ' + text, file=sys.stderr, flush=True)


def lacks(task, directory, has_image=False, available=None, free=None):
    """Why a task cannot run here, or None."""
    if available is None:
        with open('/proc/meminfo') as f:
            available = field(f.read(), 'MemAvailable') + conditions.held()
    if free is None:
        free = shutil.disk_usage(directory).free
    guests = 2 if task.scenario == 'tcp' else 1
    ram = task.content.ram
    need = max((guests * ram << 20) + ROOM,
               conditions.wanted(ram) + LEAVE << 20)
    if need > available:
        return f'not {available / GIB:.0f} GiB of memory'
    # The image unless it is kept, and the file that is saved to
    files = 1 if has_image else 2
    if files * task.content.data_bytes() + ROOM > free:
        return f'not {free / GIB:.0f} GiB of free space'
    return None


def record(task, number, result):
    return {'scenario': task.scenario, 'content': task.content.kind,
            'ram': task.content.ram, 'data': task.content.data_bytes(),
            'name': task.side.name, 'facts': task.side.facts(),
            'round': number, **result}


def busiest(result, cpus):
    """The share of the CPU time that something else used, in the worst phase.
    Part of it is kernel work for our own I/O."""
    return max((max(f['machine_cpu'] - f['cpu'], 0) / (f['seconds'] * cpus)
                for f in result.values()
                if {'machine_cpu', 'cpu'} <= f.keys() and f['seconds']),
               default=0)


def undisturbed(task, place, cpus):
    """The result of a run during which the machine was otherwise nearly idle,
    or None if it stayed busy."""
    for attempt in range(ATTEMPTS):
        result = task.side.run(place, task.content)
        busy = busiest(result, cpus) if task.side.works_alone else 0
        if busy <= BUSY:
            break
        say(f'{task.side.name}: something else took {busy:.0%} of the CPUs'
            + ('; again' if attempt < ATTEMPTS - 1 else ', not counted'))
    return result if busy <= BUSY else None


class Clock:
    """Whether another run fits into `minutes`; None: no limit."""

    def __init__(self, minutes, now=time.monotonic):
        self.now = now
        self.end = None if minutes is None else now() + minutes * 60

    def fits(self, seconds):
        return self.end is None or self.now() + seconds <= self.end


def run(tasks, place, rounds, clock, runs, done=lambda: None):
    """Runs all tasks `rounds` times, but starts no round that is likely to end
    late, except the first one; adds to `runs`, and calls done() after each."""
    longest = 0
    for number in range(rounds):
        if number and not clock.fits(longest):
            say(f'no time for round {number + 1}')
            return
        begun = time.monotonic()
        for task in order(tasks, number):
            why = lacks(task, place.directory,
                        place.has_image(task.content))
            if why:
                say(f'left out, {why}: {task.content.name}, '
                    f'{task.side.name}')
                continue
            result = undisturbed(task, place, os.cpu_count() or 1)
            if result is None:
                continue
            runs.append(record(task, number, result))
            done()
            times = ', '.join(
                f'{phase} {figures.get("seconds", figures.get("first")):.2f} s'
                for phase, figures in result.items())
            say(f'round {number + 1}/{rounds}: {task.content.name}, '
                f'{task.side.name}: {times}')
            if task.scenario == 'sizes':
                place.forget_images(task.content.ram)
        longest = max(longest, time.monotonic() - begun)
