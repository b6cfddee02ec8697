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
from .sides import Lacking
from .stats import BUSY, busiest

GIB = 1 << 30
ROOM = 2 * GIB              # how much memory and disk space must stay free
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
            'round': number, 'alone': task.side.works_alone, **result}


def undisturbed(task, place, cpus, any_load=False):
    """The result of a run during which the machine was otherwise nearly idle
    (unless that does not matter), or None if it stayed busy."""
    for attempt in range(ATTEMPTS):
        result = task.side.run(place, task.content)
        busy = busiest(result, cpus) \
            if task.side.works_alone and not any_load else 0
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


class Round:
    """The runs of one round.  If one side could not be measured undisturbed,
    the other runs of that round with the same content go as well, because
    figures are compared round by round."""

    def __init__(self, number, runs):
        self.number = number
        self.runs = runs
        self.first = len(runs)
        self.spoiled = set()

    @staticmethod
    def _of(task):
        return task.scenario, task.content.kind, task.content.ram

    def wants(self, task):
        return self._of(task) not in self.spoiled

    def add(self, task, result):
        self.runs.append(record(task, self.number, result))

    def spoil(self, task):
        self.spoiled.add(self._of(task))
        self.runs[self.first:] = [
            run for run in self.runs[self.first:]
            if (run['scenario'], run['content'], run['ram'])
            != self._of(task)]


def run(tasks, place, rounds, clock, runs, done=lambda: None, any_load=False):
    """Runs all tasks `rounds` times, but starts no round that is likely to end
    late, except the first one; adds to `runs`, and calls done() after each.
    `any_load`: also counts what others disturbed."""
    longest = 0
    for number in range(rounds):
        if number and not clock.fits(longest):
            say(f'no time for round {number + 1}')
            return
        begun = time.monotonic()
        this = Round(number, runs)
        for task in order(tasks, number):
            if this.wants(task) and _measure(task, place, this, any_load):
                say_times(task, runs[-1], f'{number + 1}/{rounds}')
            done()
        longest = max(longest, time.monotonic() - begun)


def _measure(task, place, this, any_load):
    """Whether a run was added."""
    why = lacks(task, place.directory, place.has_image(task.content))
    if why:
        say(f'left out, {why}: {task.content.name}, {task.side.name}')
        return False
    try:
        result = undisturbed(task, place, os.cpu_count() or 1, any_load)
    except Lacking as err:
        say(f'left out, {err}: {task.content.name}, {task.side.name}')
        return False
    if task.scenario == 'sizes':
        place.forget_images(task.content.ram)
    if result is None:
        say(f'round {this.number + 1} does not count: {task.scenario}, '
            f'{task.content.name}')
        this.spoil(task)
        return False
    this.add(task, result)
    return True


def say_times(task, run_, which):
    times = ', '.join(
        f'{phase} {run_[phase].get("seconds", run_[phase].get("first")):.2f} s'
        for phase in ('save', 'restore') if phase in run_)
    say(f'round {which}: {task.content.name}, {task.side.name}: {times}')
