# SPDX-License-Identifier: GPL-2.0-or-later
"""./run canary on made-up trees."""

import os
import unittest

from madeup import MadeUp, numbered, text


class Canary(MadeUp):
    def setUp(self):
        super().setUp()
        self.write('bases/3.0.canary', text(
            'package = madeup', 'suite = later latest', 'family = 3.0',
            'hooks = 1.0'))
        self.new = os.path.join(self.top, 'source-3.0')
        self.write('VERSION', '3.0.1\n', self.new)
        self.write('io/meson.build', numbered(1, 20), self.new)
        self.write('io/channel.c', numbered(1, 40), self.new)

    def canary(self, **kw):
        return self.run_it('canary', '--source', self.new, **kw)[0]

    def test_all_apply(self):
        self.assertEqual(self.canary(), text(
            'the hooks of 1.0 on QEMU 3.0.1:', 'first: 1 applies',
            'only-one: no hooks', 'last: 1 applies', 'total: 2 applies'))
        self.assertEqual(self.read('io/channel.c', self.new),
                         numbered(1, 40), 'the source is changed')

    def test_offset_and_fuzz(self):
        self.write('io/meson.build', 'one more\n' + numbered(1, 20), self.new)
        self.write('io/channel.c', numbered(1, 40).replace('line 23', 'x'),
                   self.new)
        out = self.canary()
        self.assertIn('first: 1 applies\n', out)
        self.assertIn('last: 1 fuzzy\n  fuzzy: io/channel.c, hunk 1: '
                      'succeeded at 18 with fuzz 1', out)

    def test_failures(self):
        self.write('io/channel.c', numbered(1, 19), self.new)
        os.unlink(os.path.join(self.new, 'io/meson.build'))
        self.write('io/late.c', 'theirs\n', self.new)
        self.assertEqual(self.canary(), text(
            'the hooks of 1.0 on QEMU 3.0.1:', 'first: 1 fails',
            '  fails: io/meson.build, hunk 1: there is no such file',
            'only-one: no hooks', '  there already: io/late.c',
            'last: 1 fails', '  fails: io/channel.c, hunk 1: FAILED at 18',
            'total: 2 fails, 1 there already'))

    def test_slugs_follow_each_other(self):
        """A hunk may depend on a change made by an earlier slug's hook."""
        hook = self.hook('io/meson.build', 10, 'more', '1.0')
        hook = hook.replace(' line 8\n', '').replace('-8,6 +8,7', '-9,6 +9,7')
        self.write('series/last/hooks-1.0.patch', hook.replace(
            ' line 10\n', ' line 10\n queue\n'))
        self.assertIn('total: 2 applies\n', self.canary())

    def test_newest_of_the_family(self):
        self.programs('2:3.0.9', '2:3.0.10', '2:4.0', '2:2.9')
        self.assertIn('madeup=2:3.0.10', self.asked())

    def test_newest_if_not_of_the_family(self):
        self.programs('2:2.9', '2:4.0', '2:10.0')
        self.assertIn('madeup=2:10.0', self.asked())

    def test_no_source(self):
        self.programs('2:2.9')
        _, err = self.run_it('canary', code=77, PATH=self.path_with)
        self.assertIn('later, latest have no QEMU 3.0 or later\n', err)
        self.assertRegex(err.splitlines()[-1],
                         'no source of QEMU 3.0 can be had; .*--source DIR')

    def test_unknown(self):
        self.refused('canary', '9.9', says="no canary '9.9'; .*3.0")

    def test_source_of_something_else(self):
        os.unlink(os.path.join(self.new, 'VERSION'))
        self.refused('canary', '--source', self.new, says='no VERSION in it')

    # An archive that lists some versions but serves none

    def programs(self, *versions):
        directory = os.path.join(self.top, 'bin')
        self.asked_path = os.path.join(self.top, 'asked')
        listed = ''.join(f'echo "Version: {v}"\n' for v in versions)
        for name, body in (
                ('apt-cache', listed),
                ('apt-get', 'case "$*" in\n'
                 '*indextargets*) echo "Packages|a:b/|bookworm|" ;;\n'
                 f'*" source "*) echo "$*" >> {self.asked_path}; exit 1 ;;\n'
                 'esac\n')):
            self.write(name, '#!/bin/sh\n' + body, directory)
            os.chmod(os.path.join(directory, name), 0o755)
        self.path_with = directory + ':/usr/bin:/bin'

    def asked(self):
        """Return what was requested from the archive."""
        self.run_it('canary', code=77, PATH=self.path_with)
        return self.read(self.asked_path).split()


if __name__ == '__main__':
    unittest.main()
