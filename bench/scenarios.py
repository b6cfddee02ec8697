# SPDX-License-Identifier: GPL-2.0-or-later
"""The scenarios: each is a list of tasks, and a task is one side with one
content.  All tasks of all chosen scenarios take turns in each round, so that
other load on the machine affects them equally."""

import collections
import copy

from lab.content import Content

from . import conditions
from .instant import Instant, Start
from .sides import Fio, Guest, Live, OnEmulatedDisk, OnTmpfs, Pipe, \
    Populate, Scan, Socket

Task = collections.namedtuple('Task', 'scenario side content')

# An emulated disk with 7200 rpm: bytes per second, seconds
ROTATING = {'rate': 120e6, 'seek': 0.004, 'turn': 60 / 7200}
STALLS_FOR = 4
LIMIT = 100 * 1000 * 1000           # bytes per second, for max-bandwidth
RATES = (100 * 1000 * 1000, 500 * 1000 * 1000)      # of live guests
SIZES = (1, 2, 4, 8, 16)            # GiB
INSTANT_SIZES = (1, 4, 16)          # GiB
TOP = 16384                         # MiB of the all-zero guest


class Setting:
    """The settings from which scenarios are created.

    ours, stock, base   emulators; all but ours may be None
    engines     to force, by name; empty: ours chooses
    channels    numbers of multifd channels
    direct      which of direct (True) and buffered (False) to measure
    ram         MiB
    programs    names of the sides to measure; empty: all
    skip        a regular expression: sides not to measure, or None
    """

    def __init__(self, ours, stock, base, engines, channels, direct, ram,
                 programs, skip=None):
        self.ours = ours
        self.stock = stock
        self.base = base
        self.engines = engines
        self.channels = channels
        self.direct = direct
        self.ram = ram
        self.programs = programs
        self.skip = skip

    def but(self, **changes):
        """A copy with some settings changed."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def wants(self, program):
        return not self.programs or program in self.programs

    def others(self):
        """(name, emulator) of the others that have mapped-ram."""
        return [(name, emulator) for name, emulator in
                (('stock', self.stock), ('base', self.base))
                if emulator and self.wants(name) and emulator.has_mapped_ram]

    def all(self):
        ours = [('ours', self.ours)] if self.wants('ours') else []
        return ours + self.others()

    def ends(self):
        """The smallest and the largest number of channels."""
        return sorted({min(self.channels), max(self.channels)})


def _guests(setting, channels, direct):
    """Ours with each engine, and the others."""
    sides = []
    if setting.wants('ours'):
        # Buffered I/O does not use engines
        engines = setting.engines if direct else [None]
        sides += [Guest('ours', setting.ours, channels, direct, engine)
                  for engine in engines or [None]]
    return sides + [Guest(name, emulator, channels, direct)
                    for name, emulator in setting.others()]


def _content(name, setting):
    content = Content(name, setting.ram)
    sides = []
    if setting.wants('fio'):
        sides += [Fio(runs=Guest('ours', setting.ours, 1, True), huge=True)] \
            if content.run_bytes() else \
            [Fio(), Fio(huge=True), Fio(final=True)]
    for channels in setting.channels:
        for direct in setting.direct:
            sides += _guests(setting, channels, direct)
    if setting.wants('exec'):
        sides.append(Pipe('exec', setting.ours))
    return [Task(name, side, content) for side in sides]


def random(setting):
    return _content('random', setting)


def fresh(setting, memory='fresh'):
    """What users get: restores into untouched memory."""
    content = Content('random', min(setting.ram, 2048))
    sides = [Fio(huge=True), Populate(memory)] if setting.wants('fio') else []
    return [Task(memory, side, content) for side in sides] + \
        [Task(memory, Guest(name, emulator, channels, True, memory=memory),
              content)
         for channels in setting.channels
         for name, emulator in setting.all()]


def reclaimed(setting):
    """The same when the outer host had taken the memory back."""
    return fresh(setting, conditions.RECLAIMED)


def backends(setting):
    """The same with other kinds of memory."""
    content = Content('random', min(setting.ram, 2048))
    return [Task('backends', Guest(name, emulator, channels, True,
                                   memory=memory), content)
            for memory in ('memfd', 'hugetlb')
            for channels in setting.ends()
            for name, emulator in setting.all()]


def tmpfs(setting):
    """No disk involved."""
    content = Content('random', min(setting.ram, 2048))
    return [Task('tmpfs', OnTmpfs(name, emulator, channels, True), content)
            for channels in setting.ends()
            for name, emulator in setting.all()]


def live(setting):
    """Guests that run during the save, and how long they are stopped at its
    end."""
    content = Content('random', min(setting.ram, 1024))
    return [Task('live', Live(name, emulator, channels, True, rate=rate),
                 content)
            for rate in RATES
            for channels in setting.ends()
            for name, emulator in setting.all()]


def instant(setting):
    """How soon a guest runs, and what its load costs it."""
    return [Task('instant', Instant(name, emulator, 1, way, paused),
                 Content('random', size << 10))
            for size in INSTANT_SIZES if size << 10 <= 4 * setting.ram
            for name, emulator, way, paused in (
                ('ours', setting.ours, True, False),
                ('ours', setting.ours, True, True),
                ('ours', setting.ours, False, False),
                ('stock', setting.stock, False, False))
            if emulator]


def start(setting):
    """How soon a guest runs, often enough to compare sizes."""
    return [Task('start', Start('ours', setting.ours, 1),
                 Content('random', size << 10))
            for size in INSTANT_SIZES if size << 10 <= 4 * setting.ram]


def half_zero_64k(setting):
    return _content('half-zero-64k', setting)


def half_zero_8k(setting):
    return _content('half-zero-8k', setting)


def zero(setting):
    content = Content('zero', setting.ram if setting.ram < 1024 else TOP)
    sides = []
    for channels in setting.ends():
        if setting.wants('scan'):
            sides.append(Scan(channels))
        sides += [Guest(name, emulator, channels, True)
                  for name, emulator in setting.all()]
    return [Task('zero', side, content) for side in sides]


def sizes(setting):
    """Ours only: is the cost per GiB the same in small and large guests?"""
    return [Task('sizes', Guest('ours', setting.ours, max(setting.channels),
                                True), Content('random', size << 10))
            for size in SIZES]


def bandwidth(setting):
    content = Content('random', min(setting.ram, 512))
    return [Task('bandwidth', Guest(name, emulator, channels, True,
                                    bandwidth=LIMIT), content)
            for channels in setting.channels
            for name, emulator in setting.all()]


def slow(setting):
    """Fragmented RAM to a rotating disk; stock also with the setting that
    suits it there.  Stock gets less RAM, because it would take too long
    otherwise."""
    def content(name):
        return Content('half-zero-64k', min(setting.ram, 512
                                            if name == 'ours' else 64))

    return [Task('slow', OnEmulatedDisk(name, emulator, channels, True,
                                        model=ROTATING, legacy=legacy),
                 content(name))
            for channels in setting.ends()
            for name, emulator in setting.all()
            for legacy in ([False, True] if name == 'stock' else [False])]


def stall(setting):
    """A disk that stalls for seconds in the middle of a save."""
    content = Content('random', min(setting.ram, 256))
    model = {'stall': (content.ram << 19, STALLS_FOR)}
    return [Task('stall', OnEmulatedDisk(name, emulator, channels, True,
                                         model=model, restore=False), content)
            for channels in setting.ends()
            for name, emulator in setting.all()]


def tcp(setting):
    """Multifd over sockets, before and after."""
    content = Content('random', min(setting.ram, 2048))
    return [Task('tcp', Socket(name, emulator, channels, False), content)
            for channels in [0, *setting.ends()]
            for name, emulator in (('ours', setting.ours),
                                   ('base', setting.base)) if emulator]


SCENARIOS = {'fresh': fresh, 'random': random, 'backends': backends,
             'tmpfs': tmpfs, 'live': live, 'instant': instant, 'start': start,
             'half-zero-64k': half_zero_64k, 'half-zero-8k': half_zero_8k,
             'zero': zero, 'sizes': sizes,
             'bandwidth': bandwidth, 'slow': slow, 'stall': stall, 'tcp': tcp,
             'reclaimed': reclaimed}


def plan(names, setting):
    """The tasks of the given scenarios, without those to skip."""
    tasks = []
    for name in names:
        tasks += SCENARIOS[name](setting)
    return [task for task in tasks
            if not (setting.skip and setting.skip.search(task.side.name))]


def order(tasks, number):
    """The tasks in the order of round `number`, so that neighbours vary, and
    each of two neighbours comes first in half of the rounds: the first one to
    use a kind of memory may pay for all."""
    if not tasks:
        return tasks
    shift = number // 2 * max(len(tasks) // 3, 1) % len(tasks)
    shifted = tasks[shift:] + tasks[:shift]
    return shifted[::-1] if number % 2 else shifted
