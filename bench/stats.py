# SPDX-License-Identifier: GPL-2.0-or-later
"""From runs to figures.  A run is one task in one round, as a dictionary:
scenario, content, ram, name and facts of the side, and its figures by phase.
Nothing here measures or prints."""

import collections
import statistics

from lab.meter import spread

MIB = 1 << 20
# If others use more of the CPU time than this, a run is worthless
BUSY = 0.25
TICKS = 0.1             # seconds: so inexact is the CPU time of the machine
# There something else has work to do, by design; for runs that were recorded
# without saying so
SHARED = ('slow', 'stall', 'tcp', 'live', 'instant', 'start')


def busiest(result, cpus):
    """The share of the CPU time that something else used, in the worst phase.
    Part of it is kernel work for our own I/O."""
    return max((max(f['machine_cpu'] - f['cpu'] - TICKS, 0)
                / (f['seconds'] * cpus)
                for f in result.values()
                if isinstance(f, dict) and
                {'machine_cpu', 'cpu'} <= f.keys() and f['seconds']),
               default=0)


def disturbed(run, cpus):
    """Whether something else took so much CPU time that a run does not
    count."""
    alone = run.get('alone', run['facts'].get('direct', False)
                    and run['scenario'] not in SHARED)
    return alone and busiest(run, cpus) > BUSY


class Row:
    """All runs of one side with one content."""

    def __init__(self, runs):
        self.runs = runs
        first = runs[0]
        self.scenario = first['scenario']
        self.content = first['content']
        self.ram = first['ram']
        self.data = first['data']
        self.name = first['name']
        self.facts = first['facts']

    def has(self, phase, figure='seconds'):
        return any(figure in run.get(phase, {}) for run in self.runs)

    def values(self, phase, figure='seconds'):
        return [run[phase][figure] for run in self.runs
                if figure in run.get(phase, {})]

    def rounds(self, phase, figure='seconds'):
        """The values by round, whose key is (session, number)."""
        found = {}
        for run in self.runs:
            if figure in run.get(phase, {}):
                key = run.get('session', 0), run['round']
                found.setdefault(key, []).append(run[phase][figure])
        return {key: statistics.median(values)
                for key, values in found.items()}

    def spread(self, phase, figure='seconds'):
        return spread(self.values(phase, figure))

    def median(self, phase, figure='seconds'):
        return statistics.median(self.values(phase, figure))

    def most(self, phase, figure):
        return max(self.values(phase, figure))

    def is_(self, **facts):
        return all(self.facts.get(key) == value
                   for key, value in facts.items())


class Rows:
    """The rows of a collection of runs, in the order of their first run."""

    def __init__(self, runs):
        groups = {}
        for run in runs:
            key = run['scenario'], run['content'], run['ram'], run['name']
            groups.setdefault(key, []).append(run)
        self.rows = [Row(group) for group in groups.values()]

    def scenarios(self):
        return list(dict.fromkeys(row.scenario for row in self.rows))

    def of(self, scenario, phase=None, **facts):
        return [row for row in self.rows if row.scenario == scenario
                and row.is_(**facts) and (not phase or row.has(phase))]

    def ours(self, scenario, phase, **facts):
        """Ours with direct I/O and the engine that it chooses or, if that was
        not measured, the first engine that was."""
        rows = self.of(scenario, phase, program='ours', direct=True, **facts)
        engines = [row.facts.get('engine') for row in rows]
        first = None if None in engines else engines[0] if engines else None
        return [row for row in rows if row.facts.get('engine') == first]


# A quotient of figures: median, least and most of all rounds that have both;
# or, if no round has both, the quotient of medians, not `paired`
Ratio = collections.namedtuple('Ratio', 'median least most count paired')


class Figure:
    """One figure of a row, times `scale`."""

    def __init__(self, row, phase, figure='seconds', scale=1):
        self.scenario = row.scenario
        self.rounds = {key: value * scale for key, value in
                       row.rounds(phase, figure).items()}
        self.median = row.median(phase, figure) * scale


def figures(rows, phase, figure='seconds', scale=lambda row: 1):
    """The figures of those rows that have it."""
    return [Figure(row, phase, figure, scale(row)) for row in rows
            if row.has(phase, figure)]


def lowest(found):
    """The figure with the least median, or None."""
    return min(found, key=lambda one: one.median, default=None)


def highest(found):
    return max(found, key=lambda one: one.median, default=None)


def ratio(above, below):
    """The Ratio of two figures, the first of which may be a constant; None if
    there is none."""
    if not above or not below:
        return None
    if not isinstance(above, Figure):
        pairs = [(above, value) for value in below.rounds.values()]
    elif above.scenario != below.scenario:
        pairs = []              # they did not take turns
    else:
        pairs = [(above.rounds[key], below.rounds[key])
                 for key in above.rounds if key in below.rounds]
    values = [one / other for one, other in pairs if one and other]
    if values:
        return Ratio(*spread(values), True)
    if not above.median or not below.median:
        return None
    value = above.median / below.median
    return Ratio(value, value, value, 0, False)


def rounds(rows):
    """The least number of rounds of a QEMU among these rows, or of all."""
    counts = {len(row.runs) for row in rows
              if row.facts['program'] in ('ours', 'stock', 'base', 'exec')}
    return min(counts or {len(row.runs) for row in rows})


def best(rows, phase, figure='seconds'):
    """The least median among the rows that have the figure, or None."""
    found = lowest(figures(rows, phase, figure))
    return found and found.median
