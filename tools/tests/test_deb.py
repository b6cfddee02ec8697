# SPDX-License-Identifier: GPL-2.0-or-later
"""./run deb on a made-up source package."""

import os
import re
import shutil
import subprocess
import sys
import unittest

from madeup import TOOLS, MadeUp, text

sys.path.insert(0, TOOLS)
from qdio.deb import SUFFIX                             # noqa: E402

CONTROL = text('Source: madeup', 'Maintainer: T <t@example.org>',
               'Build-Depends: nothing', '', 'Package: madeup',
               'Architecture: any', 'Description: made up')
CHANGELOG = text('madeup (2:1.0.5+ds-3) none; urgency=medium', '', '  * New.',
                 '', ' -- T <t@example.org>  Thu, 01 Jan 2026 00:00:00 +0000')
DEBIANS = text('--- a/io/channel.c', '+++ b/io/channel.c', '@@ -36,5 +36,5 @@',
               ' line 36', ' line 37', ' line 38', '-line 39',
               "+Debian's 39", ' line 40')


@unittest.skipUnless(shutil.which('dpkg-source'), 'there is no dpkg-source')
class Deb(MadeUp):
    def setUp(self):
        super().setUp()
        self.debs = os.path.join(self.top, 'debs')
        where = os.path.join(self.debs, 'madeup-1.0.5+ds')
        shutil.copytree(self.source('1.0'), where)
        subprocess.run(['tar', '-cJf', '../madeup_1.0.5+ds.orig.tar.xz', '.'],
                       cwd=where, check=True)
        for name, content in (('control', CONTROL), ('changelog', CHANGELOG),
                              ('source/format', '3.0 (quilt)\n'),
                              ('patches/series', 'debians.diff\n'),
                              ('patches/debians.diff', DEBIANS)):
            self.write('debian/' + name, content, where)
        self.build(where)
        shutil.rmtree(where)
        self.dsc = os.path.join(self.debs, 'madeup_1.0.5+ds-3.dsc')

    def build(self, where):
        done = subprocess.run(['dpkg-source', '-b', where], cwd=self.debs,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def deb(self, output, **kw):
        return self.run_it('deb', '--base', '1.0', '--source', self.dsc,
                           '--output', output, **kw)

    def unpack(self, dsc):
        where = os.path.join(self.top, 'unpacked')
        subprocess.run(['dpkg-source', '--no-check', '-x', dsc, where],
                       check=True, capture_output=True)
        return where

    def test_package(self):
        output = os.path.join(self.top, 'out')
        dsc = self.deb(output)[0].strip()
        self.assertEqual(os.path.basename(dsc),
                         f'madeup_1.0.5+ds-3{SUFFIX}.dsc')
        self.assertIn(f'Version: 2:1.0.5+ds-3{SUFFIX}\n', self.read(dsc))
        where = self.unpack(dsc)
        self.assertEqual(self.read('debian/patches/series', where).split(), [
            'debians.diff', 'direct-io/0001-io-the-first-change.patch',
            'direct-io/0002-io-the-only-one-change.patch',
            'direct-io/0003-io-the-last-change.patch'])
        # Debian's patch and ours change the same file
        channel = self.read('io/channel.c', where)
        self.assertIn("Debian's 39\n", channel)
        self.assertIn('use it\n', channel)
        self.assertEqual(self.read('io/queue.c', where),
                         self.read('io/queue.c'))
        self.assertRegex(self.read('debian/changelog', where),
                         rf'\Amadeup \(2:1\.0\.5\+ds-3{re.escape(SUFFIX)}'
                         r'\) none; ')
        patch = self.read('debian/patches/direct-io/'
                          '0002-io-the-only-one-change.patch', where)
        header = patch.partition('\n\n')[0]
        for field in ('From: ', 'Subject: ', 'Origin: vendor',
                      'Forwarded: not-needed .*upstream: has it',
                      r'Last-Update: \d{4}-\d\d-\d\d'):
            self.assertRegex(header, f'(?m)^{field}')
        # The unpacked copy can be built again
        self.build(os.path.join(output, 'madeup-1.0.5+ds'))

    def test_order_of_versions(self):
        """Ours replaces Debian's package and a rebuild of it, and each update
        of Debian's source replaces ours."""
        for debians in ('1:7.2+dfsg-7', '1:7.2+dfsg-7+deb12u9'):
            ours = debians + SUFFIX
            for older in ('', '+b1', '~bpo12+1'):
                self.assert_older(debians + older, ours)
        for old, new in (('-7', '-7+deb12u1'), ('-7', '-7+deb12u1~bpo11+1'),
                         ('-7', '-7.1'), ('-7', '-7+nmu1'), ('-7', '-8'),
                         ('-7', '-8~bpo12+1'),
                         ('-7+deb12u1', '-7+deb12u2'),
                         ('-7+deb12u9', '-7+deb12u10')):
            self.assert_older(f'1:7.2+dfsg{old}{SUFFIX}', f'1:7.2+dfsg{new}')

    def assert_older(self, old, new):
        done = subprocess.run(['dpkg', '--compare-versions', old, 'lt', new])
        self.assertEqual(done.returncode, 0, f'{old} is not older than {new}')

    def test_date(self):
        dsc = self.deb(os.path.join(self.top, 'out'),
                       SOURCE_DATE_EPOCH='86400')[0].strip()
        where = self.unpack(dsc)
        date = re.search(r'^ -- .*>  (.*)$',
                         self.read('debian/changelog', where), re.M)
        self.assertEqual(date.group(1), 'Fri, 02 Jan 1970 00:00:00 +0000')

    def test_default_output_is_made_anew(self):
        for _ in range(2):
            out, _ = self.run_it('deb', '--base', '1.0', '--source', self.dsc)
        self.assertTrue(os.path.exists(out.strip()))

    def test_output_with_files(self):
        output = os.path.join(self.top, 'out')
        self.write('mine', 'x', output)
        self.refused('deb', '--base', '1.0', '--source', self.dsc, '--output',
                     output, says="is not empty, it has 'mine'; .*--output")
        self.assertEqual(os.listdir(output), ['mine'])

    def test_source_that_is_no_package(self):
        self.refused('deb', '--base', '1.0', '--source', self.source('1.0'),
                     says='is no Debian source package; name its .dsc')

    def test_broken_package(self):
        self.write(self.dsc, 'Nothing\n')
        _, err = self.run_it('deb', '--base', '1.0', '--source', self.dsc,
                             code=1)
        self.assertRegex(err, 'unpack madeup_1.0.5.*failed')


if __name__ == '__main__':
    unittest.main()
