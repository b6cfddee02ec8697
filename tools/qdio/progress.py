# SPDX-License-Identifier: GPL-2.0-or-later
"""A progress bar for bytes, and a table, for people."""

import sys
import time

WIDTH = 30
MIB = 1 << 20


def bar_text(title, phase, done, total, seconds):
    """A line with bar, bytes, rate and phase.  Without a total it has no
    bar."""
    rate = done / MIB / seconds if seconds > 0 else 0
    if total:
        full = min(WIDTH, WIDTH * done // total)
        return (f'{title:16} [{"#" * full}{"." * (WIDTH - full)}] '
                f'{done // MIB:5} of {total // MIB} MiB {rate:5.0f} MiB/s  '
                f'{phase}')
    return f'{title:16} {phase}, {seconds:.1f} s'


class Bar:
    """Progress of one save or restore: redrawn in place on a terminal, and a
    plain line for each new phase elsewhere."""

    def __init__(self, title, out=None, clock=time.monotonic):
        self._title = title
        self._out = out or sys.stdout
        self._clock = clock
        self._start = clock()
        self._terminal = self._out.isatty()
        self._phase = None
        self._drawn = None

    def show(self, phase, done, total):
        now = self._clock()
        text = bar_text(self._title, phase, done, total, now - self._start)
        if self._terminal:
            if self._drawn is None or phase != self._phase or \
                    now - self._drawn >= 0.1:
                self._write(f'\r\033[K{text}')
                self._drawn = now
        elif phase != self._phase:
            self._write(text + '\n')
        self._phase = phase

    def close(self, word):
        start = '\r\033[K' if self._terminal else ''
        self._write(f'{start}{self._title:16} {word}\n')

    def _write(self, text):
        self._out.write(text)
        self._out.flush()


def table(heading, rows, left=(0,)):
    """The lines of a table.  The columns `left` are left-aligned, all others
    right-aligned."""
    widths = [max(len(row[i]) for row in [heading, *rows])
              for i in range(len(heading))]
    lines = []
    for row in [heading, *rows]:
        cells = [cell.ljust(width) if i in left else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths))]
        lines.append('  '.join(cells).rstrip())
    return lines
