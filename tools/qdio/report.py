# SPDX-License-Identifier: GPL-2.0-or-later
"""What passed and what did not."""

import time

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


class Report:
    """Prints a line for each check, and the totals at the end.  One check may
    stand for several cases of a test program."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self._parts = []

    def __call__(self, ok, name, count=None, log=None):
        passed, failed, skipped = count or (int(bool(ok)), int(not ok), 0)
        if not ok and not failed:
            failed = 1              # it died without saying which case
        self.passed += passed
        self.failed += failed
        self.skipped += skipped
        cases = ''
        if count:
            cases = f' ({passed} of {passed + failed} cases'
            cases += f', {skipped} skipped)' if skipped else ')'
        print(f"{'ok' if ok else 'not ok'} - {name}{cases}", flush=True)
        if not ok and log:
            print('  ' + _excerpt(log).replace('\n', '\n  '))
            print(f'  # all of the output: {log}', flush=True)

    def skip(self, name, why):
        self.skipped += 1
        print(f'ok - {name} # SKIP {why}', flush=True)

    def part(self, name, run):
        """Run one part; a step of it that fails does not end the others."""
        start = time.monotonic()
        print(f'# {name}', flush=True)
        try:
            run()
        except Failure as err:
            self(False, f'{name}: {err}')
        finally:
            took = duration(time.monotonic() - start)
            self._parts.append((name, took))
            print(f'# {name}: {took}', flush=True)

    def close(self):
        for name, took in self._parts:
            print(f'# {took:>8}  {name}')
        print(f'{self.passed} passed, {self.failed} failed, '
              f'{self.skipped} skipped', flush=True)
        return 1 if self.failed or not self.passed else 0
