# SPDX-License-Identifier: GPL-2.0-or-later
"""Which parts of `./run test` run on which base, and which bases exchange
images."""

import json
import os
import sys
import tempfile
import types
import unittest

from madeup import MadeUp

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from qdio.testing import Tests, has_ours                # noqa: E402


def tree(name, parts=(), exchange=()):
    return types.SimpleNamespace(base=types.SimpleNamespace(
        name=name, parts=list(parts), exchange=list(exchange),
        e2e=['--quick']))


def tests_of(*trees, every=False):
    tests = Tests.__new__(Tests)
    tests.all_trees = list(trees)
    tests._every = every
    tests._quick = False
    return tests


class Parts(unittest.TestCase):
    def test_a_base_that_names_none_runs_all(self):
        one, two = tree('1.0'), tree('2.0', parts=['unit'])
        tests = tests_of(one, two)
        self.assertEqual(tests.trees_of('unit'), [one, two])
        self.assertEqual(tests.trees_of('e2e'), [one])
        self.assertEqual(tests.minutes_of('e2e'), Tests.PARTS['e2e'])

    def test_parts_of_no_base_have_all_trees(self):
        two = tree('2.0', parts=['unit'])
        self.assertEqual(tests_of(two).trees_of('tools'), [two])

    def test_a_part_that_was_asked_for_runs_on_all(self):
        two = tree('2.0', parts=['unit'])
        self.assertEqual(tests_of(two, every=True).trees_of('e2e'), [two])

    def test_peers_in_the_order_of_the_description(self):
        one, two = tree('1.0'), tree('2.0')
        three = tree('3.0', parts=['e2e'], exchange=['2.0', '1.0', '0.9'])
        tests = tests_of(one, two, three)
        self.assertEqual(tests._peers(three), [two, one])
        self.assertEqual(tests._peers(one), [])


class Benchmark(unittest.TestCase):
    def test_ours_was_measured(self):
        for program, direct, wanted in (('fio', True, False),
                                        ('ours', False, False),
                                        ('ours', True, True)):
            runs = [{'facts': {'program': 'fio'}},
                    {'facts': {'program': program, 'direct': direct}}]
            with tempfile.NamedTemporaryFile('w') as f:
                json.dump({'sessions': [{'runs': []}, {'runs': runs}]}, f)
                f.flush()
                self.assertEqual(has_ours(f.name), wanted)


class Description(MadeUp):
    def test_unknown_part(self):
        with open(self.path('bases/1.0.conf'), 'a', encoding='utf-8') as f:
            f.write('parts = unit paint\n')
        self.refused('test', '--base', '1.0',
                     says="bases/1.0.conf: there is no part 'paint'; parts "
                     'takes some of lint, tools')


if __name__ == '__main__':
    unittest.main()
