# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables for terminals and for RESULTS.md."""

from .instant import FAULTS, FIGURES
from .machine import sentence
from .stats import MIB, best, rounds
from .targets import reached, verdicts

TITLES = {
    'fresh': 'Random RAM, restored into fresh memory',
    'reclaimed': 'The same, into memory that the outer host had taken back',
    'random': 'Random RAM, restored into memory touched before',
    'backends': 'Random RAM, restored into fresh memory of other kinds',
    'tmpfs': 'Random RAM, to and from tmpfs',
    'live': 'A guest that runs and rewrites random pages',
    'instant': 'A guest that checks its RAM, restored from a cold cache',
    'start': 'The start of an instant restore from a cold cache',
    'half-zero-64k': 'Half zero, in runs of 64 KiB',
    'half-zero-8k': 'Half zero, in runs of 8 KiB',
    'zero': 'All zero',
    'sizes': 'Random RAM of several sizes',
    'bandwidth': 'max-bandwidth of 100 MB/s',
    'slow': 'Half zero in runs of 64 KiB, to a rotating disk (emulated)',
    'stall': 'Random RAM, to a disk that stalls for seconds (emulated)',
    'tcp': 'Over TCP (restore: the receiving side)',
}
COLUMNS = ('seconds', 'CPU seconds', 'CPU of the machine, s', 'cached MiB',
           'memory MiB', 'QMP ms', 'requests', 'of fio')


def title(rows, scenario):
    text = TITLES[scenario]
    return text if scenario != 'reclaimed' or rows.of('fresh') else \
        text.replace('The same, into', 'Random RAM, restored into')


def _spread(row, phase, figure='seconds', digits=2):
    if not row.has(phase, figure):
        return ''
    one = row.spread(phase, figure)
    return (f'{one.median:.{digits}f} '
            f'({one.least:.{digits}f}-{one.most:.{digits}f})')


def _most(row, phase, figure, scale, digits=0):
    if not row.has(phase, figure):
        return ''
    return f'{row.most(phase, figure) * scale:.{digits}f}'


def _rate(rows, row, phase):
    """The share of the rate of the fastest fio."""
    fio = best([r for r in rows.of(row.scenario, phase, program='fio')
                if (r.content, r.ram) == (row.content, row.ram)], phase)
    return f'{fio / row.median(phase):.2f}' if fio else ''


def cells(rows, row, phase):
    return [_spread(row, phase), _spread(row, phase, 'cpu'),
            _spread(row, phase, 'machine_cpu'),
            _most(row, phase, 'cached', 1 / MIB, 1),
            _most(row, phase, 'memory', 1 / MIB, 1),
            _most(row, phase, 'qmp', 1000),
            _most(row, phase, 'requests', 1),
            _rate(rows, row, phase)]


def _lines(rows, scenario, phase):
    """(label, cells) for each row; several sizes are told apart."""
    found = rows.of(scenario, phase)
    several = len({row.ram for row in found}) > 1
    for row in found:
        label = f'{row.name}, {row.ram} MiB' if several else row.name
        yield label, cells(rows, row, phase)


def tables(rows):
    """All figures as text.  Seconds are medians, with minimum and maximum; the
    other figures are the worst of all rounds."""
    text = []
    for scenario in rows.scenarios():
        sizes = {row.ram for row in rows.of(scenario)}
        size = f', {sizes.pop()} MiB' if len(sizes) == 1 else ''
        text.append(f'{title(rows, scenario)}{size}\n')
        if scenario in ('instant', 'start'):
            text.append(_instant_table(rows.of(scenario)))
            continue
        for phase in ('save', 'restore'):
            lines = list(_lines(rows, scenario, phase))
            if lines:
                text.append(_table(phase, lines))
    return '\n'.join(text)


def _table(phase, lines):
    used = [i for i in range(len(COLUMNS)) if any(c[i] for _, c in lines)]
    widths = [max(len(COLUMNS[i]), *(len(c[i]) for _, c in lines)) + 2
              for i in used]
    first = max(len(label) for label, _ in lines) + 2
    out = [f'{phase:{first + 2}}' + ''.join(
        f'{COLUMNS[i]:>{w}}' for i, w in zip(used, widths))]
    for label, values in lines:
        out.append('  ' + f'{label:{first}}' + ''.join(
            f'{values[i]:>{w}}' for i, w in zip(used, widths)))
    return '\n'.join(out) + '\n'


def _limit(verdict):
    sign = 'at least' if verdict.least else 'at most'
    return f'{sign} {verdict.want:g}{verdict.unit}'


UNPAIRED = '* not measured in the same rounds: the quotient of medians'


def _value(verdict):
    """What was measured; of ratios also the range."""
    text = f'{verdict.value:.2f}{verdict.unit}'
    if not verdict.ratio:
        return text
    if not verdict.ratio.paired:
        return text + '*'
    if verdict.ratio.count == 1:
        return text
    return f'{text} ({verdict.ratio.least:.2f}-{verdict.ratio.most:.2f})'


def _unpaired(found):
    return any(v.ratio and not v.ratio.paired for v in found)


def judgement(rows):
    """The targets, and whether they are reached, as text."""
    found = verdicts(rows)
    if not found:
        return ''
    width = max(len(v.text) for v in found) + 2
    lines = [f'{v.text:{width}}{_limit(v):>16}  {_value(v):<20}  '
             + ('reached' if reached(v) else 'NOT REACHED') for v in found]
    if _unpaired(found):
        lines.append(UNPAIRED)
    return '\n'.join(lines) + '\n'


