# SPDX-License-Identifier: GPL-2.0-or-later
"""The time limit of `./run test`."""

import contextlib
import io
import os
import sys
import tempfile
import time
import types
import unittest
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from qdio import say, testing                           # noqa: E402
from qdio.clock import Clock                            # noqa: E402
from qdio.report import Report                          # noqa: E402
from qdio.suites import run_program                     # noqa: E402


class Time:
    """A clock that a test turns, in minutes."""

    def __init__(self):
        self.minutes = 0

    def __call__(self):
        return self.minutes * 60


class Pace(unittest.TestCase):
    def setUp(self):
        self.time = Time()
        self.clock = Clock(20, self.time)

    def work(self, estimated, minutes):
        with self.clock.work(estimated):
            self.time.minutes += minutes

    def test_a_slow_machine(self):
        self.assertTrue(self.clock.enough_for(20))
        self.work(5, 10)
        self.assertTrue(self.clock.enough_for(5))
        self.assertFalse(self.clock.enough_for(6))

    def test_a_fast_machine(self):
        """What is ahead may be slower than what is done."""
        self.work(10, 1)
        self.assertTrue(self.clock.enough_for(19))
        self.assertFalse(self.clock.enough_for(20))

    def test_no_limit(self):
        clock = Clock(0, self.time)
        self.time.minutes = 1000
        self.assertTrue(clock.enough_for(1000))
        self.assertIsNone(clock.end)


def tree(name, **kw):
    base = types.SimpleNamespace(name=name, parts=[], exchange=[], e2e=[],
                                 machines=[], sanitize=[])
    vars(base).update(kw)
    return types.SimpleNamespace(base=base, name=name)


class Limit(unittest.TestCase):
    """Parts of which each step takes twice the estimated time."""

    def setUp(self):
        self.time, self.ran = Time(), []

    def run_it(self, limit, parts, *trees):
        """Returns the lines, and sets self.code."""
        tests = testing.Tests.__new__(testing.Tests)
        tests.report = Report()
        tests.all_trees = list(trees)
        tests._every = tests._quick = False
        tests._clock = Clock(limit, self.time)
        patches = [mock.patch.object(tests, f'part_{part}', lambda on, p=part:
                                     self.part(p, on), create=True)
                   for part in parts]
        out = io.StringIO()
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            stack.enter_context(contextlib.redirect_stdout(out))
            self.tests = tests
            self.code = tests.run(parts)
        return out.getvalue()

    def part(self, part, trees):
        for one in trees:
            self.time.minutes += 2 * self.tests.minutes_on(part, one)
            self.ran.append(f'{part} {one.base.name}')
            self.tests.report(True, part)

    def test_each_tree(self):
        """A part ends when there is no time for another base."""
        said = self.run_it(9, ['deb'], *map(tree, '123'))
        self.assertEqual(self.ran, ['deb 1', 'deb 2'])
        self.assertIn('ok - deb 3 # SKIP not enough of the 9 minutes of '
                      'QDIO_MINUTES is left', said)
        self.assertEqual(self.code, 0)

    def test_essential(self):
        """Without the most important parts, the run does not pass."""
        said = self.run_it(5, ['unit', 'e2e'], tree('1'), tree('2'))
        self.assertEqual(self.ran, ['unit 1'])
        self.assertIn('\nok - unit 2 # SKIP', said)
        self.assertIn('\nnot ok - e2e 1: not enough', said)
        self.assertIn('\nok - e2e 2 # SKIP', said)
        self.assertEqual(self.code, 1)

    def test_essential_if_all_was_compiled(self):
        """A slow build does not mean that the essential parts are slow."""
        self.run_it(24, ['build', 'unit', 'e2e'], tree('1', e2e=['--quick']),
                    tree('2'))
        self.assertEqual(self.ran, ['build 1', 'build 2', 'unit 1', 'unit 2',
                                    'e2e 1'])
        self.assertEqual(self.code, 0)

    def test_parts_of_no_base(self):
        said = self.run_it(5, ['fresh'], tree('1'))
        self.assertIn('\nok - fresh # SKIP not enough', said)

    def test_each_sanitizer(self):
        def run(one, kind, *_):
            self.ran.append(f'{kind} {one.base.name}')
            self.time.minutes += 8

        with mock.patch.object(testing.sanitize, 'run', run), \
                mock.patch.object(testing.Tests, '_tests', lambda *_: []):
            tests = testing.Tests.__new__(testing.Tests)
            tests._every = tests._quick = False
            tests.report, tests.series = Report(), None
            tests._clock = Clock(17, self.time)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                tests.part_sanitize([tree('1', sanitize=['address', 'thread',
                                                         'fuzz'])])
        self.assertEqual(self.ran, ['address 1', 'thread 1'])
        self.assertIn('ok - fuzz 1 # SKIP', out.getvalue())

    def test_share_of_a_base(self):
        """All end-to-end tests take longer than the selection."""
        tests = testing.Tests.__new__(testing.Tests)
        tests._quick = False
        some, every = (tests.minutes_on('e2e', tree('1', e2e=options))
                       for options in (['--quick'], []))
        self.assertLess(some, every)


