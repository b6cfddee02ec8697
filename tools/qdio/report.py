# SPDX-License-Identifier: GPL-2.0-or-later
"""Report which checks passed and which failed."""

import re
import threading
import time

from .progress import table
from .say import Failure, Fault, Late, duration, read_log, say, tail

# How many failed cases of a check the end of the output repeats
MOST_CASES = 10


def _failed_cases(log):
    """The lines of a TAP log that name failed cases, without its comments."""
    return re.findall(r'^not ok\b.*', read_log(log), re.M)


def _excerpt(log):
    """The lines of a log that show what failed: the failed cases of TAP, with
    the comments that follow them, and the end of the log."""
    lines = read_log(log).splitlines()
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
    """The reasons in a TAP log for skipped cases."""
    found = re.findall(r'^ok\b[^#\n]*# *SKIP[: ]*(.*)$', read_log(log),
                       re.M | re.I)
    return [text.strip() for text in found if text.strip()]


class Part:
    """The row for one part in the final table."""

    def __init__(self, name):
        self.name = name
        self.passed = self.failed = self.skipped = 0
        self.reasons = []           # reasons for skipped tests
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
    One check may represent several cases of a test program.  Several threads
    may report, each on a separate part."""

    def __init__(self, essential=()):
        """`essential`: the parts for which there must be time."""
        self._essential = essential
        self._parts = {}            # by name, in the order of the table
        self._failures = []         # lines to repeat at the end
        self._lane = threading.local()

    def expect(self, names):
        """Set the order of the parts in the table."""
        for name in names:
            self._parts[name] = Part(name)

    def _part(self):
        """The part that the current thread runs."""
        name = getattr(self._lane, 'name', 'start')
        return self._parts.setdefault(name, Part(name))

    def __call__(self, ok, name, count=None, log=None, remarks=()):
        """Report one check; `remarks` are additional lines to print."""
        passed, failed, skipped = count or (int(bool(ok)), int(not ok), 0)
        if not ok and not failed:
            failed = 1              # it died without naming a case
        part = self._part()
        part.passed += passed
        part.failed += failed
        part.skipped += skipped
        cases = ''
        if count:
            cases = f' ({passed} of {passed + failed} cases'
            cases += f', {skipped} skipped)' if skipped else ')'
        lines = [f"{'ok' if ok else 'not ok'} - {name}{cases}"]
        if skipped and log:
            part.reasons += skip_reasons(log)
        if not ok and log:
            lines += ['  ' + line for line in _excerpt(log).split('\n')]
            lines.append(f'  # all of the output: {log}')
        if not ok:
            self._remember(part, name, _failed_cases(log) if log else [])
        say(*lines, *(f'  {line}' for line in remarks))

    def late(self, err):
        """Report a step that was cut short because the time was over."""
        if self._part().name in self._essential:
            self(False, str(err), log=err.log)
        else:
            self.skip(str(err), 'the time was over')

    def _remember(self, part, name, cases):
        """Keep what the end of the output says again of a failed check: its
        own lines may be hours and thousands of lines earlier."""
        self._failures.append(name if name.startswith(part.name)
                              else f'{part.name}: {name}')
        self._failures += [f'  {case}' for case in cases[:MOST_CASES]]
        if len(cases) > MOST_CASES:
            self._failures.append(f'  and {len(cases) - MOST_CASES} more')

    def skip(self, name, why):
        part = self._part()
        part.skipped += 1
        part.reasons.append(why)
        say(f'ok - {name} # SKIP {why}')

    def part(self, name, run, where=''):
        """Run one part; if a step of it fails, the other parts still run.
        `where` shows the overall progress."""
        start = time.monotonic()
        say(f'# {name}, {where}' if where else f'# {name}')
        self._lane.name = name
        try:
            run()
        except Late as err:
            self.late(err)
        except Failure as err:
            self(False, f'{name}: {err}', log=err.log)
        except Fault as err:
            self(False, f'{name}: {err}')
        finally:
            self._part().seconds = time.monotonic() - start

    @property
    def total(self):
        return [sum(getattr(p, word) for p in self._parts.values())
                for word in ('passed', 'failed', 'skipped')]

    def close(self):
        parts = [p for p in self._parts.values()
                 if p.seconds is not None or p.skipped or p.passed or p.failed]
        for line in table(['part', 'passed', 'time', 'skipped (why)'],
                          [p.cells() for p in parts], left=(0, 3)):
            say('# ' + line)
        for line in ['failed:', *self._failures] if self._failures else ():
            say('# ' + line)
        passed, failed, skipped = self.total
        say(f'{passed} passed, {failed} failed, {skipped} skipped')
        return 1 if failed or not passed else 0
