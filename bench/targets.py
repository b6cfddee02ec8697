# SPDX-License-Identifier: GPL-2.0-or-later
"""The target figures and the measured figures.  If several numbers of channels
were measured, our worst result is compared with the best of the others: the
one with the worst or best median, round by round."""

import collections

from .scenarios import LIMIT, ROTATING
from .stats import MIB, Figure, Ratio, figures, highest, lowest, ratio

# text: what; want: the limit; value: what it is; least: whether `want` is a
# lower limit; ratio: the Ratio whose median is `value`, or None
Verdict = collections.namedtuple('Verdict',
                                 'text want value least unit ratio')


def reached(verdict):
    value = round(verdict.value, 2)             # as displayed
    return value >= verdict.want if verdict.least else value <= verdict.want


def _channels(number):
    return f'{number or "no"} channel' + ('' if number == 1 else 's')


def _stock(rows, scenario, phase, **facts):
    """The results of QEMU without the series: the distribution's, or the
    base."""
    return [row for program in ('stock', 'base')
            for row in rows.of(scenario, phase, program=program, **facts)]


def _best(rows, phase, figure='seconds'):
    return lowest(figures(rows, phase, figure))


def _worst(rows, phase, figure='seconds'):
    return highest(figures(rows, phase, figure))


def _figure(row, phase, figure='seconds'):
    return Figure(row, phase, figure) if row.has(phase, figure) else None


def _save(rows):
    ours = rows.ours('random', 'save')
    seconds = _worst(ours, 'save')
    # Ours sets the size first, so that fio may do so as well
    fio = _best(rows.of('random', 'save', program='fio'), 'save')
    yield ('save: rate, of fio writing a file', 0.9, ratio(fio, seconds), True,
           '')
    stock = _best(_stock(rows, 'random', 'save', direct=True), 'save', 'cpu')
    yield ("save: CPU time of stock's best direct, over ours", 2,
           ratio(stock, _worst(ours, 'save', 'cpu')), True, '')
    stock = _best(_stock(rows, 'random', 'save', direct=False), 'save')
    yield ("save: time of stock's best buffered with its sync, over ours", 1,
           ratio(stock, seconds), True, '')


def _restore(rows):
    ours = rows.ours('random', 'restore')
    fio = _best(rows.of('random', 'restore', program='fio'), 'restore')
    yield ('restore: rate, of fio', 0.9, ratio(fio, _worst(ours, 'restore')),
           True, '')
    one = rows.ours('random', 'restore', channels=1)
    stock = _stock(rows, 'random', 'restore', direct=True, channels=1)
    for text, figure, want in (('time', 'seconds', 3), ('CPU time', 'cpu', 5)):
        yield (f'restore, 1 channel: {text} of stock, over ours', want,
               ratio(_best(stock, 'restore', figure),
                     _worst(one, 'restore', figure)), True, '')


def _fresh(rows):
    one = _worst(rows.ours('fresh', 'restore', channels=1), 'restore')
    floor = [_best(rows.of('fresh', 'restore', program=program), 'restore')
             for program in ('fio', 'populate')]
    if all(floor):
        yield ('restore into fresh memory, 1 channel: rate, of the disk or of '
               'all CPUs using memory first', 0.9, ratio(highest(floor), one),
               True, '')
    stock = _stock(rows, 'fresh', 'restore')
    first = [row for row in stock if row.facts['channels'] == 1]
    yield ('restore into fresh memory, 1 channel: time of stock, over ours',
           1.7, ratio(_best(first, 'restore'), one), True, '')
    yield ("restore into fresh memory, 1 channel: stock's best time, over "
           'ours', 1.3, ratio(_best(stock, 'restore'), one), True, '')
    for row in rows.ours('fresh', 'restore'):
        peer = [r for r in stock
                if r.facts['channels'] == row.facts['channels']]
        yield from _pair(row, peer, _channels(row.facts['channels']))


def _pair(row, peer, channels):
    """Ours, and stock with as many channels."""
    for text, want, phase, figure in (
            (f'restore into fresh memory, {channels}: CPU time of stock, over '
             'ours', 2, 'restore', 'cpu'),
            (f'save, {channels}: time of stock, over ours', 1.25, 'save',
             'seconds'),
            (f'save, {channels}: CPU time of stock, over ours', 3, 'save',
             'cpu'),
            # Including the kernel's workers, which complete our writes
            (f"save, {channels}: CPU time of the whole machine, stock's over "
             'ours', 3, 'save', 'machine_cpu')):
        yield (text, want, ratio(_best(peer, phase, figure),
                                 _figure(row, phase, figure)), True, '')


