# SPDX-License-Identifier: GPL-2.0-or-later
"""apply, refresh, emit and walk on made-up bases."""

import glob
import os
import shutil
import unittest

from madeup import SIGNED, MadeUp, numbered, text


class Apply(MadeUp):
    def test_commits(self):
        out, _ = self.on('apply')
        self.assertEqual([x.split()[1] for x in out.splitlines()],
                         ['first', 'only-one', 'last'])
        tree = self.applied()
        log = self.git('log', '--format=%s|%(trailers:key=Series-Id,'
                       'valueonly,separator=)', where=tree).splitlines()
        self.assertEqual(log[0], 'io: the last change|last')
        self.assertEqual(len(log), 4)

    def test_contents(self):
        tree = self.applied()
        self.assertIn('line 10\nqueue\nline 11\n',
                      self.read('io/meson.build', tree))
        self.assertEqual(self.read('io/queue.c', tree),
                         self.read('io/queue.c'))
        self.assertEqual(self.read('io/late.c', tree), 'what 2.0 has\n')

    def test_marked_slugs_and_compat_are_for_one_base(self):
        tree = self.applied('2.0')
        self.assertEqual(self.read('io/late.c', tree), 'only here\n')
        self.assertEqual(
            self.git('rev-list', '--count', 'HEAD', where=tree), '3')

    def test_same_commits_everywhere(self):
        first, _ = self.on('apply')
        other = os.path.join(self.top, 'other')
        second, _ = self.on('apply', QDIO_CACHE=other,
                            GIT_AUTHOR_NAME='Somebody', TZ='Asia/Tokyo')
        self.assertEqual(first, second)

    def test_unchanged_files_keep_their_times(self):
        tree = self.applied()
        names = ('io/channel.c', 'io/queue.c', 'include/io/queue.h')
        for name in names:
            os.utime(os.path.join(tree, name), (1e9, 1e9))
        self.write('include/io/queue.h', 'another header\n')
        self.applied()
        times = [os.stat(os.path.join(tree, n)).st_mtime == 1e9
                 for n in names]
        self.assertEqual(times, [True, True, False])

    def test_edits_are_not_lost(self):
        tree = self.applied()
        self.write('io/channel.c', 'mine\n', tree)
        self.refused('apply', '1.0', '--source', self.source('1.0'),
                     says="has edits \\('io/channel.c'.*refresh.*--discard")
        self.assertEqual(self.read('io/channel.c', tree), 'mine\n')
        self.on('apply', '1.0', '--discard')
        self.assertNotEqual(self.read('io/channel.c', tree), 'mine\n')

    def test_commits_are_not_lost(self):
        tree = self.applied()
        self.write('io/channel.c', 'mine\n', tree)
        self.git('commit', '-qam', 'mine', where=tree)
        self.refused('apply', '1.0', '--source', self.source('1.0'),
                     says='has commits of its own')

    def test_hook_that_does_not_apply(self):
        self.write('series/last/hooks-1.0.patch',
                   self.hook('io/channel.c', 20, 'x', '1.0').replace(
                       ' line 20', ' line twenty'))
        self.refused('apply', '1.0', '--source', self.source('1.0'),
                     says='series/last/hooks-1.0.patch does not apply to QEMU '
                     '1.0.5: .*io/channel.c.*by hand and apply again')

    def test_new_version_of_the_base(self):
        tree = self.applied()
        start = self.git('rev-parse', 'HEAD', where=tree)
        self.write('io/channel.c', 'new in .6\n' + numbered(1, 40),
                   self.source('1.0'))
        self.write('VERSION', '1.0.6\n', self.source('1.0'))
        tree = self.applied()
        self.assertNotEqual(self.git('rev-parse', 'HEAD', where=tree), start)
        self.assertIn('new in .6\n', self.read('io/channel.c', tree))
        self.assertIn('line 20\nuse it\n', self.read('io/channel.c', tree))