class Steps(unittest.TestCase):
    def setUp(self):
        patcher = mock.patch('qdio.say._steps', say._Steps())
        patcher.start()
        self.addCleanup(patcher.stop)

    def test_hang(self):
        """A step that hangs ends with the run's time; what it said is
        shown."""
        code, said = self.hang(0.5)
        if '\n  so far\n' not in said:
            code, said = self.hang(5)       # it came too late to say anything
        self.assertEqual(code, 1)
        self.assertIn('not ok - some: hang: not done', said)
        self.assertIn('\n  so far\n', said)

    @staticmethod
    def hang(seconds):
        """Returns the exit code of such a run of so many seconds, and what it
        reports."""
        with tempfile.TemporaryDirectory() as top:
            log = os.path.join(top, 'log')

            def hangs():
                say.step('hang', ['sh', '-c', 'echo so far; sleep 1000'], log)

            say.end_steps_at(time.monotonic() + seconds)
            out = io.StringIO()
            with mock.patch('qdio.say.SILENCE', 0), \
                    contextlib.redirect_stdout(out), \
                    contextlib.redirect_stderr(io.StringIO()):
                report = Report()
                report.part('some', hangs)
                return report.close(), out.getvalue()

    def cut_short(self, part, line='ok 1', seconds=1):
        """Returns what is printed for a program that writes until its time is
        over, and the exit code."""
        with tempfile.TemporaryDirectory() as top, \
                contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(io.StringIO()):
            log = os.path.join(top, 'log')
            say.end_steps_at(time.monotonic() + seconds)
            report = Report(['first'])
            report(True, 'before')
            report.part(part, lambda: run_program(
                'slow', ['sh', '-c', f'echo {line}; sleep 1000'], log, report))
            return out.getvalue(), report.close()

    def test_slow(self):
        """What makes progress until the time is over has not failed, unless it
        is essential."""
        said, code = self.cut_short('other')
        self.assertRegex(said, 'ok - slow: not done after .* # SKIP the time')
        self.assertEqual(code, 0)
        for case in ('first',), ('other', 'not ok 1', 5):
            said, code = self.cut_short(*case)
            self.assertIn('\nnot ok - slow: not done after', said)
            self.assertEqual(code, 1)

    def test_silent(self):
        """What has been silent for long hangs, also if it speaks when it is
        terminated."""
        with tempfile.TemporaryDirectory() as top, \
                contextlib.redirect_stderr(io.StringIO()):
            log = os.path.join(top, 'log')
            say.end_steps_at(time.monotonic() + 5)
            with self.assertRaises(say.Failure) as caught:
                say.step('silent', [
                    'sh', '-c', f'trap "echo bye; exit" TERM; touch -d @0 {log}'
                    '; while :; do sleep 0.1; done'], log)
            self.assertNotIsInstance(caught.exception, say.Late)
            with open(log) as f:
                self.assertIn('bye', f.read())

    def test_no_time(self):
        """After that nothing starts."""
        with tempfile.TemporaryDirectory() as top, \
                contextlib.redirect_stderr(io.StringIO()), \
                contextlib.redirect_stdout(io.StringIO()) as out:
            say.end_steps_at(time.monotonic() - 1)
            touched = os.path.join(top, 'touched')
            run_program('late', ['touch', touched], os.path.join(top, 'log'),
                        Report())
            self.assertFalse(os.path.exists(touched))
        self.assertIn('ok - late: not begun, because the time is over # SKIP',
                      out.getvalue())


if __name__ == '__main__':
    unittest.main()