def disturbance(rows, cpus):
    """The share of the machine's CPU time that something else used while ours
    saved and restored with direct I/O: from 0 to 1, or None if that was not
    measured.  Part of it is kernel work for our own I/O, but a larger share
    makes times unreliable."""
    other = all_ = 0
    for row in rows.rows:
        if not row.is_(program='ours', direct=True):
            continue
        for run in row.runs:
            for phase in ('save', 'restore'):
                figures = run.get(phase, {})
                if {'machine_cpu', 'cpu'} <= figures.keys():
                    other += figures['machine_cpu'] - figures['cpu']
                    all_ += figures['seconds'] * cpus
    return max(other, 0) / all_ if all_ else None


def disturbance_text(rows, cpus):
    """The same as a sentence, or ''."""
    other = disturbance(rows, cpus)
    if other is None:
        return ''
    return (f'Something else took {other:.0%} of the CPU time meanwhile'
            + ('; measure again when the machine is idle.' if other > 0.15
               else '.'))


# For RESULTS.md

def markdown(rows, sessions):
    """The machine, the main table, and the verdicts."""
    where = sessions[-1]['machine']
    # The last scenarios may have been added on another machine
    machines = dict.fromkeys(sentence(s['machine']) for s in sessions)
    parts = [f"Measured on {'; later additions on '.join(machines)}. "
             + disturbance_text(rows, where['cpus']) + '\n']
    for scenario in ('fresh', 'reclaimed', 'random', 'backends', 'tmpfs'):
        found = rows.of(scenario)
        if found:
            parts.append(f'{title(rows, scenario)}: {found[0].ram} MiB, '
                         f'interleaved rounds: {rounds(found)}. '
                         'Medians (least-most).\n')
            parts.append(_main_table(found))
    if rows.of('live'):
        parts.append(f"{TITLES['live']}. Medians (least-most).\n")
        parts.append(_live_table(rows.of('live')))
    for scenario in ('instant', 'start'):
        found = rows.of(scenario)
        if found:
            parts.append(f'{TITLES[scenario]}: seconds until the guest runs, '
                         'gives a first sign, and so on, interleaved rounds: '
                         f'{rounds(found)}. Medians (least-most).\n')
            parts.append(_instant_table(found))
    parts.append(_verdict_table(rows))
    return '\n'.join(parts)


END = '<!-- end of figures -->'


def insert(text, figures, base):
    """The page with the new figures of a base between the two comments that
    mark them."""
    mark = f'<!-- figures {base} -->'
    before, begin, rest = text.partition(mark)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there are no '{mark}' and '{END}' to put the "
                         'figures between')
    return f'{before}{begin}\n{figures}\n{end}{after}'


def _main_table(main):
    cpu = 'CPU, s | CPU of the machine, s'
    lines = [f'| | save, s | {cpu} | restore, s | {cpu} | in the page cache,'
             ' MiB |', '|---' * 8 + '|']
    for row in main:
        lines.append('| ' + ' | '.join([
            row.name, *(_spread(row, phase, figure)
                        for phase in ('save', 'restore')
                        for figure in ('seconds', 'cpu', 'machine_cpu')),
            _most(row, 'save', 'cached', 1 / MIB)]) + ' |')
    return '\n'.join(lines) + '\n'


def _dirtied(row):
    if not row.has('save', 'dirtied'):
        return ''
    least, most = (f(row.values('save', 'dirtied')) / 1e6 for f in (min, max))
    return f"{row.median('save', 'dirtied') / 1e6:.0f} " \
        f'({least:.0f}-{most:.0f})'


def _live_table(found):
    lines = ['| | rewrites, MB/s | save, s | downtime, s | file, MiB | passes '
             '|', '|---' * 6 + '|']
    for row in found:
        if row.has('save', 'given_up'):
            lines.append(f"| {row.name} | {_dirtied(row)} | given up after "
                         f"{row.spread('save').most:.0f} s | | | |")
            continue
        lines.append('| ' + ' | '.join([
            row.name, _dirtied(row), _spread(row, 'save'),
            _spread(row, 'save', 'downtime'),
            f"{row.median('save', 'file') / MIB:.0f}",
            _spread(row, 'save', 'passes', 0)]) + ' |')
    return '\n'.join(lines) + '\n'


def _instant_table(found):
    def used(figures):
        return {key: title for key, title in figures.items()
                if any(row.has('restore', key) for row in found)}

    times, faults = used(FIGURES), used(FAULTS)
    lines = ['| | ' + ' | '.join([*times.values(), *faults.values()]) + ' |',
             '|---' * (len(times) + len(faults) + 1) + '|']
    for row in found:
        milliseconds = [f"{row.median('restore', figure) / 1000:.1f}"
                        if row.has('restore', figure) else ''
                        for figure in faults]
        lines.append('| ' + ' | '.join([
            f'{row.name}, {row.ram >> 10} GiB',
            *(_spread(row, 'restore', figure, 3) for figure in times),
            *milliseconds]) + ' |')
    return '\n'.join(lines) + '\n'


def _verdict_table(rows):
    lines = ['| figure | target | measured | |', '|---|---|---|---|']
    found = verdicts(rows)
    for v in found:
        lines.append(f'| {v.text} | {_limit(v)} | {_value(v)} | '
                     f'{"reached" if reached(v) else "**not reached**"} |')
    if _unpaired(found):
        lines += ['', UNPAIRED.replace('*', '\\*') + '.']
    return '\n'.join(lines) + '\n'
