# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that lint rejects."""

import os
import shutil
import sys
import unittest

from madeup import SIGNED, TOOLS, MadeUp, text

sys.path.insert(0, TOOLS)
from qdio.bases import Tree             # noqa: E402
from qdio.config import get_base        # noqa: E402
from qdio.lint import Lint              # noqa: E402


class Refuses(MadeUp):
    """Runs lint on the made-up repository in this process, because the
    made-up bases cannot be passed to a separate one."""

    def setUp(self):
        super().setUp()
        self.old = dict(os.environ)
        self.addCleanup(self._restore)
        os.environ.update(QDIO_CACHE=os.path.join(self.top, 'cache'),
                          QDIO_NEEDED_SPACE='1000')
        self.trees = []
        for base in ('1.0', '2.0'):
            tree = Tree(get_base(base, self.root), self.source(base))
            tree.ensure()
            self.trees.append(tree)

    def _restore(self):
        os.environ.clear()
        os.environ.update(self.old)

    def lint(self):
        return Lint(self.root, self.trees).run()

    def says(self, pattern, count=1):
        said = self.lint()
        self.assertEqual(len(said), count, said)
        self.assertRegex(said[0], pattern)

    def append(self, path, more):
        self.write(path, self.read(path) + more)

    def test_nothing(self):
        self.assertEqual(self.lint(), [])

    def test_root_file_listed_nowhere(self):
        self.write('util/new.c', 'x\n')
        self.says("^'util/new.c' is listed nowhere; add it")

    def test_root_file_listed_twice(self):
        self.append('series/only-one/files', 'io/queue.c\n')
        self.says("^'io/queue.c' is listed twice: in series/first/files and "
                  'series/only-one/files')

    def test_listed_file_that_is_not_there(self):
        self.append('series/first/files', 'io/gone.c\n')
        self.says("series/first/files lists 'io/gone.c', which is not there")

    def test_listed_path_that_exists_in_a_base(self):
        self.write('io/late.c', 'x\n')
        self.append('series/first/files', 'io/late.c\n')
        self.says("lists 'io/late.c', but QEMU 2.0 has a file io/late.c of "
                  'its own')

    def test_compat_may_have_what_another_base_has(self):
        # compat/1.0/io/late.c is valid, but one for 2.0 is not
        self.write('compat/2.0/io/late.c', 'x\n')
        self.append('series/first/files', 'compat/2.0/io/late.c\n')
        self.says("lists 'compat/2.0/io/late.c', but QEMU 2.0 has a file")

    def test_compat_for_no_base(self):
        self.write('compat/3.0/io/x.c', 'x\n')
        self.append('series/first/files', 'compat/3.0/io/x.c\n')
        self.says('is for no base that there is')

    def test_path_outside(self):
        self.append('series/first/files', '../x\n')
        self.says("'../x' is no path inside")

    def test_house_file_in_the_series(self):
        self.append('series/first/files', 'run\n')
        self.says("'run' is no place for files of the series")

    def test_hook_that_creates(self):
        self.append('series/first/hooks-1.0.patch', text(
            'diff --git a/io/x.c b/io/x.c', 'new file mode 100644',
            '--- /dev/null', '+++ b/io/x.c', '@@ -0,0 +1 @@', '+x'))
        self.says("series/first/hooks-1.0.patch creates 'io/x.c'; a hook may "
                  'only edit')

    def test_hook_that_deletes(self):
        self.append('series/first/hooks-1.0.patch', text(
            'diff --git a/VERSION b/VERSION', 'deleted file mode 100644',
            '--- a/VERSION', '+++ /dev/null', '@@ -1 +0,0 @@', '-1.0.5'))
        self.says("series/first/hooks-1.0.patch deletes 'VERSION'")

    def test_hook_that_changes_the_mode(self):
        self.append('series/first/hooks-1.0.patch', text(
            'diff --git a/VERSION b/VERSION', 'old mode 100644',
            'new mode 100755'))
        self.says("does more to 'VERSION' than edit it")

    def test_hook_into_our_own_file(self):
        self.append('series/last/hooks-1.0.patch', text(
            'diff --git a/io/queue.c b/io/queue.c', '--- a/io/queue.c',
            '+++ b/io/queue.c', '@@ -1 +1 @@', '-queue 1', '+queue one'))
        self.says("edits 'io/queue.c', which QEMU 1.0 does not have")

    def test_hook_for_a_base_that_the_slug_is_not_for(self):
        self.write('series/only-one/hooks-2.0.patch',
                   self.hook('io/channel.c', 20, 'x', '2.0'))
        self.says('says that the slug is not for 2.0')

    def test_hook_for_no_base(self):
        self.write('series/first/hooks-3.0.patch',
                   self.hook('io/channel.c', 20, 'x', '1.0'))
        self.says("is for '3.0', which is no base")

    def test_hook_that_does_not_apply(self):
        self.write('series/last/hooks-1.0.patch', self.read(
            'series/last/hooks-1.0.patch').replace('line 20', 'line x'))
        self.says('series/last/hooks-1.0.patch does not apply')

    def test_slug_that_changes_nothing(self):
        self.append('series/order', 'idle\n')
        self.append('series/README.md', '| idle | ours | ours | no |\n')
        self.write('series/idle/message', 'io: idle\n\nWhy.\n\n' + SIGNED)
        self.says('series/idle changes nothing on 1.0', 2)

    def test_version_if(self):
        for line in ('#if QEMU_VERSION_MAJOR >= 8',
                     '# ifdef QEMU_VERSION_MINOR',
                     '#elif defined(X) && QEMU_VERSION_MICRO'):
            with self.subTest(line):
                self.write('include/io/queue.h', line + '\n')
                self.says("^'include/io/queue.h' depends on the version")

    def test_version_if_in_a_hook(self):
        self.write('series/first/hooks-1.0.patch', self.hook(
            'io/meson.build', 10, '#if QEMU_VERSION_MAJOR', '1.0'))
        self.says("^'series/first/hooks-1.0.patch' depends on the version")

    def test_version_if_in_the_base_or_in_compat_is_fine(self):
        self.write('compat/1.0/io/late.c', '#if QEMU_VERSION_MAJOR\n')
        self.assertEqual(self.lint(), [])

    def test_fates(self):
        table = self.read('series/README.md')
        for old, new, says in (
                ('| last | ours', '| gone | ours', None),
                ('| last | ours', '| last | maybe', "'last' is 'maybe' on 1.0"),
                ('| ours | - |', '| ours | ours |', "'only-one' is 'ours' on "
                 '2.0'),
                ('| has it |', '| |', "'only-one' does not say what upstream"),
                ('| 1.0 | 2.0 |', '| 1.0 | 3.0 |', "bases are 1.0, 3.0")):
            with self.subTest(new):
                self.write('series/README.md', table.replace(old, new, 1))
                if says:
                    self.says(says)
                else:
                    said = self.lint()
                    self.assertEqual(len(said), 2, said)
                    self.assertIn("no row for 'last'", said[0])
                    self.assertIn("row for 'gone'", said[1])
        os.unlink(self.path('series/README.md'))
        self.says("the table's bases are none")

    def test_no_message(self):
        os.unlink(self.path('series/first/message'))
        self.says('series/first/message is missing')

    def test_message_not_signed(self):
        self.write('series/first/message', 'io: x\n\nWhy.\n\n'
                   'Signed-off-by: M <m@x.invalid>\n')
        self.says('series/first/message has a sign-off of nobody')

    def test_message_that_git_would_cut(self):
        self.write('series/first/message', 'io: x\n\n---\n\n' + SIGNED)
        self.says('takes for the beginning of a patch')

    def test_subject(self):
        for subject in ('x', 'io: ' + 'x' * 80):
            with self.subTest(subject):
                self.write('series/first/message', subject + '\n\n' + SIGNED)
                self.says('the subject is not')

    def test_directory_not_in_order(self):
        self.write('series/stray/message', 'x')
        self.says('^series/stray/ is not in series/order')

    def test_order_without_directory(self):
        self.append('series/order', 'gone\n')
        said = self.lint()
        self.assertIn("series/order names 'gone', but there is no "
                      'series/gone/', said)

    def test_order_with_unknown_base(self):
        self.append('series/order', 'x 9.9\n')
        self.write('series/x/message', 'io: x\n\n' + SIGNED)
        self.append('series/README.md', '| x | - | - | no |\n')
        self.says("'x' is for '9.9', which is no base")

    def test_order_twice(self):
        self.append('series/order', 'first\n')
        self.says("'first' is there twice")

    def test_order_empty(self):
        self.write('series/order', '# nothing\n')
        for slug in ('first', 'only-one', 'last'):
            shutil.rmtree(self.path('series', slug))
        self.assertIn('series/order names no slugs', self.lint())

    def test_strange_file(self):
        self.write('series/first/notes', 'x')
        self.says('series/first/notes: what is that')

    def test_tests_that_are_not_there(self):
        self.write('series/first/tests', 'unit test-queue\n')
        self.says("'unit test-queue' has no tests/unit/test-queue.c")

    def test_tests_that_cannot_be_read(self):
        self.write('series/first/tests', 'whatever\n')
        self.says("series/first/tests: cannot read 'whatever'; write KIND")

    def test_addresses(self):
        for line in ('see https://deb' '.debian.org/debian',
                     'http:' '//snapshot.example.org/x',
                     'deb.' 'debian.org', 'https://' 'registry.npmjs.org'):
            with self.subTest(line):
                self.write('README.md', line + '\n')
                self.says("^'README.md' has the address of a package archive")

    def test_long_lines_of_c(self):
        self.write('README.md', 'x' * 81 + '\n')
        self.append('series/first/files', 'io/long.c\n')
        self.write('io/long.c', '/* short */\n/* ' + 'x' * 75 + ' */\n')
        self.says("^'io/long.c': line 2 has 81 columns$")

    def test_paths_of_one_machine(self):
        for line in ('see /root' '/w/x', 'cd /work' '/main',
                     'in /root' '/.cache/x'):
            with self.subTest(line):
                self.write('README.md', line + '\n')
                self.says("^'README.md' has a path of one developer")

    def test_imports_between_packages(self):
        for path, line, says in (
                ('lab/vm.py', 'import e2e', 'may not import e2e'),
                ('lab/guest/x.py', 'from bench.stats import best',
                 'may not import bench.stats'),
                ('bench/sides.py', '    from e2e.faults import faulty',
                 'may not import e2e.faults'),
                ('bench/tests/test_x.py', 'import os, e2e.harness',
                 'may not import e2e.harness'),
                ('e2e/libvirt/__main__.py', 'from bench import stats',
                 'may not import bench')):
            with self.subTest(line):
                self.write(path, 'if True:\n' + line if line[0] == ' '
                           else line + '\n')
                self.says(f"^'{path}' {says}")
                os.unlink(self.path(path))

    def test_imports_between_tests(self):
        for path, line, name in (
                ('e2e/test_a.py', 'from .test_b import x', 'e2e.test_b'),
                ('e2e/test_a.py', 'from . import harness, test_b',
                 'e2e.test_b'),
                ('e2e/test_a.py', 'import e2e.test_b', 'e2e.test_b'),
                ('e2e/libvirt/test_a.py', 'from ..test_b import x',
                 'e2e.test_b'),
                ('e2e/libvirt/test_a.py', 'from .. import test_b as b',
                 'e2e.test_b')):
            with self.subTest(line):
                self.write(path, line + '\n')
                self.says(f"^'{path}' may not import {name}: ")
                os.unlink(self.path(path))

    def test_imports_that_are_fine(self):
        for path, text in (
                ('lab/vm.py', 'from . import fs\nfrom .qmp import QMP\n'),
                ('bench/sides.py', 'from lab.vm import VM\n'
                                   '# from e2e import x\n'),
                ('e2e/faults.py', 'from lab import fs\n'),
                ('e2e/test_a.py', 'from .faults import x\n'
                                  'from .harness import test\n'),
                ('e2e/__main__.py', 'from . import test_a\n'),
                ('e2e/libvirt/test_v.py', 'from ..faults import x\n'
                                          'from .daemon import Libvirt\n')):
            self.write(path, text)
        self.assertEqual(self.lint(), [])

    def test_python_that_cannot_be_read(self):
        self.write('lab/vm.py', 'import (\n')
        self.says("^'lab/vm.py' cannot be read as Python")


if __name__ == '__main__':
    unittest.main()
