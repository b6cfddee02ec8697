# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpack made-up packages into the cache."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import types
import unittest
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from qdio import fetch                                  # noqa: E402
from qdio.say import Failure                            # noqa: E402


@unittest.skipUnless(shutil.which('dpkg-deb'), 'there is no dpkg-deb')
class Unpack(unittest.TestCase):
    def setUp(self):
        self.top = tempfile.mkdtemp(prefix='qdio-tests.')
        self.addCleanup(shutil.rmtree, self.top)
        self.cache = os.path.join(self.top, 'cache')
        for patcher in (
                mock.patch.dict(os.environ, QDIO_CACHE=self.cache,
                                QDIO_NEEDED_SPACE='1000'),
                mock.patch.object(fetch, 'this_host', lambda:
                                  types.SimpleNamespace(system=[]))):
            patcher.start()
            self.addCleanup(patcher.stop)
        self.deb = self.package('one', 'bin/busybox', 'bin/other')

    def package(self, name, *paths):
        where = os.path.join(self.top, name)
        control = f'Package: {name}\nVersion: 1\nArchitecture: all\n' \
                  'Maintainer: T <t@example.org>\nDescription: made up\n'
        for path, content in (('DEBIAN/control', control),
                              *((p, 'content\n') for p in paths)):
            full = os.path.join(where, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, 'w', encoding='utf-8') as f:
                f.write(content)
        deb = os.path.join(self.top, f'{name}_1_all.deb')
        subprocess.run(['dpkg-deb', '-b', where, deb], check=True,
                       capture_output=True)
        return deb

    def get(self, _, directory):
        shutil.copy(self.deb, directory)

    def test_once(self):
        where = fetch._unpacked('stock', self.get)
        self.assertTrue(os.path.exists(os.path.join(where, 'bin/other')))
        self.assertEqual(fetch._unpacked('stock', None), where)

    def test_two_at_once(self):
        """The second run waits for the first one and uses what it has
        unpacked."""
        calls = []
        second = threading.Thread(
            target=lambda: fetch._unpacked('stock', get))
        goes_on = threading.Event()

        def get(apt, directory):
            calls.append(directory)
            if len(calls) == 1:
                second.start()
                goes_on.wait()
            goes_on.set()
            self.get(apt, directory)

        with mock.patch('qdio.config.note', lambda text: goes_on.set(),
                        create=True):
            fetch._unpacked('stock', get)
            second.join()
        self.assertEqual(len(calls), 1)

    def test_failure_leaves_nothing(self):
        def fails(_, directory):
            raise Failure('no network')

        where = os.path.join(self.cache, 'stock')
        with self.assertRaises(Failure):
            fetch._unpacked('stock', fails)
        self.assertFalse(os.path.exists(where))

    def test_rest_of_an_interrupted_run(self):
        rest = os.path.join(self.cache, 'stock', 'rest')
        os.makedirs(rest)
        fetch._unpacked('stock', self.get)
        self.assertFalse(os.path.exists(rest))

    def test_only(self):
        """A package need not have all files that are wanted."""
        where = fetch._unpacked('guest', self.get,
                                ('./bin/busybox', './usr/bin/busybox'))
        self.assertEqual(os.listdir(os.path.join(where, 'bin')), ['busybox'])

    def test_only_and_an_error(self):
        """An error, such as a full disk, is reported."""
        where = os.path.join(self.top, 'where')
        os.makedirs(where)
        with open(os.path.join(where, 'bin'), 'w', encoding='utf-8'):
            pass
        with self.assertRaisesRegex(Failure, 'cannot unpack one_1_all.deb: '
                                    'tar: ./bin/busybox: '):
            fetch._extract(self.deb, where, ('./bin/busybox', './none'))


if __name__ == '__main__':
    unittest.main()
