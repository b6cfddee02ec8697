# SPDX-License-Identifier: GPL-2.0-or-later
"""A base that takes the hooks of another one."""

import os
import unittest

from madeup import MadeUp, numbered, text


class Fallback(MadeUp):
    """Base 3.0 is like 2.0, with more lines at the top."""

    def setUp(self):
        super().setUp()
        self.make_source('3.0', 35)
        self.conf('2.0')

    def conf(self, hooks):
        self.write('bases/3.0.conf', text(
            'package = madeup', 'suite = none', 'family = 3.0',
            'configure = --nothing', f'hooks = {hooks}'))

    def applied(self, base='3.0'):
        self.run_it('apply', base, '--source', self.source(base))
        return self.run_it('apply', base, '--source', self.source(base))[0]

    def tree(self, base='3.0'):
        out, _ = self.run_it('base', base, '--source', self.source(base))
        return out.strip()

    def refresh(self):
        return self.run_it('refresh', '3.0', '--tree', self.tree())[0]

    def amend(self, path, content):
        """Change the last commit of the applied tree."""
        tree = self.tree()
        self.write(path, content, tree)
        self.git('-C', tree, '-c', 'user.name=T', '-c', 'user.email=t@e',
                 'commit', '-a', '--quiet', '--amend', '--no-edit')

    def test_inherits(self):
        self.applied()
        self.assertIn('queue\n', self.read('io/meson.build', self.tree()))
        self.assertEqual(self.refresh(), '')

    def test_own_section(self):
        """Only the file that differs gets its own hook, and loses it once it
        no longer differs."""
        self.applied()
        before = self.read('io/channel.c', self.tree())
        self.amend('io/channel.c', before.replace('use it', 'use it here'))
        own = 'series/last/hooks-3.0.patch'
        self.assertEqual(self.refresh(), own + '\n')
        self.assertIn('+use it here', self.read(own))
        self.amend('io/channel.c', before)
        self.refresh()
        self.assertFalse(os.path.exists(self.path(own)))

    def test_dropped(self):
        self.write('series/last/files', 'io/last.c\n')
        self.write('io/last.c', 'something that stays\n')
        self.applied()
        self.amend('io/channel.c', numbered(-34, 40))
        self.refresh()
        self.assertEqual(self.read('series/last/hooks-3.0.patch'),
                         'Not here: io/channel.c\n')
        self.run_it('apply', '3.0', '--discard', '--source',
                    self.source('3.0'))
        self.assertEqual(self.read('io/channel.c', self.tree()),
                         numbered(-34, 40))

    def test_newer_hook_of_the_other_base(self):
        """A hook that 2.0 has changed since 3.0 was applied does not become
        one of 3.0's own."""
        def refresh():
            return self.run_it('refresh', '3.0', '--source',
                               self.source('3.0'))[0].split()

        self.applied()
        newer = self.hook('io/channel.c', 20, 'use it well', '2.0')
        self.write('series/last/hooks-2.0.patch', newer)
        self.assertEqual(refresh(), [])
        self.amend('io/meson.build', 'more\n')
        self.refused('refresh', '3.0', '--source', self.source('3.0'),
                     says="'series/last/hooks-2.0.patch' has changed in the "
                     'repository since')
        self.assertFalse(os.path.exists(
            self.path('series/last/hooks-3.0.patch')))
        self.assertEqual(self.read('series/last/hooks-2.0.patch'), newer)
        self.run_it('apply', '3.0', '--discard', '--source',
                    self.source('3.0'))
        self.amend('io/meson.build', 'more\n')
        self.assertEqual(refresh(), ['series/last/hooks-3.0.patch'])

    def test_no_fuzz(self):
        """A hook of 2.0 is refused if 3.0 does not have its context."""
        self.write('io/channel.c', numbered(-34, 40).replace('line 22', 'x'),
                   self.source('3.0'))
        self.refused('apply', '3.0', '--source', self.source('3.0'),
                     says='does not apply')

    def test_compat(self):
        """The nearest compat/ file is used, and a slug for 2.0 also applies
        to 3.0."""
        self.write('series/order', text('first', 'only-one 1.0', 'last',
                                        'more 2.0'))
        self.write('series/more/message', self.read('series/last/message'))
        self.write('series/more/files', text('compat/2.0/io/a.h',
                                             'compat/2.0/io/b.h',
                                             'compat/3.0/io/b.h'))
        for base in ('2.0/io/a.h', '2.0/io/b.h', '3.0/io/b.h'):
            self.write('compat/' + base, base + '\n')
        self.applied()
        self.assertEqual(self.read('io/a.h', self.tree()), '2.0/io/a.h\n')
        self.assertEqual(self.read('io/b.h', self.tree()), '3.0/io/b.h\n')

    def test_lint(self):
        for hooks, says in (('9.9', 'which is no base'),
                            ('3.0', 'leads back to 3.0')):
            self.conf(hooks)
            out, _ = self.run_it('lint', code=1)
            self.assertIn(says, out)
        self.conf('2.0')
        self.write('series/last/hooks-3.0.patch', 'Not here: io/none.c\n')
        out, _ = self.run_it('lint', code=1)
        self.assertIn("drops the hook of 'io/none.c'", out)
