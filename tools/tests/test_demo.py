# SPDX-License-Identifier: GPL-2.0-or-later
"""What `./run demo` prints and requires."""

import hashlib
import io
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from qdio.demo import Demo, counts, follows, moved      # noqa: E402
from qdio.progress import Bar, bar_text, table          # noqa: E402
from qdio.say import Failure                            # noqa: E402


def chain(number, before):
    digest = hashlib.sha256(f'{number} {before}'.encode()).hexdigest()
    return f'count {number} chain {digest}'


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Progress(unittest.TestCase):
    def test_bar(self):
        text = bar_text('direct save', 'ram', 512 << 20, 1024 << 20, 2)
        self.assertIn('[' + '#' * 15 + '.' * 15 + ']', text)
        self.assertIn('512 of 1024 MiB   256 MiB/s  ram', text)

    def test_no_total(self):
        self.assertEqual(bar_text('save', 'active', 0, 0, 1.5).split(None, 1),
                         ['save', 'active, 1.5 s'])

    def test_more_than_all_fits(self):
        self.assertIn('#' * 30 + ']', bar_text('x', 'ram', 9, 3, 1))

    def show(self, out):
        bar = Bar('save', out, clock=iter(range(99)).__next__)
        for phase, done in (('setup', 0), ('ram', 1), ('ram', 2), ('sync', 4)):
            bar.show(phase, done << 20, 4 << 20)
        bar.close('completed')
        return out.getvalue()

    def test_plain_lines(self):
        text = self.show(io.StringIO())
        self.assertNotIn('\r', text)
        self.assertNotIn('\033', text)
        self.assertEqual([x.split()[-1] for x in text.splitlines()],
                         ['setup', 'ram', 'sync', 'completed'])

    def test_terminal(self):
        text = self.show(Terminal())
        self.assertEqual(text.count('\n'), 1)
        self.assertEqual(text.count('\r'), 5)

    def test_table(self):
        self.assertEqual(table(['', 's', 'MiB/s'], [['buffered', '1.0', '7']]),
                         ['            s  MiB/s', 'buffered  1.0      7'])


class Moved(unittest.TestCase):
    def test_save(self):
        self.assertEqual(moved({'status': 'active', 'ram': {
            'total': 10, 'remaining': 4}, 'direct-io': {'phase': 'ram'}}),
            ('ram', 6, 10))

    def test_restore(self):
        self.assertEqual(moved({'status': 'active', 'direct-io': {
            'phase': 'ram', 'load-total': 8, 'load-done': 3}}), ('ram', 3, 8))

    def test_setup_counts_nothing(self):
        self.assertEqual(moved({'status': 'setup', 'ram': {
            'total': 10, 'remaining': 0}}), ('setup', 0, 10))
        # A guest that was restored is saved again
        self.assertEqual(moved({'status': 'setup', 'ram': {'total': 10},
                                'direct-io': {'load-total': 8,
                                              'load-done': 8}}),
                         ('setup', 0, 10))

    def test_stock_restore(self):
        self.assertEqual(moved({'status': 'active'}), ('active', 0, 0))


class Chain(unittest.TestCase):
    def test_unbroken(self):
        last = chain(1, '0')
        follows(last, [chain(2, last.split()[3])])

    def test_broken(self):
        with self.assertRaisesRegex(Failure, 'the guest did not go on'):
            follows(chain(1, '0'), [chain(2, '0')])

    def test_torn_line(self):
        self.assertEqual(counts('noise\ncount 1 chain a\ncount 2 ch'),
                         ['count 1 chain a'])


class Verbose(unittest.TestCase):
    def test_traffic(self):
        demo = Demo.__new__(Demo)
        said = []
        demo.say = said.append
        run = demo._loud(lambda *args: {})
        run('stop')
        run('query-migrate')
        self.assertEqual(said, ['-> {"execute": "stop"}', '<- {"return": {}}'])


if __name__ == '__main__':
    unittest.main()
