# SPDX-License-Identifier: GPL-2.0-or-later
"""The cases of test programs are counted."""

import contextlib
import io
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from qdio.report import Report                          # noqa: E402
from qdio.suites import run_program                     # noqa: E402


class Programs(unittest.TestCase):
    def run_it(self, script):
        """Run a shell script as a test program.  Returns what is printed."""
        with tempfile.TemporaryDirectory() as top, \
                contextlib.redirect_stderr(io.StringIO()), \
                contextlib.redirect_stdout(io.StringIO()) as out:
            self.report = Report()
            run_program('it', ['sh', '-c', script], os.path.join(top, 'log'),
                        self.report)
        return out.getvalue()

    def test_all(self):
        said = self.run_it(r'printf "1..3\nok 1 a\nok 2 b # SKIP no\nok 3 c\n"')
        self.assertEqual(said, 'ok - it (2 of 2 cases, 1 skipped)\n')

    def test_ends_early(self):
        said = self.run_it(r'printf "1..3\nok 1 a\nok 2 b\n"')
        self.assertIn('not ok - it (2 of 3 cases)\n', said)
        self.assertIn('\n  2 of 3 planned cases ran\n', said)
        self.assertEqual(self.report.total, [2, 1, 0])

    def test_ran_nothing(self):
        self.assertIn('not ok - it: it ran nothing', self.run_it('echo 1..3'))

    def test_failed(self):
        said = self.run_it(r'printf "1..2\nnot ok 1 a\nok 2 b\n"; exit 1')
        self.assertIn('not ok - it (1 of 2 cases)\n', said)
        self.assertNotIn('planned', said)

    def test_no_plan(self):
        self.assertIn('\nok - it', '\n' + self.run_it('echo ok 1 a'))


if __name__ == '__main__':
    unittest.main()
