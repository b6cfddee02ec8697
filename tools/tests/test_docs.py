# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation pages are valid reStructuredText: QEMU's own build of its
documentation treats warnings as errors, and our builds do without it.  Their
lines are short, and some of what they say is checked against what it is about.
"""

import glob
import io
import os
import re
import unittest

try:
    from docutils import core
except ImportError:
    core = None

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
OPERATORS = 'docs/system/direct-io.rst'
PAGES = ('docs/devel/migration/direct-io.rst', OPERATORS)
# Messages, commands and rows of tables are not broken
UNBROKEN = re.compile(r' *``.*``$| +virsh |\|')


def read(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as f:
        return f.read()


def complaints(text, path):
    found = io.StringIO()
    core.publish_string(text, source_path=path, writer_name='null',
                        settings_overrides={'warning_stream': found,
                                            'report_level': 2,
                                            'halt_level': 6})
    return found.getvalue()


@unittest.skipUnless(core, 'docutils is not installed')
class Docs(unittest.TestCase):
    def test_pages_are_valid(self):
        for page in PAGES:
            with self.subTest(page):
                self.assertEqual(complaints(read(page), page), '')

    def test_a_bad_table_is_noticed(self):
        table = '===  ===\na    b\n===  ===\nc   d\n===  ===\n'
        self.assertIn('Malformed table', complaints(table, 'page'))


class Text(unittest.TestCase):
    def test_lines_are_short(self):
        for path in (*PAGES, 'README.md', 'e2e/README.md'):
            for number, line in enumerate(read(path).splitlines(), 1):
                if len(line) > 80 and not UNBROKEN.match(line):
                    self.fail(f'{path}:{number}: {len(line)} characters')

    def test_what_is_installed(self):
        """The bases' options, with which `./run install` builds, are as the
        README says."""
        said = re.search(r'`\./run install .*?\n\n', read('README.md'), re.S)
        self.assertRegex(said.group(),
                         r'(?s)no\s+KVM.*no VNC, slirp or seccomp')
        for path in glob.glob(os.path.join(ROOT, 'bases', '*.conf')):
            options = re.findall(r'^configure = (.*)', read(path), re.M)
            with self.subTest(os.path.basename(path)):
                self.assertIn('--without-default-features', str(options))
                self.assertIn('--enable-tcg', str(options))
                self.assertNotRegex(str(options),
                                    '--enable-(kvm|vnc|slirp|seccomp)')

    def test_what_the_tool_says_of_libvirts_mark(self):
        quoted = re.search(r'``not finished: (libvirt[^`]*)``',
                           read(OPERATORS))
        self.assertIn(f"'{quoted.group(1)}'",
                      read('scripts/mapped_ram_image.py'))
