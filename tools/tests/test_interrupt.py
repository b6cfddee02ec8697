# SPDX-License-Identifier: GPL-2.0-or-later
"""The end-to-end tests are interrupted, or take too long."""

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
    try:
        mark('started-' + mine)
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

# A test that does not end, which any failure of stock QEMU would satisfy
HANGS = r'''
import sys, time
from e2e import harness

harness.fs.private_mounts = lambda: None
harness.test('hangs', timeout=0.25, stock='.')(lambda t: time.sleep(1000))
config = harness.Config(*[None] * 2, 'stock', *[None] * 3, sys.argv[1], False,
                        False)
harness.run_all(config, None)
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

    def test_time_limit(self):
        """It is not taken for the failure that a test expects."""
        with tempfile.TemporaryDirectory() as top:
            said = subprocess.run([sys.executable, '-c', HANGS, top], cwd=ROOT,
                                  stdout=subprocess.PIPE, text=True).stdout
        for name in 'hangs', 'stock fails: hangs':
            self.assertRegex(said, f'not ok . - {name} .*: still not done '
                             'after 1.0 s')


if __name__ == '__main__':
    unittest.main()
