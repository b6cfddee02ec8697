# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of lab/ that need no emulator."""

import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__)))))

from lab import content, meter          # noqa: E402

MIB = 1 << 20


class Meter(unittest.TestCase):
    def test_spread(self):
        self.assertEqual(meter.spread([3.0, 1.0, 2.0]), (2.0, 1.0, 3.0, 3))
        self.assertEqual(meter.spread([1.0, 2.0]).median, 1.5)

    def test_meter(self):
        self.assertEqual(meter.field('MemFree: 1 kB\nCached:  20 kB\n',
                                     'Cached'), 20480)
        stat = '7 (a) b) S ' + ' '.join(map(str, range(4, 30)))
        self.assertEqual(meter.parse_cpu(stat) * os.sysconf('SC_CLK_TCK'),
                         14 + 15 + 16 + 17)
        self.assertEqual(
            meter.parse_busy('cpu 1 2 3 400 500 6 7 8 9 9\ncpu0 1')
            * os.sysconf('SC_CLK_TCK'), 1 + 2 + 3 + 6 + 7 + 8)

    def test_cached(self):
        with tempfile.NamedTemporaryFile() as f:
            self.assertEqual(meter.cached(f.name), 0)
            f.write(bytes(5000))
            f.flush()
            self.assertIn(meter.cached(f.name), (0, 4096, 8192))


class Contents(unittest.TestCase):
    def test_ram_of_a_process(self):
        text = ('1000-3000 rw-p 0 00:00 0\n'
                '200000-400000 r--p 0 00:00 0\n'
                '600000-800000 rw-p 0 08:01 7 /lib/x\n'
                'a00000-c00000 rw-p 0 00:00 0\n'
                'f00000-1600000 rw-p 0 00:00 0\n')
        self.assertEqual(content.parse_maps(text, 2 * MIB), 0xa00000)
        # A memfd, and it alone of all files
        memfd = '2000000-2400000 rw-s 0 00:01 9 /memfd:memory (deleted)\n'
        self.assertEqual(content.parse_maps(
            '3000000-3400000 rw-s 0 08:01 7 /x\n' + memfd, 4 * MIB),
            0x2000000)
        # Joined with a neighbour
        self.assertEqual(content.parse_maps(text, 4 * MIB), 0x1000000)
        with self.assertRaises(RuntimeError):
            content.parse_maps(text, 64 * MIB)

    def test_runs_cover_the_data(self):
        for kind, share in (('random', 1), ('half-zero-64k', 0.5),
                            ('half-zero-8k', 0.5), ('zero', 0)):
            one = content.Content(kind, 70)
            self.assertEqual(one.data_bytes(), 70 * MIB * share, kind)
            for offset, size in one.runs():
                self.assertEqual(offset >> 25, offset + size - 1 >> 25)

    def test_pages_are_what_is_filled(self):
        for kind in content.KINDS:
            one = content.Content(kind, 33)
            with tempfile.TemporaryFile() as f:
                f.truncate(33 * MIB)
                for offset, size in one.runs():
                    content._write_all(f.fileno(),
                                       content._data(offset, size), offset)
                for page in (0, 1, 2, 15, 16, 8191, 8192, 33 * 256 - 1):
                    self.assertEqual(os.pread(f.fileno(), 4096, page * 4096),
                                     one.page(page), (kind, page))

    def test_no_two_pages_are_alike(self):
        one = content.Content('random', 70)
        pages = {one.page(n) for n in range(70 * 256)}
        self.assertEqual(len(pages), 70 * 256)


if __name__ == '__main__':
    unittest.main()