class Refresh(MadeUp):
    def refreshed(self, base='1.0', *argv):
        return self.on('refresh', base, *argv)[0].split()

    def test_identity(self):
        for base in ('1.0', '2.0'):
            with self.subTest(base):
                before, _ = self.on('apply', base)
                self.assertEqual(self.refreshed(base), [])
                self.assertEqual(self.changes(), '')
                self.assertEqual(self.on('apply', base)[0], before)

    def test_edits_flow_back(self):
        tree = self.applied()
        self.write('io/channel.c', self.read('io/channel.c', tree).replace(
            'use it', 'use it well'), tree)
        self.git('commit', '-qam', 'fix\n\nSeries-Id: last', where=tree)
        # A commit with the same slug as the one below is merged into it,
        # and the message of the first one is kept
        self.assertEqual(self.refreshed(), ['series/last/hooks-1.0.patch'])
        self.assertIn('+use it well', self.read('series/last/hooks-1.0.patch'))
        self.applied()
        self.assertEqual(self.refreshed(), [])

    def test_edit_of_our_own_file_flows_back(self):
        tree = self.applied()
        self.git('checkout', '-q', '--detach', 'HEAD~2', where=tree)
        self.write('io/queue.c', 'queue two\n', tree)
        os.chmod(os.path.join(tree, 'io/queue.c'), 0o755)
        self.git('commit', '-qam', 'fix\n\nSeries-Id: first', where=tree)
        self.git('cherry-pick', 'series~1', 'series', where=tree)
        self.assertEqual(self.refreshed(), ['io/queue.c'])
        self.assertEqual(self.read('io/queue.c'), 'queue two\n')
        self.assertTrue(os.access(self.path('io/queue.c'), os.X_OK))
        self.applied()
        self.assertEqual(self.refreshed(), [])

    def amend_first(self, tree, path, content):
        """Change a file in the commit of the slug 'first'."""
        later = self.git('rev-list', '--reverse', 'base..HEAD',
                         where=tree).split()
        self.git('checkout', '-q', '--detach', later[0], where=tree)
        self.write(path, content, tree)
        self.git('commit', '-qa', '--amend', '--no-edit', where=tree)
        self.git('cherry-pick', *later[1:], where=tree)

    def test_refreshed_from_another_base_is_kept(self):
        """The tree of 2.0 still has the old io/queue.c."""
        one, two = self.applied(), self.applied('2.0')
        self.amend_first(one, 'io/queue.c', 'of 1.0\n')
        self.assertEqual(self.refreshed(), ['io/queue.c'])
        self.amend_first(two, 'include/io/queue.h', 'of 2.0\n')
        for changed in (['include/io/queue.h'], []):
            self.assertEqual(self.refreshed('2.0'), changed)
            self.assertEqual(self.read('io/queue.c'), 'of 1.0\n')
        self.amend_first(two, 'include/io/queue.h', 'of 2.0 again\n')
        self.assertEqual(self.refreshed('2.0'), ['include/io/queue.h'])
        self.assertEqual(self.read('io/queue.c'), 'of 1.0\n')

    def test_edits_in_the_repository_are_kept(self):
        edits = {'io/queue.c': 'mine\n',
                 'series/only-one/message': 'io: mine\n\nWhy.\n',
                 'series/last/hooks-1.0.patch':
                     self.hook('io/channel.c', 20, 'mine', '1.0')}
        tree = self.applied()
        for path, content in edits.items():
            self.write(path, content)
        self.amend_first(tree, 'include/io/queue.h', 'of the tree\n')
        self.assertEqual(self.refreshed(), ['include/io/queue.h'])
        for path, content in edits.items():
            self.assertEqual(self.read(path), content)

    def test_corrected_hook_is_kept(self):
        tree = self.applied()
        self.write('io/channel.c', numbered(1, 20) + 'new\n'
                   + numbered(21, 40), self.source('1.0'))
        self.refused('apply', '1.0', '--source', self.source('1.0'),
                     says='does not apply')
        by_hand = self.read('series/last/hooks-1.0.patch').replace(
            ' line 21\n', ' new\n line 21\n').replace('6 +18,7', '7 +18,8')
        self.write('series/last/hooks-1.0.patch', by_hand)
        self.assertEqual(self.refreshed(), [])
        self.assertEqual(self.read('series/last/hooks-1.0.patch'), by_hand)
        self.applied()
        self.assertIn('line 20\nuse it\nnew\n',
                      self.read('io/channel.c', tree))

    def test_conflict(self):
        """Nothing is written if the repository and the tree both changed a
        file, unless they agree."""
        tree = self.applied()
        self.amend_first(tree, 'include/io/queue.h', 'of the tree\n')
        self.amend_first(tree, 'io/queue.c', 'of the tree\n')
        self.write('io/queue.c', 'mine\n')
        before = self.changes()
        self.refused('refresh', '1.0', '--source', self.source('1.0'),
                     says="'io/queue.c' has changed in the repository since "
                     '"./run apply 1.0".*git branch.*"./run apply 1.0 '
                     '--discard".*cherry-pick')
        self.assertEqual(self.changes(), before)
        self.assertEqual(self.read('io/queue.c'), 'mine\n')
        self.write('io/queue.c', 'of the tree\n')
        self.assertEqual(self.refreshed(), ['include/io/queue.h'])

    def test_new_slug_in_the_repository_is_kept(self):
        self.applied()
        self.write('series/order', text('first', 'only-one 1.0', 'last',
                                        'late'))
        self.write('series/late/message', 'io: late\n\nWhy.\n\n' + SIGNED)
        self.write('series/late/files', 'io/later.c\n')
        self.write('io/later.c', 'later\n')
        self.assertEqual(self.refreshed(), [])
        self.assertEqual(self.read('io/later.c'), 'later\n')

    def test_hook_with_other_context(self):
        """A hook that was written by hand gets git's usual context."""
        path = 'series/last/hooks-1.0.patch'
        usual = self.read(path)
        self.write(path, usual.replace(' line 23\n', '').replace(
            '6 +18,7', '5 +18,6'))
        self.applied()
        self.assertEqual(self.refreshed(), [path])
        self.assertIn(' line 23\n', self.read(path))
        self.assertEqual(self.refreshed(), [])

    def test_never_applied(self):
        """A series that was brought to a new base by hand is taken over as
        it is; see bases/README.md."""
        one = self.applied()
        tree = self.run_it('base', '2.0', '--source',
                           self.source('2.0'))[0].strip()
        shutil.rmtree(self.path('series/last'))
        self.write('series/order', 'first\n')
        for argv in (['fetch', '-q', one, 'series:other'],
                     ['checkout', '-q', '-B', 'series', 'base'],
                     ['cherry-pick', 'other~2', 'other']):
            self.git(*argv, where=tree)
        self.assertEqual(self.refreshed('2.0'),
                         ['series/last/message',
                          'series/last/hooks-2.0.patch', 'series/order'])

    def test_message_flows_back(self):
        tree = self.applied()
        self.git('commit', '-q', '--amend', '-m', 'io: better\n\nWhy.\n\n'
                 + SIGNED + 'Series-Id: last', where=tree)
        self.assertEqual(self.refreshed(), ['series/last/message'])
        self.assertEqual(self.read('series/last/message'),
                         'io: better\n\nWhy.\n\n' + SIGNED)

    def test_new_slug(self):
        tree = self.applied()
        self.write('io/more.c', 'more\n', tree)
        self.write('tests/unit/test-more.c', 'test\n', tree)
        self.git('add', '-A', where=tree)
        self.git('commit', '-qm', 'io: more\n\nWhy.\n\n' + SIGNED +
                 'Series-Id: more', where=tree)
        self.refreshed()
        self.assertEqual(self.read('series/more/files').split(),
                         ['io/more.c', 'tests/unit/test-more.c'])
        self.assertEqual(self.read('series/more/tests'), 'unit test-more\n')
        self.assertEqual(self.read('series/order').splitlines()[-1].split(),
                         ['more', '1.0'])
        self.assertEqual(self.read('io/more.c'), 'more\n')
        self.write('series/README.md', self.read('series/README.md')
                   + '| more | ours | - | nothing |\n')
        self.run_it('lint')

    def test_from_any_tree(self):
        """Import a manually made tree, with its series on a branch, into an
        empty repository."""
        tree = self.applied()
        hand = os.path.join(self.top, 'hand')
        self.git('clone', '-q', tree, hand)
        before, _ = self.on('apply')
        for path in ('series', 'io', 'include', 'compat'):
            shutil.rmtree(self.path(path))
        self.run_it('refresh', '1.0', '--tree', hand, '--rev',
                    self.git('rev-parse', 'HEAD', where=hand))
        self.assertEqual(self.on('apply')[0], before)

    def test_other_bases_are_left_alone(self):
        """A slug or a file in compat/ that only another base has is kept."""
        self.write('series/order', text('first', 'only-one 1.0', 'last',
                                        'late 2.0'))
        self.write('series/late/message', 'io: late\n\nWhy.\n\n' + SIGNED)
        self.write('series/late/files', 'io/later.c\n')
        self.write('io/later.c', 'later\n')
        self.write('series/first/files', text(
            'compat/2.0/io/compat.h', 'include/io/queue.h', 'io/queue.c'))
        self.write('compat/2.0/io/compat.h', 'only 2.0\n')
        tree = self.applied()
        for path in ('io/later.c', 'io/compat.h'):
            self.assertFalse(os.path.exists(os.path.join(tree, path)), path)
        self.assertEqual(self.refreshed(), [])
        tree = self.applied('2.0')
        self.assertEqual(self.read('io/later.c', tree), 'later\n')
        self.assertEqual(self.read('io/compat.h', tree), 'only 2.0\n')

    def test_file_taken_out(self):
        tree = self.applied()
        self.git('rebase', '-q', '--exec', 'true', 'base', where=tree)
        self.git('checkout', '-q', '--detach', 'HEAD~2', where=tree)
        self.git('rm', '-q', 'include/io/queue.h', where=tree)
        self.git('commit', '-q', '--amend', '--no-edit', where=tree)
        self.git('cherry-pick', 'series~1', 'series', where=tree)
        self.refreshed()
        self.assertFalse(os.path.exists(self.path('include/io/queue.h')))
        self.assertEqual(self.read('series/first/files'), 'io/queue.c\n')

    def test_dirty_tree(self):
        tree = self.applied()
        self.write('io/channel.c', 'mine\n', tree)
        self.refused('refresh', '1.0', '--source', self.source('1.0'),
                     says="not committed, such as 'io/channel.c'; commit")
        self.assertEqual(self.changes(), '')

    def refuses_commit(self, change, says, message='x\n\nSeries-Id: last'):
        tree = self.applied()
        change(tree)
        self.git('add', '-A', where=tree)
        self.git('commit', '-qm', message, where=tree)
        self.refused('refresh', '1.0', '--source', self.source('1.0'),
                     says=says)
        self.assertEqual(self.changes(), '')

    def test_deleted_base_file(self):
        self.refuses_commit(lambda t: os.unlink(os.path.join(
            t, 'io/meson.build')), "last: 'io/meson.build' is deleted")

    def test_changed_mode(self):
        self.refuses_commit(lambda t: os.chmod(os.path.join(
            t, 'io/meson.build'), 0o755), "last: 'io/meson.build' is deleted "
            'or changes its type or mode')

    def test_symbolic_link(self):
        self.refuses_commit(lambda t: os.symlink('x', os.path.join(
            t, 'io/link')), "last: 'io/link' is no plain file")

    def test_file_of_an_earlier_slug(self):
        """Only the slug that adds a file may edit it."""
        says = "last: '{}' is a file that the slug '{}' adds; make the edit " \
               'in the commit of that slug'
        for path, slug, change in (
                ('io/queue.c', 'first', lambda p: self.write(p, 'x\n')),
                ('io/queue.c', 'first', lambda p: os.chmod(p, 0o755)),
                ('include/io/queue.h', 'first', os.unlink),
                ('io/late.c', 'only-one', lambda p: self.write(p, 'x\n'))):
            with self.subTest(path):
                self.refuses_commit(lambda t: change(os.path.join(t, path)),
                                    says.format(path, slug))
                self.on('apply', '1.0', '--discard')

    def test_place_of_the_house(self):
        self.refuses_commit(lambda t: self.write('run', 'x', t),
                            "the tree adds 'run'")

    def test_commit_without_slug(self):
        self.refuses_commit(lambda t: self.write('io/channel.c', 'x', t),
                            r'commit [0-9a-f]{12} \(a fix\) names no slug.*'
                            '"Series-Id: SLUG" at the end of its message',
                            message='a fix')

    def test_tree_without_the_series(self):
        tree = self.applied()
        self.git('reset', '-q', '--hard', 'base', where=tree)
        self.refused('refresh', '1.0', '--source', self.source('1.0'),
                     says='no commit with a line "Series-Id: SLUG".*apply')

    def test_slug_twice(self):
        self.refuses_commit(lambda t: self.write('io/channel.c', 'x', t),
                            "two commits name the slug 'first'.*"
                            '"git commit --fixup=COMMIT".*'
                            '"git rebase -i --autosquash base"',
                            message='x\n\nSeries-Id: first')

    def test_fixup(self):
        """The commands that the messages and CONTRIBUTING.md name."""
        says = '"git commit --fixup=COMMIT" and "git rebase -i --autosquash ' \
               'base"'
        tree = self.applied()
        self.write('io/queue.c', 'fixed\n', tree)
        refresh = 'refresh', '1.0', '--source', self.source('1.0')
        self.refused(*refresh, says=says)
        self.git('commit', '-qa', '--fixup=HEAD~2', where=tree)
        self.refused(*refresh, says='names no slug.*' + says)
        self.git('-c', 'sequence.editor=true', 'rebase', '-q', '-i',
                 '--autosquash', 'base', where=tree)
        self.assertEqual(self.refreshed(), ['io/queue.c'])

    def test_lost_slug(self):
        tree = self.applied()
        self.git('reset', '-q', '--hard', 'HEAD~1', where=tree)
        self.refused('refresh', '1.0', '--source', self.source('1.0'),
                     says="no commit for the slug 'last'; to drop it")

    def test_slug_that_was_dropped(self):
        """In the repository, as the message asks for, and in the tree."""
        tree = self.applied()
        self.git('reset', '-q', '--hard', 'HEAD~1', where=tree)
        self.write('series/order', 'first\nonly-one 1.0\n')
        shutil.rmtree(self.path('series/last'))
        self.assertEqual(self.refreshed(), [])
        self.assertEqual(self.read('series/order'), 'first\nonly-one 1.0\n')

    def test_slug_of_another_base(self):
        tree = self.applied('2.0')
        self.write('io/channel.c', 'mine\n', tree)
        self.git('commit', '-qam', self.read('series/only-one/message')
                 + 'Series-Id: only-one', where=tree)
        self.refused('refresh', '2.0', '--source', self.source('2.0'),
                     says="'only-one', which series/order marks for other "
                     'bases than 2.0; add 2.0 to its line there')
        self.write('series/order', 'first\nlast\nonly-one 1.0 2.0\n')
        self.assertEqual(self.refreshed('2.0'),
                         ['series/only-one/hooks-2.0.patch'])

    def test_no_tree(self):
        self.refused('refresh', '1.0', says='no applied tree; "./run apply')
        self.refused('refresh', '1.0', '--tree', '/nowhere',
                     says='/nowhere: there is no such directory')


