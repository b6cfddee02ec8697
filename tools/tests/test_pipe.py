# SPDX-License-Identifier: GPL-2.0-or-later
"""What `./run` does if the reader of its output ends, as in `./run ... |
head`."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

from madeup import TOOLS, MadeUp

sys.path.insert(0, TOOLS)
from qdio import demo                                   # noqa: E402

# A command that prints while a step runs in another thread
COMMAND = '''
import sys, time
from qdio import cli, say

def runs():
    say.step('long', ['sh', '-c', 'echo $$ > pid; exec sleep 1000'], 'log/x')

def prints():
    while not open('pid').read().endswith('\\n'):
        time.sleep(0.01)
    say.say('a line')

cli.cmd_lint = lambda args: say.side_by_side([runs, prints])
sys.exit(cli.main(['lint']))
'''


class Pipe(MadeUp):
    def unread(self, *argv, **options):
        """Run a program whose output nobody reads; return (exit code,
        stderr)."""
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE,
                                  stdin=subprocess.DEVNULL, text=True,
                                  **options)
        finally:
            os.close(writer)
        return done.returncode, done.stderr

    def test_quiet(self):
        for argv in (['help'], ['test', '--list']):
            with self.subTest(argv):
                self.assertEqual(self.unread(self.path('run'), *argv,
                                             env=self.environment()),
                                 (141, ''))

    def test_steps_are_ended(self):
        self.write('pid', '', self.top)
        self.addCleanup(self.kill_step)
        code, err = self.unread(
            sys.executable, '-c', COMMAND, cwd=self.top,
            env=self.environment(PYTHONPATH=TOOLS))
        self.assertEqual(code, 141, err)
        self.assertNotIn('Traceback', err)
        with self.assertRaises(ProcessLookupError):
            os.kill(int(self.read('pid', self.top)), 0)

    def kill_step(self):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(self.read('pid', self.top)), signal.SIGKILL)

    def test_stderr(self):
        """With `2>&1 | head`, errors cannot be written either."""
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, 'w') as closed:
            done = subprocess.run([self.path('run'), 'tset'], stdout=closed,
                                  stderr=closed, env=self.environment())
        self.assertEqual(done.returncode, 141)


class Demo(unittest.TestCase):
    def test_demo(self):
        """The demo does not take it for an error of QEMU."""
        show = mock.Mock(**{'run.side_effect': BrokenPipeError})
        with tempfile.TemporaryDirectory() as top, mock.patch.multiple(
                demo, check_space=mock.DEFAULT, install_needed=mock.DEFAULT,
                _emulator=mock.Mock(return_value=()), cache=lambda: top,
                _library=mock.Mock(return_value=[()]),
                Demo=mock.Mock(return_value=show)):
            with self.assertRaises(BrokenPipeError):
                demo.demo(types.SimpleNamespace(verbose=False))
        show.close.assert_called_once()


if __name__ == '__main__':
    unittest.main()
