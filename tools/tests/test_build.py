# SPDX-License-Identifier: GPL-2.0-or-later
"""Build made-up bases, whose configure writes rules that copy a source
file."""

import os
import stat
import unittest

from madeup import MadeUp, text

RULES = text('rule copy', '  command = cp $in $out',
             'build qemu-system-x86_64: copy ../src/io/channel.c')


class Build(MadeUp):
    def setUp(self):
        super().setUp()
        where = self.source('1.0')
        self.write('configure', text('#!/bin/sh', 'cat > build.ninja <<\\EOF',
                                     RULES + 'EOF'), where)
        os.chmod(os.path.join(where, 'configure'), stat.S_IRWXU)
        # Provide firmware, so that none is fetched
        self.write('pc-bios/bios-256k.bin', 'firmware\n', where)
        installed = os.path.join(self.top, 'bin', 'dpkg-query')
        self.write(installed, text(
            '#!/bin/sh', 'case "$*" in *Version*) printf 9 ;; '
            '*) echo installed ;; esac'))
        os.chmod(installed, stat.S_IRWXU)

    def built(self, *options):
        """Return the content of the file that `./run build` built."""
        path = f'{self.top}/bin:/usr/bin:/bin'
        _, err = self.run_it('build', '--base', '1.0', '--source',
                             self.source('1.0'), *options, PATH=path)
        said = next(x for x in err.splitlines() if x.startswith('run: built'))
        with open(said.split()[-1], encoding='utf-8') as f:
            return f.read()

    def test_with_the_series(self):
        self.assertIn('use it', self.built())

    def test_pristine(self):
        """Build without the series, leaving the applied tree untouched."""
        ours = self.built()
        base = self.built('--pristine')
        self.assertNotIn('use it', base)
        self.assertEqual(base, self.read('io/channel.c', self.source('1.0')))
        self.assertEqual(self.built(), ours)


if __name__ == '__main__':
    unittest.main()
