# SPDX-License-Identifier: GPL-2.0-or-later
"""Bar charts as SVG.  They look the same on light and dark pages."""

import os
from xml.sax.saxutils import escape

from .stats import MIB, rounds

COLOURS = {'ours': '#2a7f4f', 'stock': '#b5533c', 'base': '#8a6d3b',
           'exec': '#7a6aa8', 'fio': '#6b7785'}
OTHER = '#6b7785'
WIDTH, LABEL, BAR, GAP, TOP = 760, 250, 16, 8, 58
PHASES = ('save', 'restore')


class Bar:
    """One bar: its label and colour, and median, least and most."""

    def __init__(self, label, colour, spread, scale=1):
        self.label = label
        self.colour = colour
        values = (spread.median * scale, spread.least * scale,
                  spread.most * scale)
        self.value, self.least, self.most = values


def _text(x, y, text, size=12, anchor='start', extra=''):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" '
            f'text-anchor="{anchor}"{extra}>{escape(text)}</text>')


def _bar(bar, y, scale):
    middle = y + BAR / 2
    end = LABEL + bar.value * scale
    least, most = LABEL + bar.least * scale, LABEL + bar.most * scale
    parts = [
        _text(LABEL - 8, middle + 4, bar.label, anchor='end'),
        f'<rect x="{LABEL}" y="{y:.1f}" width="{max(end - LABEL, 0.5):.1f}" '
        f'height="{BAR}" fill="{bar.colour}"/>',
        f'<path d="M{least:.1f} {middle:.1f}H{most:.1f}" stroke="#c8a200" '
        'stroke-width="2"/>',
        _text(max(end, most) + 6, middle + 4,
              f'{bar.value:.2f}' if bar.value < 10 else f'{bar.value:.0f}')]
    return ''.join(parts)


def chart(title, remark, groups):
    """An SVG of horizontal bars.  `groups` is [(heading, [Bar])]."""
    most = max((bar.most for _, bars in groups for bar in bars), default=0)
    scale = (WIDTH - LABEL - 70) / most if most else 0
    body = []
    y = TOP
    for heading, bars in groups:
        body.append(_text(12, y + 12, heading, 13, extra=' font-weight="bold"'))
        y += 22
        for bar in bars:
            body.append(_bar(bar, y, scale))
            y += BAR + GAP
        y += 10
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
            f'height="{y}" viewBox="0 0 {WIDTH} {y}" '
            'font-family="sans-serif">\n'
            f'<title>{escape(title)}</title>\n'
            f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>\n'
            f'{_text(12, 24, title, 16)}\n{_text(12, 42, remark, 11)}\n'
            + '\n'.join(body) + '\n</svg>\n')


def _scenario(rows):
    """What users get, if it was measured."""
    return next((name for name in ('fresh', 'reclaimed') if rows.of(name)),
                'random')


def _bars(rows, phase, figure, scale):
    return [Bar(row.name, COLOURS.get(row.facts['program'], OTHER),
                row.spread(phase, figure), scale)
            for row in rows.of(_scenario(rows), phase)
            if row.has(phase, figure)]


class _Rate:
    """The spread of rates, from that of seconds."""

    def __init__(self, spread, data):
        self.median = data / spread.median
        self.least = data / spread.most
        self.most = data / spread.least


def _rates(rows, phase):
    return [Bar(row.name, COLOURS.get(row.facts['program'], OTHER),
                _Rate(row.spread(phase), row.data / MIB))
            for row in rows.of(_scenario(rows), phase)]


def draw(rows):
    """{file name: SVG} of the scenario "fresh", "reclaimed", or "random"; empty
    if none of them was measured."""
    main = rows.of(_scenario(rows))
    if not main:
        return {}
    where = {'fresh': ', restored into fresh memory',
             'reclaimed': ', restored into memory that the outer host had '
             'taken back'}.get(main[0].scenario, '')
    remark = (f'{main[0].ram} MiB of random RAM{where}; the bar is the median '
              f'of {rounds(main)} rounds, the line goes from the least to the '
              'most')

    def picture(title, bars):
        return chart(title, remark, [(phase, bars(phase)) for phase in PHASES])

    return {
        'throughput.svg': picture('MiB per second', lambda phase:
                                  _rates(rows, phase)),
        'cpu.svg': picture('CPU seconds', lambda phase:
                           _bars(rows, phase, 'cpu', 1)),
        'cache.svg': picture('MiB of the file in the page cache afterwards',
                             lambda phase: _bars(rows, phase, 'cached',
                                                 1 / MIB)),
    }


def write(rows, directory):
    os.makedirs(directory, exist_ok=True)
    for name, svg in draw(rows).items():
        with open(os.path.join(directory, name), 'w', encoding='utf-8') as f:
            f.write(svg)
