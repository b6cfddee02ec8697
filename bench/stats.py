# SPDX-License-Identifier: GPL-2.0-or-later
"""From runs to figures.  A run is one task in one round, as a dictionary:
scenario, content, ram, name and facts of the side, and its figures by phase.
Nothing here measures or prints."""

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


def _medians(rows, phase, figure):
    return [row.median(phase, figure) for row in rows
            if row.has(phase, figure)]


def best(rows, phase, figure='seconds'):
    """The least median among the rows that have the figure, or None."""
    return min(_medians(rows, phase, figure), default=None)


def worst(rows, phase, figure='seconds'):
    """The largest one."""
    return max(_medians(rows, phase, figure), default=None)
