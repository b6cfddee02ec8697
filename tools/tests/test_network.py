# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian archive can't be reached for a moment."""

import contextlib
import io
import os
import shutil
import sys
import tempfile
import types
import unittest
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from qdio import apt, fresh                             # noqa: E402
from qdio.report import Report                          # noqa: E402
from qdio.say import Failure, Fault                     # noqa: E402

LOST = 'Err:1 http://deb.example.org x\n  Could not connect to deb.example.org'


class Network(unittest.TestCase):
    def setUp(self):
        self.top = tempfile.mkdtemp(prefix='qdio-tests.')
        self.addCleanup(shutil.rmtree, self.top)
        self.pauses, self.ran = [], []
        for patcher in (mock.patch.dict(os.environ, QDIO_CACHE=self.top),
                        mock.patch('time.sleep', self.pauses.append),
                        contextlib.redirect_stderr(io.StringIO())):
            patcher.__enter__()
            self.addCleanup(patcher.__exit__, None, None, None)
        os.mkdir(os.path.join(self.top, 'logs'))

    def apt(self, *said):
        """Returns an Apt that says `said`, one for each attempt, and succeeds
        if it is empty."""
        said = list(said)

        def step(name, argv, log, **_):
            self.ran.append(argv[-1])
            text = said.pop(0)
            with open(log, 'w', encoding='utf-8') as f:
                f.write(text)
            return 100 if text else 0

        patcher = mock.patch.object(apt, 'step', step)
        patcher.start()
        self.addCleanup(patcher.stop)
        one = apt.Apt()
        one.options = ['-q']
        return one

    def test_once(self):
        self.apt(LOST, '').fetch('fetch it', 'download', 'it')
        self.assertEqual(self.ran, ['it', 'it'])
        self.assertEqual(len(self.pauses), 1)

    def test_twice(self):
        with self.assertRaisesRegex(Fault, "fetch it: the Debian archive "
                                    "can't be reached"):
            self.apt(LOST, LOST).fetch('fetch it', 'download', 'it')

    def test_while_lists_are_read(self):
        """The version is gone, and the network while new lists are read."""
        os.mkdir(os.path.join(self.top, 'apt'))
        self.apt('E: 404', LOST, '', '').fetch('fetch it', 'download', 'it')
        self.assertEqual([x for x in self.ran if x == 'it'], ['it', 'it'])
        self.assertEqual(len(self.ran), 4)

    def test_part(self):
        """The other parts run, and the table is printed."""
        def lost():
            raise Fault("the archive can't be reached")

        with contextlib.redirect_stdout(io.StringIO()) as out:
            report = Report()
            report.part('one', lost)
            report.part('two', lambda: report(True, 'fine'))
            code = report.close()
        self.assertEqual(code, 1)
        self.assertIn("not ok - one: the archive can't be reached\n",
                      out.getvalue())
        self.assertIn('1 passed, 1 failed', out.getvalue())

    def tarball(self, *fails):
        """Returns the minimal root that mmdebstrap makes after it has failed,
        or not, for each of `fails`."""
        fails = list(fails)

        def step(name, argv, log, **_):
            self.ran.append(argv[0])
            if fails.pop(0):
                raise Failure('mmdebstrap failed')
            with open(argv[-2], 'w', encoding='utf-8'):
                pass

        host = types.SimpleNamespace(name='os-1', label='OS 1', release='x')
        with mock.patch.object(fresh, 'step', step), \
                mock.patch.object(fresh, '_sources', lambda _: ''):
            return fresh._tarball(host)

    def test_mmdebstrap(self):
        self.assertTrue(os.path.exists(self.tarball(True, False)))
        self.assertEqual(len(self.pauses), 1)

    def test_mmdebstrap_twice(self):
        with self.assertRaises(Failure):
            self.tarball(True, True)


if __name__ == '__main__':
    unittest.main()
