# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the tasks, round after round."""

import os
import shutil
import sys
import time

from .meter import field
from .scenarios import order

GIB = 1 << 30
ROOM = 2 * GIB              # what is to stay free, of memory and of the disk


def say(text):
    print('# ' + text, file=sys.stderr, flush=True)


def lacks(task, directory, available=None, free=None):
    """Why a task can't be done here, or None."""
    if available is None:
        with open('/proc/meminfo') as f:
            available = field(f.read(), 'MemAvailable')
    if free is None:
        free = shutil.disk_usage(directory).free
    guests = 2 if task.scenario == 'tcp' else 1
    if guests * (task.content.ram << 20) + ROOM > available:
        return f'not {available / GIB:.0f} GiB of memory'
    # The image, and the file that is saved to
    if 2 * task.content.data_bytes() + ROOM > free:
        return f'not {free / GIB:.0f} GiB of free space'
    return None


def record(task, number, result):
    return {'scenario': task.scenario, 'content': task.content.kind,
            'ram': task.content.ram, 'data': task.content.data_bytes(),
            'name': task.side.name, 'facts': task.side.facts(),
            'round': number, **result}


class Clock:
    """Whether another round fits into `minutes`; None: any does."""

    def __init__(self, minutes, now=time.monotonic):
        self.now = now
        self.start = now()
        self.seconds = None if minutes is None else minutes * 60
        self.longest = 0
        self.begun = self.start

    def fits(self):
        """To be asked before each round; the first one always fits."""
        now = self.now()
        self.longest = max(self.longest, now - self.begun)
        self.begun = now
        return self.seconds is None or \
            now + self.longest <= self.start + self.seconds or \
            now == self.start


def run(tasks, place, rounds, minutes, runs, done=lambda: None):
    """Runs all tasks `rounds` times, as far as they fit into `minutes`; adds
    to `runs`, and calls done() after each."""
    clock = Clock(minutes)
    for number in range(rounds):
        if number and not clock.fits():
            say(f'no time for round {number + 1}')
            return
        if not number:
            clock.fits()
        for task in order(tasks, number):
            why = lacks(task, place.directory)
            if why:
                say(f'left out, {why}: {task.content.name}, '
                    f'{task.side.name}')
                continue
            result = task.side.run(place, task.content)
            runs.append(record(task, number, result))
            done()
            times = ', '.join(
                f'{phase} {result[phase]["seconds"]:.2f} s'
                for phase in ('save', 'restore') if phase in result)
            say(f'round {number + 1}/{rounds}: {task.content.name}, '
                f'{task.side.name}: {times}')
            if task.scenario == 'sizes':
                place.forget_images(task.content.ram)
