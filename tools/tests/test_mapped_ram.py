# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/mapped-ram.py with made-up images: valid, with each field wrong,
truncated anywhere, and randomly damaged.  An exception that escapes main()
fails the test: the tool never prints a traceback."""

import contextlib
import errno
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__)))), 'scripts')
TOOL = os.path.join(SCRIPTS, 'mapped-ram.py')
sys.path.append(SCRIPTS)
_spec = importlib.util.spec_from_file_location('mapped_ram', TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

MIB = 1 << 20
PAGE = 4096
DEVICES = (('timer', 0, 2), ('cpu', 0, 12), ('cpu', 1, 12), ('ra\u00e4', 0, 1))


def be(size, value):
    return (value % (1 << 8 * size)).to_bytes(size, 'big')


def named(name):
    return be(1, len(name)) + name


def page_of(seed):
    return bytes((seed + i * 7 + 1) % 251 + 1 for i in range(PAGE))


class Maker:
    """Writes an image.  Attributes override the defaults."""

    def __init__(self):
        self.offset = 0
        self.libvirt = None             # (magic, format, byte order)
        self.magic = 0x5145564d
        self.machine = b'pc-test-1.0'
        self.capabilities = [b'mapped-ram']
        self.repeated = 1               # how often these follow
        self.left_out = []              # names of blocks
        self.early = b''                # device state before RAM
        self.early_devices = ()         # ... and its devices
        self.footers = True
        self.order, self.word = 'little', 8
        # name, pages, {page: contents}
        self.blocks = [(b'pc.ram', 300, {p: page_of(p) for p in
                                         (0, 1, 5, 7, 8, 255, 256, 299)}),
                       (b'pc.rom', 5, {}),
                       (b'tail', 64, {63: page_of(9)})]
        self.devices = DEVICES
        self.description = True
        self.at = {}                    # offsets of fields as written

    def write(self, path):
        with open(path, 'wb') as f:
            f.seek(self.offset)
            self._libvirt(f)
            self._head(f)
            for name, pages, contents in self.blocks:
                self._block(f, name, pages, contents)
            self._rest(f)
            f.truncate()
        return path

    def _libvirt(self, f):
        if self.libvirt:
            magic, form, order = self.libvirt
            xml = b'<domain/>\0<cookie/>\0' + bytes(999)
            f.write(magic + struct.pack(order + '5I', 2, len(xml), 1, form,
                                        10) + bytes(56) + xml)

    def _head(self, f):
        self.at['magic'] = f.tell()
        f.write(be(4, self.magic) + be(4, 3))
        if self.machine:
            f.write(b'\x07' + be(4, len(self.machine)) + self.machine)
            for _ in range(self.repeated):
                f.write(b'\x05' + named(b'configuration/capabilities')
                        + be(4, 1) + be(4, len(self.capabilities))
                        + b''.join(map(named, self.capabilities)))
        f.write(self.early)
        self.at['ram'] = f.tell()
        f.write(b'\x01' + be(4, 2) + named(b'ram') + be(4, 0) + be(4, 4))
        self.at['total'] = f.tell()
        f.write(be(8, sum(b[1] for b in self.blocks) * PAGE | 4))

    def _block(self, f, name, pages, contents):
        f.write(named(name) + be(8, pages * PAGE))
        if b'x-ignore-shared' in self.capabilities:
            f.write(be(8, 0xfee00000))
        header = f.tell()
        if name in self.left_out:
            f.write(be(4, 1) + be(8, PAGE) + be(8, 0) + be(8, 0))
            return
        self.at.setdefault('header', header)
        words = -(-pages // (8 * self.word))
        bits = sum(1 << page for page in contents)
        bitmap = b''.join(
            (bits >> i * 8 * self.word & (1 << 8 * self.word) - 1).to_bytes(
                self.word, self.order) for i in range(words))
        start = header + 28
        first = -(-(start + len(bitmap)) // MIB) * MIB
        self.at.setdefault('bitmap', start)
        self.at.setdefault('pages', first)
        f.write(be(4, 1) + be(8, PAGE) + be(8, start) + be(8, first))
        f.write(bitmap)
        for page, data in contents.items():
            f.seek(first + page * PAGE)
            f.write(data)
        f.seek(first + pages * PAGE)
        self.at['end'] = f.tell()

    def _rest(self, f):
        def footer(number):
            return b'\x7e' + be(4, number) if self.footers else b''
        f.write(be(8, 0x200) + be(8, 16) + footer(2))
        for kind in (b'\x02', b'\x02', b'\x03'):
            f.write(kind + be(4, 2) + be(8, 16) + footer(2))
        self.at['devices'] = f.tell()
        for number, (name, instance, version) in enumerate(self.devices, 10):
            f.write(b'\x04' + be(4, number) + named(name.encode())
                    + be(4, instance) + be(4, version)
                    + bytes(range(number, number + 30)) + footer(number))
        f.write(b'\0')
        self.at['description'] = f.tell()
        if self.description:
            text = json.dumps({'page_size': PAGE, 'devices': [
                {'name': n, 'instance_id': i, 'vmsd_name': 'x', 'version': v,
                 'fields': [{'name': 'x', 'size': 30}]}
                for n, i, v in (*self.early_devices,
                                *self.devices)]}).encode()
            f.write(b'\x06' + be(4, len(text)) + text)
        self.at['size'] = f.tell()

    def memory(self, number=0):
        _, pages, contents = self.blocks[number]
        return b''.join(contents.get(p, bytes(PAGE)) for p in range(pages))


class Case(unittest.TestCase):
    def setUp(self):
        self.top = tempfile.mkdtemp(prefix='mapped-ram.')
        self.addCleanup(shutil.rmtree, self.top)
        self.image = os.path.join(self.top, 'image')
        self.maker = Maker()

    def path(self, name):
        return os.path.join(self.top, name)

    def write(self, **changes):
        for name, value in changes.items():
            setattr(self.maker, name, value)
        return self.maker.write(self.image)

    def patch(self, at, data, path=None):
        with open(path or self.image, 'r+b') as f:
            f.seek(at)
            f.write(data)

    def run_tool(self, *args):
        """Run the tool; return (exit code, stdout, stderr)."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = tool.main(list(args))
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), err.getvalue()

    def unreadable(self, byte):
        """Make reads of a byte fail as on a failing disk."""
        def pread(fd, size, at):
            if at <= byte < at + size:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, size, at)
        real = os.pread
        return mock.patch.object(os, 'pread', pread)

    def on_a_device(self):
        """Make files pass for block devices."""
        return mock.patch.multiple('stat', S_ISREG=lambda mode: False,
                                   S_ISBLK=lambda mode: True)

    def append(self, data):
        with open(self.image, 'ab') as f:
            f.write(data)

    def result(self, *args, code=0):
        """Check the exit code and return the output of --json."""
        got, out, err = self.run_tool(*args, '--json')
        self.assertEqual(got, code, out + err)
        return json.loads(out)

    def problems(self, spec=None, code=1, says=None):
        """Return the problems that verify finds; check that their text matches
        `says`."""
        found = self.result('verify', spec or self.image, code=code)
        _, out, _ = self.run_tool('verify', spec or self.image)
        if says:
            self.assertRegex(out, says)
        return found['problems']


