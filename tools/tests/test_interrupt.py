# SPDX-License-Identifier: GPL-2.0-or-later
"""The end-to-end tests are interrupted."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
# Two tests; each needs the other one's cleaning up to end its own
PROGRAM = r'''
import os, sys, time
from e2e import harness

top = sys.argv[1]
harness.fs.private_mounts = lambda: None

def until(name):
    while not os.path.exists(os.path.join(top, name)):
        time.sleep(0.01)

def mark(name):
    open(os.path.join(top, name), 'w').close()

def run(mine, others):
    mark('started-' + mine)
    try:
        until('never')
    finally:
        mark('ends-' + mine)
        until('ends-' + others)
        mark('ended-' + mine)

harness.test('a')(lambda t: run('a', 'b'))
harness.test('b')(lambda t: run('b', 'a'))
config = harness.Config(*[None] * 6, top, False, False, 2)
sys.exit(harness.run_all(config, None))
'''


class Interrupt(unittest.TestCase):
    def test_all_at_once(self):
        with tempfile.TemporaryDirectory() as top:
            run = subprocess.Popen([sys.executable, '-c', PROGRAM, top],
                                   cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for name in 'started-a', 'started-b':
                while not os.path.exists(os.path.join(top, name)):
                    time.sleep(0.01)
            run.send_signal(signal.SIGTERM)
            said, _ = run.communicate()
            self.assertIn('Bail out! interrupted', said)
            for name in 'ended-a', 'ended-b':
                self.assertTrue(os.path.exists(os.path.join(top, name)), name)


if __name__ == '__main__':
    unittest.main()