def _resources(rows):
    """The largest value, not a median, of all direct runs of ours to a disk:
    a file on tmpfs is in the page cache by nature."""
    ours = [row for row in rows.rows
            if row.is_(program='ours', direct=True)
            and row.scenario not in ('tcp', 'tmpfs')]
    for phase in ('save', 'restore'):
        found = [row.most(phase, 'cached') / MIB for row in ours
                 if row.has(phase, 'cached')]
        yield (f'{phase}: most of the file in the page cache', 8,
               max(found, default=None), False, ' MiB')
    # The guest's memory is included where a restore is its first use
    found = [row.most(phase, 'memory') / MIB / max(row.facts['channels'], 1)
             for row in ours for phase in ('save', 'restore')
             if row.has(phase, 'memory') and
             row.facts.get('memory', 'touched') == 'touched']
    yield ("QEMU's own memory, for a channel", 16, max(found, default=None),
           False, ' MiB')
    found = [row.most(phase, 'qmp') * 1000 for row in ours
             for phase in ('save', 'restore') if row.has(phase, 'qmp')]
    yield ('slowest answer over QMP', 100, max(found, default=None), False,
           ' ms')


def _contents(rows):
    for kind in ('64k', '8k'):
        for phase in ('save', 'restore'):
            half = _worst(rows.ours(f'half-zero-{kind}', phase), phase)
            full = _best(rows.ours('random', phase), phase)
            yield (f'{phase} of half zero in runs of {kind}, of the time of '
                   'random RAM', 0.55, ratio(half, full), False, '')
            fio = _best(rows.of(f'half-zero-{kind}', phase, program='fio'),
                        phase)
            yield (f'{phase} of half zero in runs of {kind}: rate, of fio on '
                   'the same runs', 0.9, ratio(fio, half), True, '')
    for row in rows.ours('zero', 'save'):
        channels = row.facts['channels']
        scan = _best(rows.of('zero', 'save', program='scan',
                             channels=channels), 'save')
        yield (f'save of zero RAM, {_channels(channels)}, of the time of '
               'reading it', 1.5, ratio(_figure(row, 'save'), scan), False, '')
    for phase in ('save', 'restore'):
        costs = _costs(rows.ours('sizes', phase), phase)
        yield (f'{phase}: cost of a GiB, highest over lowest', 1.25,
               ratio(highest(costs), lowest(costs)) if len(costs) > 1
               else None, False, '')


def _costs(rows, phase):
    """Seconds for a MiB of RAM."""
    return figures(rows, phase, scale=lambda row: 1 / row.ram)


def _limits(rows):
    off = [abs(row.data / row.median('save') / LIMIT - 1) * 100
           for row in rows.ours('bandwidth', 'save')]
    yield ('max-bandwidth: off by at most', 10, max(off, default=None), False,
           ' %')
    ours = highest(_costs(rows.ours('slow', 'save'), 'save'))
    yield ('slow disk: rate, of writing all of RAM in sequence', 0.9,
           ratio(MIB / ROTATING['rate'], ours), True, '')
    stock = lowest(_costs(_stock(rows, 'slow', 'save', legacy=False), 'save'))
    yield ("slow disk: rate, of stock's best direct as it is set by default",
           10, ratio(stock, ours), True, '')
    for row in rows.of('tcp', 'save', program='ours'):
        base = rows.of('tcp', 'save', program='base',
                       channels=row.facts['channels'])
        # The minimum, because disturbances can only add time
        if base:
            yield (f'TCP, {_channels(row.facts["channels"])}: least time '
                   'after, over least before', 1.05,
                   row.spread('save').least / base[0].spread('save').least,
                   False, '')


def _instant(rows):
    all_ = rows.of('instant', 'restore', program='ours', instant=True)
    found = [row for row in all_ if not row.facts.get('paused')]
    started = rows.of('start', program='ours') or found
    first = _worst(started, 'restore', 'first')
    running = figures(started, 'restore', 'running')
    if not running:
        return
    yield ('instant restore: first sign of the guest', 0.15,
           first and first.median, False, ' s')
    for what, times in (('until the guest may run', running),
                        ('until its first sign',
                         figures(started, 'restore', 'first'))):
        if len(times) > 1:
            yield (f'instant restore: {what}, slowest over fastest of all '
                   'sizes', 1.5, ratio(highest(times), lowest(times)), False,
                   '')
    for row in all_:
        eager = [r for r in rows.of('instant', 'restore', program='ours',
                                    instant=False) if r.ram == row.ram]
        size = f'instant restore, {row.ram >> 10} GiB: '
        beside = 'with the guest paused' if row.facts.get('paused') else \
            'beside a guest that uses a whole CPU'
        yield (f'{size}rate of loading {beside}, of an eager one', 0.8,
               ratio(_best(eager, 'restore'), _figure(row, 'restore')), True,
               '')
        yield (size + 'fault p99, over that of a read of 4 KiB meanwhile', 3,
               ratio(_figure(row, 'restore', 'fault-p99'),
                     _figure(row, 'restore', 'probe-p99')), False, '')
        yield (size + 'all checked, over the same after an eager one', 1.3,
               ratio(_figure(row, 'restore', 'sweep'),
                     _best(eager, 'restore', 'sweep')), False, '')


def _verdict(text, want, value, least, unit):
    of = value if isinstance(value, Ratio) else None
    return Verdict(text, want, of.median if of else value, least, unit, of)


def verdicts(rows):
    """The verdicts on all that was measured."""
    found = []
    for part in (_fresh, _save, _restore, _resources, _contents, _instant,
                 _limits):
        found += [_verdict(*one) for one in part(rows) if one[2] is not None]
    return found
