# SPDX-License-Identifier: GPL-2.0-or-later
"""What `./run test` prints: the lines, the table and the totals."""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from qdio import say                                    # noqa: E402
from qdio.fresh import named_packages                   # noqa: E402
from qdio.report import Report                          # noqa: E402
from qdio.say import Failure                            # noqa: E402
from qdio.suites import run_program                     # noqa: E402

TAP = """\
1..3
ok 1 - one
ok 2 - two # SKIP no disk here
ok 3 - three # SKIP no disk here
"""


class Printed(unittest.TestCase):
    def printed(self, *actions):
        """Return what a report prints when each of `actions` runs as a
        part."""
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

    def test_absent(self):
        """File systems that the host lacks are counted as skips."""
        with tempfile.TemporaryDirectory() as where, \
                unittest.mock.patch('qdio.suites.ROOT', where):
            os.mkdir(os.path.join(where, 'tools'))
            wrapper = os.path.join(where, 'tools', 'with-filesystems')
            with open(wrapper, 'w') as f:
                f.write('#!/bin/sh\necho "with-filesystems: no xfs: why"\n'
                        'exec "$@"\n')
            os.chmod(wrapper, 0o755)
            lines = self.printed(lambda r: run_program(
                'a test', ['echo', 'ok 1 - one'], where + '/log', r,
                filesystems=True))
        self.assertIn('ok - a test: on one file system # SKIP no xfs: why',
                      lines)
        self.assertEqual(lines[-1], '1 passed, 0 failed, 1 skipped')

    def test_failed(self):
        def fails(report):
            report(True, 'before')
            raise Failure('the step failed')

        lines = self.printed(fails)
        self.assertIn('not ok - part0: the step failed', lines)
        self.assertEqual(lines[-3:], ['# failed:',
                                      '# part0: the step failed',
                                      '1 passed, 1 failed, 0 skipped'])
        self.assertEqual(self.code, 1)

    def test_failed_cases(self):
        """The end says again which cases failed."""
        with tempfile.NamedTemporaryFile('w') as log:
            log.write('ok 1 - one\nnot ok 2 - two: why\n# remark\n'
                      + ''.join(f'not ok {i} - more\n' for i in range(3, 14)))
            log.flush()
            lines = self.printed(
                lambda r: r(False, 'cases', count=(1, 12, 0), log=log.name),
                lambda r: r(True, 'other'))
        end = lines[lines.index('# failed:'):]
        self.assertEqual(end[1:3], ['# part0: cases',
                                    '#   not ok 2 - two: why'])
        self.assertEqual(end[-2:], ['#   and 2 more',
                                    '2 passed, 12 failed, 0 skipped'])

    def test_nothing(self):
        self.printed(lambda r: None)
        self.assertEqual(self.code, 1)


    def test_order(self):
        """The table has the parts in the expected order, regardless of the
        order in which they ran."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            report = Report()
            report.expect(['one', 'two'])
            report.part('two', lambda: report(True, 'of two'))
            report.part('one', lambda: report(True, 'of one'))
            report.close()
        table = re.findall(r'^# (\w+) +1 of 1', out.getvalue(), re.M)
        self.assertEqual(table, ['one', 'two'])


class SideBySide(unittest.TestCase):
    """Parts that run in parallel lanes."""

    def setUp(self):
        patcher = unittest.mock.patch('qdio.say._steps', say._Steps())
        patcher.start()
        self.addCleanup(patcher.stop)
        self.log = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.log)

    def step(self, name, *argv):
        with contextlib.redirect_stderr(io.StringIO()):
            say.step(name, argv, os.path.join(self.log, name))

    def test_parts(self):
        """Each check counts for the part that runs in its thread."""
        started = threading.Barrier(2)

        def part(name, count):
            started.wait()
            for _ in range(count):
                report(True, name)

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            report = Report()
            say.side_by_side([
                lambda: report.part('a', lambda: part('a', 20)),
                lambda: report.part('b', lambda: part('b', 3))])
            report.close()
        self.assertRegex(out.getvalue(), r'# a +20 of 20 ')
        self.assertRegex(out.getvalue(), r'# b +3 of 3 ')

    def test_ended(self):
        """When a lane fails, the current step of another lane is terminated,
        and its later steps do not run."""
        after = []

        def waits():
            self.step('long', 'sleep', '1000')
            after.append('went on')

        def fails():
            while not say._steps._processes:
                time.sleep(0.01)
            raise say.Fault('no disk')

        with self.assertRaisesRegex(say.Fault, 'no disk'):
            say.side_by_side([waits, fails])
        self.assertEqual(after, [])
        with self.assertRaises(say.Ended):
            self.step('later', 'true')


class Fresh(unittest.TestCase):
    def test_packages(self):
        line = ('run: packages are missing; as root, run (with late among the '
                'sources): apt-get install --no-install-recommends a b/late')
        self.assertEqual(named_packages(f'x\n{line}\n'), ['a', 'b/late'])
        self.assertIsNone(named_packages('run: something else'))
        self.assertIsNone(named_packages(f'{line}\n{line}\n'))