class Good(Case):
    def test_info(self):
        self.write()
        found = self.result('info', self.image)
        self.assertEqual((found['machine'], found['capabilities'],
                          found['page-size'], found['finished']),
                         ('pc-test-1.0', ['mapped-ram'], PAGE, True))
        self.assertEqual([(b['name'], b['pages'], b['pages-present'])
                          for b in found['blocks']],
                         [('pc.ram', 300, 8), ('pc.rom', 5, 0),
                          ('tail', 64, 1)])
        self.assertEqual([(d['name'], d['instance'], d['version'])
                          for d in found['devices']], list(DEVICES))
        ram = found['blocks'][0]
        for field in ('header', 'bitmap', 'pages'):
            self.assertEqual(ram[f'{field}-offset'], self.maker.at[field])
        self.assertIn('pc.ram', self.run_tool('info', self.image)[1])

    def test_holes(self):
        self.write()
        ram = self.result('info', self.image)['blocks'][0]
        if not ram['bytes-of-holes']:
            self.skipTest('this file system has no holes')
        self.assertEqual(ram['bytes-in-file'], 8 * PAGE)
        self.assertEqual(ram['bytes-of-holes'], 292 * PAGE)

    def verified(self, spec=None, *options):
        found = self.result('verify', spec or self.image, *options)
        self.assertEqual(found['problems'], [])
        return found

    def extracted(self, *options, spec=None):
        out = self.path('raw')
        self.result('extract', spec or self.image, 'pc.ram', '-o', out,
                    '--force', *options)
        with open(out, 'rb') as f:
            return f.read()

    def test_all_kinds(self):
        """The tool understands all optional parts and variants."""
        for changes in ({}, {'offset': 12345}, {'machine': b''},
                        {'footers': False}, {'description': False},
                        {'early': b'\x04early device' * 20}):
            with self.subTest(str(changes)):
                self.maker = Maker()
                self.write(**changes)
                spec = f'{self.image},offset={self.maker.offset}'
                self.verified(spec)
                self.assertEqual(self.extracted(spec=spec),
                                 self.maker.memory())

    def test_device_before_ram(self):
        device = ('virtio-mem', 0, 1)
        section = b'\x04' + be(4, 5) + named(b'virtio-mem') + be(4, 0) + \
            be(4, 1) + bytes(40)
        self.write(early=section, early_devices=(device,))
        found = self.verified()
        self.assertIn(f'{len(section)} bytes', found['notes'][0])
        self.write(early=section.replace(b'virtio', b'v_rtio'))
        self.assertIn('no section',
                      self.result('verify', self.image,
                                  code=1)['problems'][0]['cause'])

    def test_bitmaps_of_other_hosts(self):
        for order, word in (('little', 4), ('big', 8), ('big', 4)):
            with self.subTest(f'{order} {word}'):
                self.maker = Maker()
                self.write(order=order, word=word)
                options = ['--word-size', str(word)]
                options += ['--big-endian'] if order == 'big' else []
                self.verified(None, *options)
                self.assertEqual(self.extracted(*options),
                                 self.maker.memory())

    def test_libvirt(self):
        for order in '<>':
            with self.subTest(order):
                self.maker = Maker()
                self.write(libvirt=(b'LibvirtQemudSave', 6, order))
                found = self.verified()
                self.assertEqual(found['libvirt']['format'], 'sparse')
                self.assertEqual(self.extracted(), self.maker.memory())
                self.assertEqual(
                    self.extracted(spec=f'file:{self.image},offset='
                                   f'{hex(self.maker.at["magic"])}'),
                    self.maker.memory())

    def test_extract_of_all_blocks(self):
        self.write()
        for number, (name, _, _) in enumerate(self.maker.blocks):
            out = self.path('raw')
            self.result('extract', self.image, name.decode(), '-o', out,
                        '--force')
            with open(out, 'rb') as f:
                self.assertEqual(f.read(), self.maker.memory(number))

    def test_absent_pages_are_zero(self):
        """... regardless of what the file contains at their offsets."""
        self.write()
        self.patch(self.maker.at['pages'] + 2 * PAGE, b'old' * 1000)
        self.assertEqual(self.extracted(), self.maker.memory())
        self.assertNotEqual(self.extracted('--ignore-bitmap'),
                            self.maker.memory())

    def test_extract_keeps_what_is_there(self):
        self.write()
        out = self.path('raw')
        with open(out, 'w') as f:
            f.write('mine')
        found = self.result('extract', self.image, 'pc.ram', '-o', out, code=2)
        self.assertIn('--force', found['error']['cause'])
        self.assertEqual(os.path.getsize(out), 4)
        os.symlink(out, self.path('link'))
        self.result('extract', self.image, 'pc.ram', '-o', self.path('link'),
                    '--force', code=2)
        self.result('extract', self.image, 'pc.ram', '-o',
                    self.path('no/where'), code=2)
        found = self.result('extract', self.image, 'nix', '-o', out, code=2)
        self.assertIn("'pc.rom'", found['error']['cause'])
        self.result('extract', self.image, 'pc.ram', '-o', self.image, code=2)
        self.assertEqual(sorted(os.listdir(self.top)),
                         ['image', 'link', 'raw'])

    def without_links(self):
        """Make os.link() fail as on vfat."""
        def link(*_):
            raise PermissionError(errno.EPERM, 'made up')
        self.addCleanup(setattr, os, 'link', os.link)
        os.link = link

    def test_extract_without_hard_links(self):
        """Some file systems have none."""
        self.write()
        self.without_links()
        out = self.path('raw')
        self.result('extract', self.image, 'pc.ram', '-o', out)
        with open(out, 'rb') as f:
            self.assertEqual(f.read(), self.maker.memory())
        self.assertEqual(sorted(os.listdir(self.top)), ['image', 'raw'])

    def test_extract_without_hard_links_keeps_what_is_there(self):
        """... also if it appears in the last moment."""
        self.write()
        self.without_links()
        out, link = self.path('raw'), os.link

        def late(*args):
            with open(out, 'w') as f:
                f.write('mine')
            link(*args)
        os.link = late
        self.result('extract', self.image, 'pc.ram', '-o', out, code=2)
        self.assertEqual(os.path.getsize(out), 4)
        self.assertEqual(sorted(os.listdir(self.top)), ['image', 'raw'])

    def test_extract_that_fails_leaves_nothing(self):
        self.write()
        real, calls = tool.Image.read_group, []

        def failing(self, block, number, bits):
            calls.append(number)
            if len(calls) > 1:
                raise self.error('made up')
            return real(self, block, number, bits)

        self.addCleanup(setattr, tool.Image, 'read_group', real)
        tool.Image.read_group = failing
        self.result('extract', self.image, 'pc.ram', '-o', self.path('raw'),
                    code=2)
        self.assertEqual(os.listdir(self.top), ['image'])

    def test_output_is_the_image(self):
        """--force does not replace what is being read."""
        self.write()
        with open(self.image, 'rb') as f:
            data = f.read()
        os.link(self.image, self.path('link'))
        for output in self.image, self.path('link'), \
                os.path.join(self.top, '.', 'image'):
            for args in ('extract', self.image, 'pc.ram'), ('map', self.image):
                found = self.result(*args, '-o', output, '--force', code=2)
                self.assertIn('is the image', found['error']['cause'])
        with open(self.image, 'rb') as f:
            self.assertEqual(f.read(), data)
        self.assertEqual(sorted(os.listdir(self.top)), ['image', 'link'])

    def test_output_is_synced(self):
        """... before it gets its name."""
        self.write()
        out, real, sizes = self.path('raw'), os.fsync, []

        def fsync(fd):
            sizes.append((os.fstat(fd).st_size, os.path.getsize(out)))
            real(fd)
        with open(out, 'w') as f:
            f.write('old')
        with mock.patch.object(os, 'fsync', fsync):
            self.result('extract', self.image, 'pc.ram', '-o', out, '--force')
            self.assertEqual(sizes, [(len(self.maker.memory()), 3)])
            self.result('map', self.image, '-o', out, '--force')
            self.assertEqual(sizes[1:], [(os.path.getsize(out), sizes[0][0])])

    def test_map(self):
        self.write()
        _, out, _ = self.run_tool('map', self.image, '--width', '10')
        self.assertIn('|@ +++     |', out)
        picture = self.path('ram.svg')
        self.result('map', self.image, '-o', picture)
        with open(picture) as f:
            text = f.read()
        self.assertTrue(text.startswith('<svg') and 'pc.ram' in text)
        self.result('map', self.image, '-o', picture, code=2)
        cells = self.result('map', self.image, '--rows', '512')['blocks'][0]
        self.assertEqual([i for i, n in enumerate(cells['cells']) if n],
                         [0, 1, 5, 7, 8, 255, 256, 299])
        cells = self.result('map', self.image, '--width', '8', '--rows',
                            '1')['blocks'][0]
        self.assertEqual((cells['pages-per-cell'], cells['cells']),
                         (64, [5, 0, 0, 1, 2]))


