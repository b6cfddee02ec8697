# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of lab/ that need no emulator."""

import ctypes
import errno
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__)))))

from lab import content, meter, reserve         # noqa: E402

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


class Chunk:
    def close(self):
        pass


class Reserve(unittest.TestCase):
    def setUp(self):
        self.free = {'MemFree': 4000, 'MemAvailable': 9000}
        self.holder = reserve.Holder(lambda _: Chunk(), self.free.get)

    def test_limit(self):
        self.assertEqual(reserve.limited(1000, 9000), 1000)
        self.assertEqual(reserve.limited(9000, 9000), 9000 - reserve.LEAVE)
        self.assertEqual(reserve.limited(9000, 9000, 4000),
                         5000 - reserve.LEAVE)
        self.assertEqual(reserve.limited(1000, 1000), 0)

    def test_what_is_held_counts_as_available(self):
        self.holder.obey('hold 6400 0')
        self.assertEqual(self.holder.held(), 6400)
        self.free['MemAvailable'] -= 6400
        self.holder.obey('hold 6400 0')
        self.assertEqual(self.holder.held(), 6400)
        self.holder.obey('hold 640 0')
        self.assertEqual(self.holder.held(), 640)

    def test_memory_is_given_back_as_it_is_used(self):
        self.holder.obey('hold 6400 0')
        self.assertFalse(self.holder.gives_back())
        self.holder.obey('let_go')
        self.assertEqual(self.holder.held(), 6400 - reserve.LEAD)
        self.free['MemFree'] += reserve.LEAD
        self.holder.look()
        self.assertEqual(self.holder.held(), 6400 - reserve.LEAD)
        self.free['MemFree'] -= reserve.REPORTED        # for a moment
        self.holder.look()
        self.assertEqual(self.holder.held(), 6400 - reserve.LEAD)
        self.free['MemFree'] -= reserve.CHUNK + 1
        self.holder.look()
        self.assertEqual(self.holder.held(),
                         6400 - reserve.LEAD - 2 * reserve.CHUNK)
        self.free['MemFree'] = -9000            # all is used
        self.holder.look()
        self.assertEqual(self.holder.held(), 0)
        self.assertFalse(self.holder.gives_back())
        self.holder.obey('hold 64 0')
        self.assertFalse(self.holder.gives_back())

    def test_process(self):
        with reserve.Reserve() as one:
            held = one.hold(128)
            if held < 128:
                self.skipTest(f'not enough memory: only {held} of 128 MiB '
                              'can be held')
            self.assertEqual(held, 128)
            self.assertGreater(meter.memory(one.pid, 'VmRSS'), 120 * MIB)
            self.assertEqual(one.hold(64), 64)
            self.assertLess(meter.memory(one.pid, 'VmRSS'), 120 * MIB)
            one.let_go()
            self.assertEqual(one.held(), 0)
            self.assertLess(one.cpu(), 1)
            self.assertEqual(one.hold(128), 128)
        self.assertFalse(os.path.exists(f'/proc/{one.pid}'))

    def test_old_kernels(self):
        class Libc:
            @staticmethod
            def madvise(*_):
                ctypes.set_errno(errno.EINVAL)
                return -1

        memory = ctypes.create_string_buffer(b'abc')
        reserve.populate(ctypes.addressof(memory), 3, Libc)
        self.assertEqual(memory.value, b'')

    def test_reporting(self):
        with tempfile.TemporaryDirectory() as top:
            self.assertFalse(reserve.reporting(top))
            for kind, features, wanted in (('0x0002', '000001', False),
                                           ('0x0005', '000010', False),
                                           ('0x0005', '000001', True)):
                where = os.path.join(top, kind + features)
                os.mkdir(where)
                for name, text in (('device', kind), ('features', features)):
                    with open(os.path.join(where, name), 'w') as f:
                        f.write(text + '\n')
                self.assertEqual(reserve.reporting(top), wanted)


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
