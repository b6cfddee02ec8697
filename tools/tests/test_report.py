# SPDX-License-Identifier: GPL-2.0-or-later
"""What `./run test` prints: the lines, the table and the totals."""

import contextlib
import io
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from qdio.fresh import named_packages                   # noqa: E402
from qdio.report import Report                          # noqa: E402
from qdio.say import Failure                            # noqa: E402

TAP = """\
1..3
ok 1 - one
ok 2 - two # SKIP no disk here
ok 3 - three # SKIP no disk here
"""


class Printed(unittest.TestCase):
    def printed(self, *actions):
        """What a report prints that is given to `actions`, each a part."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            report = Report()
            for i, action in enumerate(actions):
                report.part(f'part{i}', lambda act=action: act(report))
            self.code = report.close()
        return out.getvalue().splitlines()

    def test_table(self):
        with tempfile.NamedTemporaryFile('w') as log:
            log.write(TAP)
            log.flush()
            lines = self.printed(
                lambda r: r(True, 'cases', count=(1, 0, 2), log=log.name),
                lambda r: r.skip('other', 'not root'))
        table = lines[lines.index('# part1') + 2:]
        self.assertRegex(table[0], r'^# part +passed +time +skipped \(why\)$')
        self.assertRegex(table[1],
                         r'^# part0 +1 of 1 +0s +2 \(no disk here\)$')
        self.assertRegex(table[2], r'^# part1 +0 of 0 +0s +1 \(not root\)$')
        self.assertEqual(lines[-1], '1 passed, 0 failed, 3 skipped')
        self.assertEqual(self.code, 0)

    def test_failed(self):
        def fails(report):
            report(True, 'before')
            raise Failure('the step failed')

        lines = self.printed(fails)
        self.assertIn('not ok - part0: the step failed', lines)
        self.assertEqual(lines[-1], '1 passed, 1 failed, 0 skipped')
        self.assertEqual(self.code, 1)

    def test_nothing(self):
        self.printed(lambda r: None)
        self.assertEqual(self.code, 1)


class Fresh(unittest.TestCase):
    def test_packages(self):
        line = ('run: packages are missing; as root, run (with late among the '
                'sources): apt-get install --no-install-recommends a b/late')
        self.assertEqual(named_packages(f'x\n{line}\n'), ['a', 'b/late'])
        self.assertIsNone(named_packages('run: something else'))
        self.assertIsNone(named_packages(f'{line}\n{line}\n'))
