# SPDX-License-Identifier: GPL-2.0-or-later
"""What passed and what did not."""

import re
import time

from .progress import table
from .say import Failure, duration, tail


def _excerpt(log):
    """The lines of a log that say what failed: those of TAP, with the remarks
    after them, and the end."""
    with open(log, errors='replace') as f:
        lines = f.read().splitlines()
    picked = []
    for i, line in enumerate(lines):
        if line.startswith('not ok'):
            picked.append(line)
            for remark in lines[i + 1:i + 6]:
                if not remark.startswith('#'):
                    break
                picked.append(remark)
    return '\n'.join(picked[:60] + ['...'] * (len(picked) > 60)
                     + tail(log, 15).splitlines())


def skip_reasons(log):
    """Why a test program that writes TAP has skipped cases."""
    with open(log, errors='replace') as f:
        found = re.findall(r'^ok\b[^#\n]*# *SKIP[: ]*(.*)$', f.read(),
                           re.M | re.I)
    return [text.strip() for text in found if text.strip()]


class Part:
    """What the table at the end says of one part."""

    def __init__(self, name):
        self.name = name
        self.passed = self.failed = self.skipped = 0
        self.reasons = []           # why something was skipped
        self.seconds = None

    def cells(self):
        cases = f'{self.passed} of {self.passed + self.failed}'
        skipped = str(self.skipped or '')
        if self.reasons:
            skipped += f" ({'; '.join(dict.fromkeys(self.reasons))})"
        return [self.name, cases, '-' if self.seconds is None
                else duration(self.seconds), skipped]


class Report:
    """Prints a line for each check, and a table and the totals at the end.
    One check may stand for several cases of a test program."""

    def __init__(self):
        self._parts = [Part('start')]

    def __call__(self, ok, name, count=None, log=None):
        passed, failed, skipped = count or (int(bool(ok)), int(not ok), 0)
        if not ok and not failed:
            failed = 1              # it died without saying which case
        part = self._parts[-1]
        part.passed += passed
        part.failed += failed
        part.skipped += skipped
        cases = ''
        if count:
            cases = f' ({passed} of {passed + failed} cases'
            cases += f', {skipped} skipped)' if skipped else ')'
        print(f"{'ok' if ok else 'not ok'} - {name}{cases}", flush=True)
        if skipped and log:
            part.reasons += skip_reasons(log)
        if not ok and log:
            print('  ' + _excerpt(log).replace('\n', '\n  '))
            print(f'  # all of the output: {log}', flush=True)

    def skip(self, name, why):
        self._parts[-1].skipped += 1
        self._parts[-1].reasons.append(why)
        print(f'ok - {name} # SKIP {why}', flush=True)

    def part(self, name, run, where=''):
        """Run one part; a step of it that fails does not end the others.
        `where` says how far all of them are."""
        start = time.monotonic()
        print(f'# {name}{where}', flush=True)
        self._parts.append(Part(name))
        try:
            run()
        except Failure as err:
            self(False, f'{name}: {err}')
        finally:
            self._parts[-1].seconds = time.monotonic() - start

    def skip_part(self, name, why):
        self._parts.append(Part(name))
        self.skip(name, why)

    @property
    def total(self):
        return [sum(getattr(p, word) for p in self._parts)
                for word in ('passed', 'failed', 'skipped')]

    def close(self):
        parts = [p for p in self._parts
                 if p.seconds is not None or p.skipped or p.passed or p.failed]
        for line in table(['part', 'passed', 'time', 'skipped (why)'],
                          [p.cells() for p in parts], left=(0, 3)):
            print('# ' + line)
        passed, failed, skipped = self.total
        print(f'{passed} passed, {failed} failed, {skipped} skipped',
              flush=True)
        return 1 if failed or not passed else 0