class Emit(MadeUp):
    def test_git_am(self):
        out = os.path.join(self.top, 'out')
        self.on('emit', '1.0', '--output', out)
        patches = sorted(glob.glob(out + '/*.patch'))
        self.assertEqual(len(patches), 3)
        for path in patches:
            self.assertNotIn('Series-Id', self.read(path))
        cover = self.read('cover-letter.txt', out)
        self.assertIn('[PATCH 1.0 0/3] The series', cover)
        self.assertIn('What it is.', cover)
        pristine = os.path.join(self.top, 'pristine')
        shutil.copytree(self.source('1.0'), pristine)
        for argv in (['init', '-q'], ['add', '-Af'], ['commit', '-qm', 'x'],
                     ['am', '-q', *patches]):
            self.git(*argv, where=pristine)
        tree = self.applied()
        self.assertEqual(self.git('rev-parse', 'HEAD^{tree}', where=pristine),
                         self.git('rev-parse', 'HEAD^{tree}', where=tree))

    def test_again_into_the_same_directory(self):
        out = os.path.join(self.top, 'out')
        self.on('emit', '1.0', '--output', out)
        self.on('emit', '2.0', '--output', out)
        self.assertEqual(len(glob.glob(out + '/*.patch')), 2)

    def test_directory_with_other_files(self):
        self.write('important', 'x', os.path.join(self.top, 'out'))
        self.refused('emit', '1.0', '--source', self.source('1.0'),
                     '--output', os.path.join(self.top, 'out'),
                     says="has other files, such as 'important'")

    def test_directory_with_other_patches(self):
        """Only a directory with the series' cover letter is overwritten."""
        out = os.path.join(self.top, 'out')
        names = ['0001-important.patch']
        self.write(names[0], 'x', out)
        for cover in (None, 'Subject: [PATCH 0/1] Something else\n'):
            if cover:
                self.write('cover-letter.txt', cover, out)
                names.append('cover-letter.txt')
            self.refused('emit', '1.0', '--source', self.source('1.0'),
                         '--output', out, says='has patches of another '
                         'series.*name an empty or a new directory')
            self.assertEqual(sorted(os.listdir(out)), names)

    def test_relative_directory(self):
        """The printed paths can be used from any directory."""
        out, err = self.on('emit', '1.0', '--output', 'out')
        where = os.path.join(self.top, 'out')
        self.assertEqual({os.path.dirname(x) for x in out.split()}, {where})
        self.assertIn(f'git am {where}/*.patch', err)

    def test_default_directory_is_made_anew(self):
        self.on('emit')
        self.write('series/cover', text('Another subject', 'What it is.'))
        out, _ = self.on('emit')
        self.assertIn('0/3] Another subject', self.read(
            'cover-letter.txt', os.path.dirname(out.split()[0])))

    def test_walk(self):
        out, _ = self.on('walk', '1.0', '--no-build')
        self.assertIn('ok - emit 1.0: git am takes 3 patches', out)
        self.assertTrue(out.endswith('4 passed, 0 failed, 0 skipped\n'), out)

    def test_walk_tells_what_checkpatch_says(self):
        self.write('include/io/queue.h', '\tx\ty\n')
        out, err = self.on('walk', '1.0', '--no-build', code=1)
        self.assertIn('not ok - checkpatch 1.0 first', out)
        self.assertIn('first: ERROR: code indent', err)
        self.assertTrue(out.endswith('3 passed, 1 failed, 0 skipped\n'), out)


if __name__ == '__main__':
    unittest.main()
