# SPDX-License-Identifier: GPL-2.0-or-later
"""./run emit --signoff and ./run release."""

import os
import sys
import unittest

from madeup import TOOLS, MadeUp, text

sys.path.insert(0, TOOLS)
from qdio.release import write_sums                     # noqa: E402


class Signoff(MadeUp):
    def emitted(self, *argv, **env):
        out, _ = self.on('emit', '1.0', *argv, **env)
        return self.read(out.split()[0])

    def test_signoff(self):
        mail = self.emitted('--signoff', 'A Sender <a@example.org>')
        self.assertIn('\nSigned-off-by: A Sender <a@example.org>\n---', mail)

    def test_bad_signoff(self):
        self.refused('emit', '1.0', '--source', self.source('1.0'),
                     '--signoff', 'me', says='as .NAME <ADDRESS>.')

    def test_own_user(self):
        self.assertIn('\nSigned-off-by: The User <u@example.org>\n---',
                      self.emitted())

    def test_no_user(self):
        self.git('config', '--unset', 'user.name')
        self.refused('emit', '1.0', '--source', self.source('1.0'),
                     says='git does not know who you are')


class Release(MadeUp):
    def test_refused(self):
        def refused(*argv, says):
            self.refused('release', *argv, '--no-install', says=says)

        self.write('tools/hosts/needed.conf', text(
            'programs =', 'modules =', 'headers =', 'python ='))
        refused(says='is no version')
        refused('1.x', says="'1.x' is no version")
        refused('1.2', says="no section '## 1.2'")
        self.write('CHANGELOG.md', '# Changes\n\n## 1.2\n')
        refused('1.2', says='is not committed')

    def test_sums(self):
        where = os.path.join(self.top, 'out')
        self.write('b/two', 'two\n', where)
        self.write('one', 'one\n', where)
        write_sums(where)
        first = self.read('SHA256SUMS', where)
        self.assertEqual([x.split()[1] for x in first.splitlines()],
                         ['b/two', 'one'])
        os.unlink(os.path.join(where, 'SHA256SUMS'))
        write_sums(where)
        self.assertEqual(self.read('SHA256SUMS', where), first)


if __name__ == '__main__':
    unittest.main()
