# SPDX-License-Identifier: GPL-2.0-or-later
"""A base is described in bases/BASE.conf and nowhere in the programs."""

import ast
import glob
import os
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
sys.path += [ROOT, os.path.join(ROOT, 'tools')]
from lab.vm import MACHINE                              # noqa: E402
from qdio.config import base_names, get_base            # noqa: E402


def programs():
    """All Python files except those that deal with made-up bases."""
    for top in ('tools/qdio', 'lab', 'e2e', 'bench', 'scripts'):
        for path in glob.glob(f'{ROOT}/{top}/**/*.py', recursive=True):
            if '/tests/' not in path:
                yield path


def constants(path):
    """(line, value) of each constant in a file."""
    with open(path, 'rb') as f:
        tree = ast.parse(f.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            yield node.lineno, node.value


class Bases(unittest.TestCase):
    def test_no_program_names_a_base(self):
        names = base_names()
        found = [f'{os.path.relpath(path, ROOT)}:{line}: {value}'
                 for path in programs() for line, value in constants(path)
                 if value in names]
        self.assertEqual(found, [])

    def test_all_bases_have_the_machine_of_the_tests(self):
        def numbers(version):
            return [int(n) for n in version.split('.')]

        oldest = numbers(MACHINE.rpartition('-')[2])
        for name in base_names():
            self.assertGreaterEqual(numbers(get_base(name).family), oldest,
                                    name)


if __name__ == '__main__':
    unittest.main()