class Compare(Case):
    def compare(self, code, *options):
        return self.result('compare', self.image, self.other, *options,
                           code=code)

    def setUp(self):
        super().setUp()
        self.write()
        self.other = self.path('other')
        self.theirs = Maker()
        self.theirs.offset = 5 * MIB + 77
        self.theirs.write(self.other)
        self.other += f',offset={self.theirs.offset}'

    def again(self):
        self.theirs.write(self.other.partition(',')[0])

    def test_same(self):
        self.assertTrue(self.compare(0)['same'])

    def test_zero_page_is_as_good_as_absent(self):
        self.theirs.blocks[0][2][100] = bytes(PAGE)
        self.again()
        self.compare(0)

    def test_absent_pages_are_zero(self):
        """... regardless of what the file contains at their offsets."""
        self.patch(self.maker.at['pages'] + 2 * PAGE, b'old' * 1000)
        self.compare(0)

    def test_a_byte(self):
        self.patch(self.theirs.at['pages'] + 7 * PAGE + 4095, b'\0',
                   self.path('other'))
        self.assertEqual(self.compare(1)['differences'], [
            {'block': 'pc.ram', 'page': 7, 'address': 8 * PAGE - 1,
             'byte': 4095, 'values': [page_of(7)[-1], 0]}])
        out = self.run_tool('compare', self.image, self.other)[1]
        self.assertRegex(out, "RAM block 'pc.ram', page 7: .* byte 4095")

    def test_pages_only_in_one(self):
        self.theirs.blocks[0][2][100] = page_of(100)
        del self.theirs.blocks[2][2][63]
        self.again()
        found = self.compare(1)
        self.assertEqual([(d['block'], d['page'], d['byte'])
                          for d in found['differences']],
                         [('pc.ram', 100, 0), ('tail', 63, 0)])
        found = self.compare(1, '--limit', '1')
        self.assertEqual((found['pages-different'],
                          len(found['differences'])), (2, 1))

    def test_blocks(self):
        self.theirs.blocks[1:] = [(b'pc.rom', 6, {5: page_of(1)}),
                                  (b'new', 1, {})]
        self.again()
        found = self.compare(1)
        self.assertEqual([d['block'] for d in found['blocks']],
                         ['pc.rom', 'tail', 'new'])
        self.assertEqual(found['pages-different'], 0)


    def leave_out(self, *names):
        """Leave RAM blocks out of both images."""
        for maker in self.maker, self.theirs:
            maker.capabilities = [b'mapped-ram', b'x-ignore-shared']
            maker.left_out = list(names)
        self.write()
        self.again()

    def test_blocks_that_are_left_out(self):
        """Nothing is said about their contents."""
        self.leave_out(b'pc.rom', b'tail')
        found = self.compare(0)
        self.assertEqual((found['same'], found['not-compared']),
                         (True, ['pc.rom', 'tail']))
        out = self.run_tool('compare', self.image, self.other)[1]
        self.assertEqual(out, '2 RAM blocks are not in the images and were '
                         'not compared\nguest RAM in the images is the same\n')
        self.leave_out(*(block[0] for block in self.maker.blocks))
        out = self.run_tool('compare', self.image, self.other)[1]
        self.assertEqual(out, '3 RAM blocks are not in the images and were '
                         'not compared\nthere is no guest RAM in the images\n')

    def test_blocks_that_are_left_out_and_differ(self):
        self.theirs.blocks[1:] = [(b'pc.rom', 6, {}), (b'new', 1, {})]
        self.leave_out(b'pc.rom', b'tail', b'new')
        self.assertEqual(
            [(d['block'], d['how']) for d in self.compare(1)['blocks']],
            [('pc.rom', f'has {5 * PAGE} and {6 * PAGE} bytes'),
             ('tail', 'is only in the first image'),
             ('new', 'is only in the second image')])
        self.theirs.blocks = self.maker.blocks
        self.leave_out(b'tail')
        self.write(left_out=[b'pc.rom'])
        found = self.compare(1)
        for d, name, which in zip(found['blocks'], ('tail', 'pc.rom'),
                                  ('second', 'first')):
            self.assertEqual(d['block'], name)
            self.assertRegex(d['how'], f'^is not in the {which} image: ')
        self.assertEqual(found['not-compared'], [])


