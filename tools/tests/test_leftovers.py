# SPDX-License-Identifier: GPL-2.0-or-later
"""What a killed run leaves is removed by the next one."""

import contextlib
import ctypes
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.dirname(HERE), ROOT]
from qdio import leftovers, say                         # noqa: E402
from lab import fs                                      # noqa: E402

MOUNTER = os.path.join(ROOT, 'tools', 'with-filesystems')


def private():
    """For preexec_fn: mounts that nobody else sees."""
    ctypes.CDLL(None).unshare(0x00020000)               # CLONE_NEWNS


def can_mount():
    return not os.geteuid() and subprocess.run(
        ['unshare', '--mount', 'mount', '-t', 'tmpfs', 'none', '/mnt'],
        capture_output=True).returncode == 0


def until(condition):
    while not condition():
        time.sleep(0.02)


class Leftovers(unittest.TestCase):
    def setUp(self):
        self.top = tempfile.mkdtemp(prefix='qdio-tests.')
        self.addCleanup(shutil.rmtree, self.top, ignore_errors=True)
        patcher = mock.patch.dict(os.environ, QDIO_CACHE=self.top)
        patcher.start()
        self.addCleanup(patcher.stop)
        patcher = mock.patch('tempfile.tempdir', self.top)
        patcher.start()
        self.addCleanup(patcher.stop)

    def left(self, name, hold=leftovers.hold):
        """A directory that was in use."""
        path = os.path.join(self.top, name)
        os.makedirs(os.path.join(path, 'inner'))
        hold(path).close()
        return path

    def removed(self):
        """Returns what the notes say."""
        with contextlib.redirect_stderr(io.StringIO()) as err:
            leftovers.remove()
        return err.getvalue()

    def test_removed(self):
        paths = [self.left(name) for name in
                 ('e2e/e2e.x', 'fresh/debian-12.x', 'with-filesystems.x')]
        self.assertIn('removed what a killed run left', self.removed())
        self.assertEqual([p for p in paths if os.path.exists(p)], [])

    def test_of_e2e(self):
        path = self.left('e2e/e2e.x', fs.hold)
        self.removed()
        self.assertFalse(os.path.exists(path))

    def test_in_use(self):
        path = self.left('e2e/e2e.x')
        with leftovers.hold(path):
            self.assertEqual(self.removed(), '')
        with fs.hold(path):
            self.removed()
        self.assertTrue(os.path.exists(path))

    def test_others(self):
        """Nothing else is touched: other names, directories that are only
        being set up, and links."""
        other = self.left('fresh/debian-12.debs')
        os.remove(os.path.join(other, leftovers.LOCK))
        elsewhere = self.left('elsewhere')
        os.makedirs(os.path.join(self.top, 'e2e'))
        os.symlink(elsewhere, os.path.join(self.top, 'e2e', 'e2e.x'))
        self.assertEqual(self.removed(), '')
        self.assertTrue(os.path.exists(other))
        self.assertTrue(os.path.exists(elsewhere + '/inner'))

    @unittest.skipUnless(os.geteuid() == 0, 'only root can give files away')
    def test_of_another_user(self):
        path = self.left('with-filesystems.x')
        os.chown(path, 65534, 65534)
        self.removed()
        self.assertTrue(os.path.exists(path))

    def test_mount_that_stays(self):
        """Nothing is removed through a mount."""
        path = self.left('e2e/e2e.x')
        with mock.patch.object(leftovers, '_mounts',
                               lambda _: [path + '/inner']):
            self.assertIn(f'{path}/inner is mounted', self.removed())
        self.assertTrue(os.path.exists(path + '/inner'))

    @unittest.skipUnless(can_mount(), 'cannot mount')
    def test_mounted(self):
        """What is mounted is unmounted, and is still there."""
        path = self.left('e2e/e2e.x')
        precious = os.path.join(self.top, 'precious')
        os.makedirs(os.path.join(precious, 'file'))
        code = ('import os, subprocess, sys; sys.path.insert(0, sys.argv[1]);'
                'subprocess.run(["mount", "--bind", *sys.argv[2:]]);'
                'from qdio import leftovers; leftovers.remove()')
        subprocess.run(['unshare', '--mount', sys.executable, '-c', code,
                        os.path.dirname(HERE), precious, path + '/inner'],
                       check=True, capture_output=True)
        self.assertFalse(os.path.exists(path))
        self.assertTrue(os.path.exists(precious + '/file'))

    def test_mounts(self):
        """Of /proc/self/mountinfo, those below a directory, the innermost
        first."""
        text = ('1 0 0:1 / / rw - ext4 x rw\n'
                '2 1 0:2 / /d/e2e.x/a\\040b rw - tmpfs x rw\n'
                '3 2 0:3 / /d/e2e.x/a\\040b/c rw - tmpfs x rw\n'
                '4 1 0:4 / /d/e2e.xy rw - tmpfs x rw\n')
        with mock.patch('builtins.open', mock.mock_open(read_data=text)):
            self.assertEqual(leftovers._mounts('/d/e2e.x'),
                             ['/d/e2e.x/a b/c', '/d/e2e.x/a b'])


