# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation pages are valid reStructuredText: QEMU's own build of its
documentation treats warnings as errors, and our builds do without it."""

import io
import os
import unittest

try:
    from docutils import core
except ImportError:
    core = None

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
PAGES = ('docs/devel/migration/direct-io.rst', 'docs/system/direct-io.rst')


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
            with self.subTest(page), \
                    open(os.path.join(ROOT, page)) as f:
                self.assertEqual(complaints(f.read(), page), '')

    def test_a_bad_table_is_noticed(self):
        table = '===  ===\na    b\n===  ===\nc   d\n===  ===\n'
        self.assertIn('Malformed table', complaints(table, 'page'))