class Damaged(Case):
    def one_problem(self, at, field, says, code=1):
        """Check that this is the first problem found, and that the other
        commands reject the image for the same reason."""
        found = self.problems(code=code)
        self.assertTrue(found)
        self.assertEqual(found[0]['offset'], at)
        self.assertIn(field, found[0]['field'])
        self.assertRegex(found[0]['cause'], says)
        if code == 1:
            info = self.result('info', self.image, code=2)
            self.assertEqual(info['error'], found[0])

    def test_each_field_of_a_header(self):
        self.write()
        at = self.maker.at['header']
        with open(self.image, 'rb') as f:
            good = f.read()
        for field, where, size, values in (
                ('version', 0, 4, (0, 2, -1)),
                ('page size', 4, 8, (0, 1, 2047, 4095, 1 << 20, 1 << 63, -1)),
                ('bitmap offset', 12, 8, (0, 1, at, at + 27, at + 29,
                                          1 << 40, 1 << 63, -1)),
                ('pages offset', 20, 8, (0, 1, MIB - 1, MIB + 4096, 2 * MIB,
                                         1 << 40, 1 << 63, -1))):
            for value in values:
                with self.subTest(f'{field} {value}'):
                    self.patch(at + where, be(size, value))
                    self.one_problem(at + where, field, r'^is \d+, not ')
                    self.patch(0, good)

    def test_page_size_of_another_target(self):
        self.write()
        self.patch(self.maker.at['header'] + 4, be(8, 8192))
        # The length is not a multiple of the page size, or the description
        # contradicts it
        self.assertTrue(self.problems())

    def test_lengths(self):
        self.write()
        at = self.maker.at['header'] - 8
        for value in (0, 1, PAGE - 1, 299 * PAGE + 1, 301 * PAGE, 1 << 62, -1):
            with self.subTest(value):
                self.patch(at, be(8, value))
                self.assertTrue(self.problems())

    def test_length_that_no_file_has(self):
        """... is not believed, whatever else the image says."""
        self.write()
        for value in ((1 << 63) - MIB, 1 << 63, (1 << 64) - MIB):
            with self.subTest(value):
                self.patch(self.maker.at['total'], be(8, value | 4))
                self.patch(self.maker.at['header'] - 8, be(8, value))
                # The pages offset that follows from it is put right
                self.problems(says='no file')
                for more in [], ['--ignore-bitmap']:
                    found = self.result('extract', self.image, 'pc.ram', '-o',
                                        self.path('raw'), '--unfinished',
                                        *more, code=2)
                    self.assertIn('no file', found['error']['cause'])
        self.assertEqual(os.listdir(self.top), ['image'])

    def test_total(self):
        self.write()
        for value in (0, 4, PAGE | 4, 369 * PAGE, 370 * PAGE | 4,
                      (1 << 63) | 4, -1):
            with self.subTest(value):
                self.patch(self.maker.at['total'], be(8, value))
                self.assertTrue(self.problems())

    def test_names(self):
        for name, says in ((b'', 'is no name'), (b'a\0b', 'is no name'),
                           (b'tail', 'another block')):
            with self.subTest(name):
                self.maker = Maker()
                self.maker.blocks[0] = (name, *self.maker.blocks[0][1:])
                self.write()
                self.assertRegex(self.problems()[0]['cause'], says)

    def test_names_are_safe_to_print(self):
        self.maker.blocks[0] = (b'\x1b[2J\xff<&"\'\n', 3, {})
        self.write()
        for command in ('info', 'verify', 'map'):
            _, out, _ = self.run_tool(command, self.image)
            self.assertNotIn('\x1b', out)
        picture = self.path('ram.svg')
        self.result('map', self.image, '-o', picture)
        with open(picture) as f:
            self.assertNotIn('<&', f.read())

    def test_stray_bits(self):
        self.write()
        self.patch(self.maker.at['bitmap'] + 300 // 8, b'\x18')
        self.one_problem(self.maker.at['bitmap'], 'bitmap',
                         'has page 300, but the block has only 300')

    def test_magic(self):
        self.write(magic=0)
        self.problems(code=3, says='not finished')
        self.assertFalse(self.result('info', self.image, code=3)['finished'])
        out = self.path('raw')
        self.result('extract', self.image, 'pc.ram', '-o', out, code=3)
        self.result('extract', self.image, 'pc.ram', '-o', out,
                    '--unfinished')
        self.write(magic=0x51455649)
        self.one_problem(0, 'magic number', 'no migration stream')

    def test_libvirt_header(self):
        self.write(libvirt=(b'LibvirtQemudPart', 6, '<'))
        self.problems(code=3, says=r'(?s)note: restore it only if the guest '
                      r'has not run since.*: not finished: libvirt has marked '
                      r'it as incomplete$')
        self.write(libvirt=(b'LibvirtQemudSave', 1, '<'))
        self.one_problem(28, "libvirt", 'format gzip')
        for at, size, value in ((16, 4, 0), (16, 4, 4 << 24), (20, 4, 0),
                                (20, 4, -1), (28, 4, 7 << 24), (32, 4, -1)):
            with self.subTest(f'{at} {value}'):
                self.write(libvirt=(b'LibvirtQemudSave', 6, '<'))
                self.patch(at, be(size, value))
                self.assertTrue(self.problems())

    def test_damage_in_what_libvirt_marked_as_incomplete(self):
        """... must not pass for an image that only needs the mark."""
        self.write(libvirt=(b'LibvirtQemudPart', 6, '<'))
        self.assertEqual(self.problems(code=3), [])
        os.truncate(self.image, self.maker.at['devices'] + 99)
        found = self.problems(says=r'(?s)truncated.*not finished: libvirt has '
                              r'marked .*: 1 problem')
        self.assertEqual(found[0]['field'], 'device state')
        info = self.result('info', self.image, code=3)
        self.assertRegex(info['unfinished-because'],
                         '^libvirt .* incomplete; what follows RAM is ')
        self.result('compare', self.image, self.image, '--unfinished')
        # Until QEMU has written its magic number, nothing else is expected
        for libvirt in (None, (b'LibvirtQemudPart', 6, '<')):
            self.write(magic=0, libvirt=libvirt)
            os.truncate(self.image, self.maker.at['devices'] + 99)
            self.assertEqual(self.problems(code=3), [])
            self.assertNotIn('run since',
                             self.run_tool('verify', self.image)[1])

    def test_configuration(self):
        self.write()
        self.patch(9, be(4, 1 << 31))
        self.one_problem(9, 'machine type', 'more than')
        for times in 1, 300:
            self.write(capabilities=[b'x'] * (300 // times), repeated=times)
            self.assertRegex(self.problems()[0]['cause'], 'more than')

    def test_blocks_that_are_left_out(self):
        """Their header has no offsets; each block has its address instead."""
        self.write(capabilities=[b'mapped-ram', b'x-ignore-shared'],
                   left_out=[b'pc.rom'])
        found = self.result('info', self.image)
        self.assertEqual(found['left-out'],
                         [{'name': 'pc.rom', 'length': 5 * PAGE}])
        self.assertEqual([b['name'] for b in found['blocks']],
                         ['pc.ram', 'tail'])
        self.assertEqual(self.problems(code=0), [])
        # QEMU compares version and page size, too
        with open(self.image, 'rb') as f:
            header = f.read().index(be(4, 1) + be(8, PAGE) + bytes(16))
        for at, size, value, field in ((header, 4, 99, 'version'),
                                       (header + 4, 8, 8192, 'page size')):
            self.write()
            self.patch(at, be(size, value))
            self.one_problem(at, f"RAM block 'pc.rom': {field}",
                             f'is {value}, not ')
        # Without the capability no block may be left out
        self.write(left_out=[b'pc.rom'], capabilities=[b'mapped-ram'])
        self.assertTrue(self.problems())

    def test_marks_and_footers(self):
        """An image with a wrong one is damaged, not unfinished."""
        self.write()
        end = self.maker.at['end']
        self.patch(end + 8, be(8, 8))
        self.one_problem(end + 8, 'mark', 'is 0x8')
        self.write()
        self.patch(end + 17, be(4, 3))
        self.one_problem(end + 16, 'footer', 'is 0x7e 3, not 0x7e 2')

    def test_truncated_behind_ram(self):
        """RAM is complete, so it can be looked at."""
        self.write()
        for size in self.maker.at['devices'] + 99, self.maker.at['end'] + 9:
            with self.subTest(size):
                os.truncate(self.image, size)
                self.assertEqual(len(self.problems()), 1)
                found = self.result('info', self.image, code=3)
                self.assertIn('what follows RAM is incomplete',
                              found['unfinished-because'])
                self.result('compare', self.image, self.image, '--unfinished')

    def test_device_state(self):
        self.write()
        at = self.maker.at['devices']
        with open(self.image, 'rb') as f:
            good = f.read()
        # kind, number, name, version and footer of the first section
        for where in (0, 4, 6, 18, 53):
            with self.subTest(where):
                self.patch(at + where, bytes([good[at + where] ^ 0x80]))
                self.assertTrue(self.problems())
                self.patch(0, good)
        self.assertEqual(self.problems(code=0), [])

    def test_ends_without_description(self):
        """An image that ends after a footer and a 0 is complete."""
        self.write(description=False)
        self.problems(code=0, says='note: the stream has no description')
        os.truncate(self.image, self.maker.at['size'] - 1)
        self.assertRegex(self.problems()[0]['cause'], 'incomplete')

    def test_ends_without_description_and_footers(self):
        """Then only the last byte is known."""
        self.write(description=False, footers=False)
        self.problems(code=0, says='note: .* no description .* can.t be '
                      'checked whether it is complete')
        os.truncate(self.image, self.maker.at['size'] - 1)
        self.assertRegex(self.problems()[0]['cause'], 'incomplete')

    def test_something_behind(self):
        """A file that was passed by fd: is not truncated."""
        other = Maker()
        other.devices = DEVICES[:2]
        with open(other.write(self.path('other')), 'rb') as f:
            old = f.read()
        for behind in b'x', bytes(9999), old[-99:], old[-999:], old:
            with self.subTest(behind[:9]):
                self.write()
                self.append(behind)
                self.problems(code=0, says=f'note: {len(behind)} bytes follow '
                              'the image')
                found = self.result('info', self.image)
                self.assertEqual(found['description-offset'],
                                 self.maker.at['description'] - 1)
                self.assertEqual(len(found['devices']), len(DEVICES))
                with self.on_a_device():
                    self.assertEqual(self.result('verify', self.image), dict(
                        self.result('verify', self.image), notes=[]))

    def test_something_behind_a_truncated_image(self):
        """... does not make it a good one."""
        self.write()
        with open(self.image, 'rb') as f:
            data = f.read()
        at = self.maker.at
        last = data.index(named(DEVICES[-1][0].encode())) - 5
        description = at['description'] - 1
        for size in at['devices'] + 20, last - 9, last, last + 40:
            for behind in (b'x', bytes(9999), data[last:], data[description:],
                           data[description:] + b'x', data[-99:]):
                # The length of a section is not told, so what completes the
                # last one looks good
                if size < last or behind != data[last:]:
                    with self.subTest(f'{size} {behind[:9]}'):
                        os.truncate(self.image, size)
                        self.append(behind)
                        self.assertTrue(self.problems())
                        if not behind.endswith(b'}'):
                            self.assertIn(self.run_tool('info', self.image)[0],
                                          (2, 3))
                self.patch(0, data)

    def test_search_is_bounded(self):
        """Much device state is passed over if the image ends with the file."""
        def limit(name, value):
            return mock.patch.object(sys.modules['mapped_ram_image'], name,
                                     value)
        self.write()
        with limit('DEVICE_STATE_MAX', 100):
            self.assertEqual(len(self.result('verify', self.image)['devices']),
                             len(DEVICES))
        with limit('DESCRIPTION_MAX', 100):
            self.assertTrue(self.problems())
        self.append(b'x')
        with limit('DEVICE_STATE_MAX', 100):
            self.assertTrue(self.problems())
        self.assertEqual(self.problems(code=0), [])

    def test_text_in_device_state(self):
        """The guest may have made it look like a description."""
        self.write()
        self.patch(self.maker.at['devices'] + 25, b'\0\6' + be(4, 3) + b'{"}')
        for behind in b'', b'x':
            self.append(behind)
            self.assertEqual(self.problems(code=0), [])
            found = self.result('info', self.image)
            self.assertEqual(found['description-offset'],
                             self.maker.at['description'] - 1)

    def test_end_mark(self):
        self.write()
        at = self.maker.at['description'] - 1
        self.patch(at, b'\x08')
        self.one_problem(at, 'end mark', 'is 0x8, not 0')

    def test_pages_that_are_holes(self):
        self.maker.blocks[0][2].clear()
        self.write()
        if not self.result('info', self.image)['blocks'][0]['bytes-of-holes']:
            self.skipTest('this file system has no holes')
        self.patch(self.maker.at['bitmap'], b'\x05')
        found = self.result('verify', self.image)
        self.assertEqual(found['blocks'][0]['pages-present-in-holes'], 2)
        self.assertRegex(found['notes'][0], '2 of 2 pages .* are holes')

    def test_truncated(self):
        """The error names the part that is cut off."""
        self.write()
        at = self.maker.at['header']
        os.truncate(self.image, self.maker.at['pages'] + 300 * PAGE - 1)
        self.one_problem(self.maker.at['pages'], 'pages',
                         r'end at \d+, but the file ends at \d+: .*truncated')
        os.truncate(self.image, at + 10)
        self.one_problem(at, 'header', f'the file ends at {at + 10}, before')

    def test_extract_from_what_is_left(self):
        out = self.path('raw')
        args = ('extract', self.image, 'pc.ram', '-o', out, '--force')
        self.write()
        os.truncate(self.image, self.maker.at['pages'] + 7 * PAGE + 99)
        self.patch(self.maker.at['header'] + 4, be(8, 3))
        self.result(*args, code=2)
        _, _, err = self.run_tool(*args, '--unfinished')
        self.assertRegex(err, 'despite this: .*page size')
        self.assertRegex(err, 'despite this: .*truncated')
        memory = self.maker.memory()
        with open(out, 'rb') as f:
            self.assertEqual(f.read(), memory[:7 * PAGE + 99].ljust(
                len(memory), b'\0'))
        self.result('extract', self.image, 'tail', '-o', out, '--force',
                    '--unfinished', code=2)

    def test_ignoring_the_bitmap_on_a_block_device(self):
        """... takes data of before the save for memory."""
        self.write(magic=0)
        def warnings(*options):
            code, _, err = self.run_tool(
                'extract', self.image, 'pc.ram', '--unfinished', '-o',
                self.path('raw'), *options)
            self.assertEqual(code, 0)
            os.unlink(self.path('raw'))
            return err

        self.assertEqual(warnings('--ignore-bitmap'), '')
        with self.on_a_device():
            self.assertEqual(warnings(), '')
            self.assertRegex(warnings('--ignore-bitmap'), '^mapped-ram: '
                             f'warning: {self.image}: is a block device')

    def test_too_many_blocks(self):
        count = tool.Image.__init__.__globals__['BLOCKS_MAX'] + 1
        self.maker.blocks = [(b'%d' % i, 1, {}) for i in range(count)]
        self.write()
        self.assertRegex(self.problems()[0]['cause'], 'more than 4096')

    def test_huge_and_empty(self):
        """A sparse file with a block of 2 TiB needs little time and memory."""
        pages = 1 << 29
        self.maker.blocks = [(b'huge', 1, {0: page_of(1)})]
        self.write(description=False)
        self.patch(self.maker.at['total'], be(8, pages * PAGE | 4))
        header = self.maker.at['header']
        start = -(-(header + 28 + pages // 8) // MIB) * MIB
        self.patch(header - 8, be(8, pages * PAGE))
        self.patch(header + 20, be(8, start))
        try:
            os.truncate(self.image, start + pages * PAGE + 99)
        except OSError as err:
            self.skipTest(f'no file of that size here: {err}')
        found = self.problems()
        self.assertEqual([p['field'] for p in found],
                         ['mark of the section "ram"'])

    def test_no_image(self):
        for name, data, code in (
                ('empty', b'', 3), ('zeroes', bytes(9999), 3),
                ('short', b'QEVM', 1), ('text', b'hello\n' * 99, 1)):
            with self.subTest(name):
                with open(self.image, 'wb') as f:
                    f.write(data)
                self.assertTrue(self.problems(code=code))
        os.mkfifo(self.path('fifo'))
        for path in (self.top, self.path('nix'), self.path('fifo'),
                     '/dev/null', 'a\0b', self.image + ',offset=1Z'):
            with self.subTest(path):
                code, out, err = self.run_tool('info', path)
                self.assertEqual((code, out), (2, ''))
                self.assertRegex(err, r'^mapped-ram: [^\n]+\n\Z')

    def test_failing_disk(self):
        """It says nothing about the image, so no command goes on."""
        extract = ('extract', 'pc.ram', '-o', self.path('raw'))
        commands = (('info',), ('verify',), ('map',), extract,
                    (*extract, '--unfinished'), ('compare', self.image),
                    ('compare', self.image, '--unfinished'))
        for magic in Maker().magic, 0:
            self.write(magic=magic)
            at = self.maker.at
            for where in 'header', 'bitmap', 'end', 'devices':
                for name, *rest in commands:
                    with self.subTest(f'{magic} {where} {name} {rest}'), \
                            self.unreadable(at[where]):
                        found = self.result(name, self.image, *rest, code=2)
                        self.assertEqual(found['error']['cause'],
                                         os.strerror(errno.EIO))
        self.assertEqual(os.listdir(self.top), ['image'])

    def test_plain_stream(self):
        """In an image saved without mapped-ram, the next block is at the
        position of the header."""
        self.write(capabilities=[])
        self.patch(self.maker.at['header'], named(b'pc.rom') + be(8, 5 * PAGE)
                   + bytes(99))
        self.assertRegex(self.problems()[0]['cause'], 'without mapped-ram')

    def test_usage(self):
        for args in ((), ('info',), ('nix', 'x'), ('extract', 'x', 'y'),
                     ('map', '--width', '0', 'x'), ('info', '--word-size',
                                                    '3', 'x')):
            self.assertEqual(self.run_tool(*args)[0], 2)
        code, out, _ = self.run_tool('--help')
        self.assertEqual(code, 0)
        for number in range(4):
            self.assertRegex(out, rf'(?m)^  {number}  ')


class Process(Case):
    """What only a process has: streams, signals and an exit status."""

    COMMANDS = (('info',), ('verify',), ('map',), ('compare',),
                ('extract', 'pc.ram'))
    # Runs the tool, but stops when it has read the first pages
    PAUSED = ('import runpy, sys, time\n'
              'sys.path.insert(0, sys.argv[1])\n'
              'sys.argv[:2] = []\n'
              'import mapped_ram_image\n'
              'def runs(bits):\n'
              '    print("ready", flush=True)\n'
              '    while True:\n'
              '        time.sleep(0.01)\n'
              'mapped_ram_image.runs = runs\n'
              'runpy.run_path(sys.argv[0], run_name="__main__")\n')

    def arguments(self, number):
        command, *rest = self.COMMANDS[number]
        if command == 'extract':
            rest += ['-o', self.path('raw'), '--force']
        elif command == 'compare':
            rest += [self.image]
        return [command, self.image, *rest]

    def process(self, *args, stdout=subprocess.PIPE, **environment):
        """Return exit code, stdout, stderr."""
        done = subprocess.run([sys.executable, TOOL, *args], stdout=stdout,
                              stderr=subprocess.PIPE,
                              env=dict(os.environ, **environment))
        return done.returncode, done.stdout, done.stderr.decode()

    def test_output_that_fails(self):
        """The exit code is no verdict, and there is no traceback."""
        self.write()
        with open('/dev/full', 'w') as full:
            for unbuffered in '', '1':
                for number in range(len(self.COMMANDS)):
                    for more in [], ['--json']:
                        args = self.arguments(number) + more
                        with self.subTest(f'{unbuffered} {args}'):
                            code, _, err = self.process(
                                *args, stdout=full,
                                PYTHONUNBUFFERED=unbuffered)
                            self.assertEqual((code, err), (
                                2, 'mapped-ram: cannot write the output: '
                                f'{os.strerror(errno.ENOSPC)}\n'))

    def test_nobody_reads_the_output(self):
        self.write()
        for unbuffered in '', '1':
            reader, writer = os.pipe()
            os.close(reader)
            with open(writer, 'w') as pipe:
                self.assertEqual(
                    self.process('info', self.image, stdout=pipe,
                                 PYTHONUNBUFFERED=unbuffered),
                    (2, None, ''))

    def test_names_that_cannot_be_printed(self):
        name = '\u4e2d\u00e4'
        self.maker.blocks[0] = (name.encode(), *self.maker.blocks[0][1:])
        self.COMMANDS = (*self.COMMANDS[:-1], ('extract', name))
        self.write()
        for encoding, there in (('latin-1', b'\\u4e2d\xe4'),
                                ('utf-8', name.encode())):
            for number in range(len(self.COMMANDS)):
                args = self.arguments(number)
                with self.subTest(f'{encoding} {args}'):
                    code, out, err = self.process(*args,
                                                  PYTHONIOENCODING=encoding)
                    self.assertEqual((code, err), (0, ''))
                    if args[0] in ('info', 'map', 'extract'):
                        self.assertIn(there, out)

    def test_a_bug(self):
        """... is no verdict about the image, either."""
        self.write()
        code = self.PAUSED.replace('time.sleep(0.01)', 'raise RuntimeError')
        done = subprocess.run([sys.executable, '-c', code, SCRIPTS, TOOL,
                               *self.arguments(4)], capture_output=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn(b'Traceback', done.stderr)

    def stopped(self, *signals, ignored=()):
        """Send signals while the output is being written; return the exit
        status and what is in the directory afterwards."""
        def ignore():
            # These tests may have been started by nohup
            for number in signals:
                signal.signal(number, signal.SIG_IGN if number in ignored
                              else signal.SIG_DFL)
        with subprocess.Popen(
                [sys.executable, '-c', self.PAUSED, SCRIPTS, TOOL,
                 *self.arguments(4)], stdout=subprocess.PIPE,
                preexec_fn=ignore) as process:
            self.addCleanup(process.kill)
            self.assertEqual(process.stdout.readline(), b'ready\n')
            before = len(os.listdir(self.top))
            for number in signals:
                process.send_signal(number)
        self.assertEqual(before, 2)
        return process.returncode, os.listdir(self.top)

    def test_stopped_by_a_signal(self):
        """Nothing as large as RAM remains."""
        self.write()
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            with self.subTest(number):
                self.assertEqual(self.stopped(number),
                                 (128 + number, ['image']))
        self.assertEqual(self.stopped(signal.SIGHUP, signal.SIGTERM,
                                      ignored=[signal.SIGHUP]),
                         (128 + signal.SIGTERM, ['image']))


class Hostile(Case):
    COMMANDS = (('verify',), ('info',), ('map',), ('extract', 'pc.ram'),
                ('compare',))

    def survives(self, number):
        """Run one of the commands and check that it exits with a documented
        code."""
        command, *rest = self.COMMANDS[number % len(self.COMMANDS)]
        args = [command, self.image, *rest]
        if command == 'extract':
            args += ['-o', self.path('raw'), '--force', '--unfinished']
        elif command == 'compare':
            args += [self.good, '--unfinished']
        code, out, err = self.run_tool(*args, *(['--json'] * (number % 2)))
        self.assertIn(code, (0, 1, 2, 3))
        if code == 2:
            self.assertRegex(err, re.escape(f'mapped-ram: {self.image}: '))
        return code

    def make(self):
        self.good = Maker().write(self.path('good'))
        self.write(libvirt=(b'LibvirtQemudSave', 6, '<'), blocks=[
            (b'pc.ram', 300, {p: page_of(p) for p in (0, 1, 299)}),
            (b'b', 5, {})])
        with open(self.image, 'rb') as f:
            self.data = f.read()
        self.head = self.maker.at['bitmap'] + 48
        self.tail = self.maker.at['end'] - 8
        self.described = self.maker.at['description']

    def test_truncated_at_every_length(self):
        self.make()
        size = len(self.data)
        # The tool does not parse libvirt's data, from offset 92 on
        lengths = [*range(99), *range(99, 1100, 99), *range(1100, self.head),
                   *range(self.head, self.tail, 49999),
                   *range(self.tail, size)]
        for length in reversed(lengths):
            os.truncate(self.image, length)
            code, out, err = self.run_tool('verify', self.image)
            # Only the description may be missing as a whole
            want = {0: 3, self.maker.at['magic']: 3,
                    self.described: 0}.get(length, 1)
            self.assertEqual(code, want, f'{length} of {size} bytes: '
                             f'{out}{err}')
            if length % 8 == 0:
                self.survives(length // 8)
        self.assertGreater(len(lengths), 700)

    def test_random_damage(self):
        self.make()
        rng = random.Random(20)
        seen = set()
        places = [*range(16, 36), *range(1109, self.head),
                  *range(self.tail, len(self.data))]
        extra = [self.maker.at[n] for n in ('total', 'header', 'magic')]
        values = [b'\0', b'\xff', b'\x80', b'\x01', bytes(4), b'\xff' * 4,
                  bytes(8), b'\xff' * 8, be(8, 1 << 62), be(8, 4)]
        for number in range(1500):
            undo = []
            for _ in range(rng.choice((1, 1, 1, 2, 5))):
                at = rng.choice(places if rng.random() < .7 else extra)
                data = rng.choice((bytes([rng.randrange(256)]),
                                   rng.choice(values)))
                undo.append(at)
                self.patch(at, data)
            seen.add(self.survives(number))
            for at in undo:
                self.patch(at, self.data[at:at + 8])
            os.truncate(self.image, len(self.data))
        self.assertEqual(seen, {0, 1, 2, 3})

    def test_random_bytes_behind_the_magic_number(self):
        self.good = Maker().write(self.path('good'))
        rng = random.Random(21)
        for number in range(300):
            with open(self.image, 'wb') as f:
                f.write(b'QEVM' + be(4, 3) + rng.randbytes(
                    rng.randrange(3000)))
            self.assertNotEqual(self.survives(number), 0)

    def test_description_that_lies(self):
        """The description may be replaced by arbitrary text."""
        self.write(description=False)
        with open(self.image, 'rb') as f:
            body = f.read()
        for text in (b'{"}', b'{"a": ' + b'[' * 99999 + b'}',
                     b'{"page_size": 99999999, "devices": [}',
                     b'{"page_size": 4096, "devices": ['
                     + b'{"name": "\\q", "instance_id": 0, }',
                     b'{"page_size": 4096, "devices": ['
                     + b'{"name": "x", "instance_id": 0, ' * 5000 + b'}',
                     b'{"page_size": 4096, "devices": [{"name": "'
                     + b'x' * 99999 + b'}',
                     b'{"page_size": 4096, "devices": [{"name": "timer", '
                     b'"instance_id": -99999999999, "vmsd_name": "x", '
                     b'"version": 9999999999}'):
            with self.subTest(text[:70]):
                with open(self.image, 'wb') as f:
                    f.write(body + b'\x06' + be(4, len(text)) + text)
                code, out, err = self.run_tool('verify', self.image)
                self.assertIn(code, (0, 1), out + err)


if __name__ == '__main__':
    unittest.main()