@unittest.skipUnless(can_mount(), 'cannot mount')
class WithFilesystems(unittest.TestCase):
    def setUp(self):
        self.top = tempfile.mkdtemp(prefix='qdio-tests.')
        self.addCleanup(shutil.rmtree, self.top, ignore_errors=True)

    def loops(self):
        out = subprocess.run(['losetup', '-l', '-n', '-O', 'BACK-FILE'],
                             capture_output=True, text=True).stdout
        return [x for x in out.splitlines() if x.startswith(self.top)]

    def start(self, *argv):
        return subprocess.Popen(
            [MOUNTER, *argv], env=dict(os.environ, TMPDIR=self.top),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def test_done(self):
        """Others never see the mounts, and nothing is left."""
        with self.start('sh', '-c', 'echo $QDIO_TEST_DIRS; read line') as run:
            pass
        with open('/proc/self/mountinfo', encoding='utf-8') as f:
            self.assertNotIn(self.top, f.read())
        self.assertEqual(os.listdir(self.top), [])
        self.assertEqual(self.loops(), [])

    def test_killed(self):
        """Mounts vanish with the processes, and the next run removes the
        rest."""
        run = self.start('sh', '-c', 'echo $QDIO_TEST_DIRS; exec sleep 1000')
        self.addCleanup(run.stdout.close)
        if not run.stdout.readline():
            self.skipTest('no file systems')
        with open('/proc/self/mountinfo', encoding='utf-8') as f:
            self.assertNotIn(self.top, f.read())
        with mock.patch('tempfile.tempdir', self.top), \
                mock.patch.dict(os.environ, QDIO_CACHE=self.top), \
                contextlib.redirect_stderr(io.StringIO()):
            leftovers.remove()
            self.assertEqual(len(os.listdir(self.top)), 1)
            child = subprocess.run(['pgrep', '-P', str(run.pid)], text=True,
                                   capture_output=True).stdout.split()
            for pid in (run.pid, *map(int, child)):
                os.kill(pid, signal.SIGKILL)
            run.wait()
            until(lambda: leftovers.remove() or not os.listdir(self.top))
        until(lambda: not self.loops())


class Killed(unittest.TestCase):
    def test_steps_die_with_the_run(self):
        with tempfile.TemporaryDirectory() as top:
            log = os.path.join(top, 'log')
            code = ('import sys; sys.path.insert(0, sys.argv[1]);'
                    'from qdio.say import step;'
                    'step("s", ["sh", "-c", "echo pid $$; exec sleep 1000"],'
                    ' sys.argv[2])')
            run = subprocess.Popen([sys.executable, '-c', code,
                                    os.path.dirname(HERE), log],
                                   stderr=subprocess.DEVNULL)

            def said():
                return say.tail(log).partition('\npid ')[2]

            until(said)
            run.kill()
            run.wait()
            until(lambda: not os.path.exists(f'/proc/{said()}') or
                  ' Z ' in say.tail(f'/proc/{said()}/stat'))


if __name__ == '__main__':
    unittest.main()
