# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that are damaged, foreign, or do not fit: QEMU either refuses them
with a clear error or restores exactly what was saved."""

import contextlib
import os
import random
import struct

from lab import image
from lab.vm import Crashed, Mode

from .checks import case
from .harness import test

MIB = 1 << 20
RAM = 24
LOADS = [Mode(0), Mode(4, True)]


class Checker:
    """Restores many variants of one image and collects failures."""

    def __init__(self, t, path, offset=0):
        self.t = t
        self.path = path
        self.uri = f'file:{path}' + (f',offset={offset}' if offset else '')
        self.wrong = []
        self.refused = self.right = 0
        vm = t.source(ram=RAM)
        vm.save(self.uri, Mode(4))
        self.want = vm.ram_hash()
        vm.kill()

    def check(self, what, mode, must_fail=False, ram=RAM, timeout=30,
              must_work=False):
        """Restores the file in its current state."""
        dst = self.t.vm(incoming=True, ram=ram)
        try:
            said = dst.try_load(self.uri, mode, timeout=timeout)
            if said is None:
                if must_fail:
                    raise AssertionError('restored')
                if dst.ram_hash() != self.want:
                    raise AssertionError('restored wrong RAM')
                self.right += 1
            else:
                self.refused += 1
                if must_work:
                    raise AssertionError(f'refused: "{said}"')
                if self.path not in said:
                    raise AssertionError(f'the error does not name the '
                                         f'file: "{said}"')
        except Exception as err:
            self.wrong.append(f'{what} ({mode}): {err}')
        finally:
            dst.kill()
            for path in (dst.serial_path, dst.stderr_path):
                os.unlink(path)

    def done(self):
        self.t.note(f'{self.refused} refused, {self.right} restored, '
                    f'{len(self.wrong)} wrong')
        for line in self.wrong[:40]:
            self.t.note('  ' + line)
        if self.wrong:
            raise AssertionError(f'{len(self.wrong)} cases, the first: '
                                 f'{self.wrong[0]}')


@contextlib.contextmanager
def patched(path, *patches):
    """Temporarily changes some bytes of the file."""
    undo = []
    with open(path, 'r+b') as f:
        for at, data in patches:
            f.seek(at)
            undo.append((at, f.read(len(data))))
            f.seek(at)
            f.write(data)
    try:
        yield
    finally:
        with open(path, 'r+b') as f:
            for at, data in reversed(undo):
                f.seek(at)
                f.write(data)


@test('images: truncated, at every boundary and at random', quick=True,
      timeout=400)
def test_truncated(t):
    checker = Checker(t, t.path('image'))
    path = checker.path
    size = os.path.getsize(path)
    lengths = {0, 1, 3, 4, 8, 100, size - 1, size - 2, size - 8, size - 4096}
    blocks = image.blocks(path)
    for block in blocks:
        edges = [block.name_at, block.header_at,
                 block.header_at + image.HEADER.size, block.bitmap_offset,
                 block.pages_offset, block.pages_offset + block.length]
        if block.name == b'pc.ram':
            edges.append(block.pages_offset + block.length // 2)
        for edge in edges if block in blocks[:2] else edges[-2:]:
            lengths |= {edge - 1, edge, edge + 1}
    rng = random.Random(2)
    tail = blocks[-1].pages_offset + blocks[-1].length
    # What describes the devices follows their state, and is not needed
    with image.Image(path) as found:
        enough = found.description_at + 1
    lengths |= set(range(enough - 2, enough + 8))
    for _ in range(6 if t.config.quick else 40):
        lengths.add(rng.randrange(size))
        lengths.add(rng.randrange(tail, size))
    lengths = sorted((n for n in lengths if 0 <= n < size), reverse=True)
    if t.config.quick:
        lengths = lengths[::3]
    for i, length in enumerate(lengths):
        os.truncate(path, length)
        checker.check(f'{length} of {size} bytes', LOADS[i % 2],
                      must_fail=length < enough, must_work=length >= enough)
    checker.done()


def u64(value):
    return struct.pack('>Q', value % (1 << 64))


def bad_headers(path, blocks, block):
    """Yields (description, whether it must be refused, patch)."""
    size = os.path.getsize(path)
    at = block.header_at

    def field(name, *values):
        where, form = image.FIELDS[name]
        for value in values:
            value %= 1 << (8 * struct.calcsize(form))
            yield (f'{name} {value:#x}', True,
                   (at + where, struct.pack(form, value)))
    yield from field('version', 0, 2, 0x01000000, -1)
    yield from field('page_size', 0, 1, 511, 512, 2048, 4097, 8192, 65536,
                     1 << 20, 1 << 32, 1 << 52, 1 << 63, -4096, -1)
    right = block.bitmap_offset
    yield from field('bitmap_offset', 0, 1, at, right + 8, right - 8,
                     right + 4096, block.pages_offset, block.pages_offset - 1,
                     size, size - 1, size + 4096, 1 << 40, 1 << 63, -8, -1,
                     *(b.bitmap_offset for b in blocks if b is not block))
    right = block.pages_offset
    yield from field('pages_offset', 0, 1, at, right + 1, right + 512,
                     right + 4096, right - 4096, right + MIB, right - MIB,
                     size, size + MIB, 1 << 40, 1 << 62, (1 << 63) - MIB,
                     1 << 63, -MIB, -4096, -1)
    # This header follows itself, an endless loop
    yield ('a header that comes after itself', True,
           (at + image.FIELDS['pages_offset'][0],
            u64(block.name_at - block.length)))
    for value in (0, 1, 4095, 4096, block.length - 4096, block.length + 1,
                  block.length + 4096, 2 * block.length, 1 << 31, 1 << 40,
                  1 << 62, 1 << 63, -4096, -1):
        yield (f'length {value % (1 << 64):#x}', True,
               (block.length_at, u64(value)))
    name = block.name
    yield 'no name', True, (block.name_at, b'\0')
    yield 'name too long', True, (block.name_at, b'\xff')
    yield 'another name', True, (block.name_at + 1, b'X' * len(name))
    yield 'name of zeros', True, (block.name_at + 1, b'\0' * len(name))
    yield ('name that is no text', True,
           (block.name_at + 1, b'\xff%n\x80' + name[4:]))


@test('images: every header field wrong in every way', quick=True,
      timeout=400)
def test_headers(t):
    checker = Checker(t, t.path('image'))
    blocks = image.blocks(checker.path)
    ram = next(b for b in blocks if b.name == b'pc.ram')
    rom = next(b for b in blocks if b.name == b'pc.bios')
    cases = [(f'{block.name.decode()}: {what}', must, patch)
             for block in ((ram,) if t.config.quick else (ram, rom))
             for what, must, patch in bad_headers(checker.path, blocks,
                                                  block)]
    if t.config.quick:
        cases = cases[::2]
    for i, (what, must, patch) in enumerate(cases):
        with patched(checker.path, patch):
            checker.check(what, LOADS[i % 2], must)
    checker.check('nothing is wrong', Mode(4, True), must_work=True)
    checker.done()


@test('images: a RAM block is in the image twice', quick=True)
def test_twice(t):
    path = t.path('image')
    args = ['-m', 'slots=2,maxmem=1G']
    for i in range(2):
        args += ['-object', f'memory-backend-ram,id=mem{i},size=128M',
                 '-device', f'pc-dimm,id=dimm{i},memdev=mem{i}']
    t.saved(path, Mode(2, True), args=args)
    one, two = (block for block in image.blocks(path)
                if block.name.startswith(b'mem'))
    with patched(path, (two.name_at + 1, one.name)):
        for instant in (False, True):
            vm = t.vm(incoming=True, args=args)
            if instant:
                vm.set_capabilities('mapped-ram', 'postcopy-ram')
            error = vm.try_load(f'file:{path}', Mode(2, True))
            assert error and 'twice' in error, error
            vm.kill()


def one_field(name, stock, patch):
    """Registers a test that an image with one wrong field is refused.  `patch`
    takes the image's blocks and RAM's block, and returns (offset, bytes)."""
    def function(t):
        checker = Checker(t, t.path('image'))
        blocks = image.blocks(checker.path)
        ram = next(b for b in blocks if b.name == b'pc.ram')
        with patched(checker.path, patch(blocks, ram)):
            checker.check(name, Mode(0), must_fail=True, timeout=10)
        checker.done()
    test(f'images: {name}', stock=stock)(function)


def field_patch(name, value):
    """Returns a function, for one_field(), that sets a field of RAM's header
    to `value(blocks, ram)`."""
    at, form = image.FIELDS[name]

    def patch(blocks, ram):
        data = struct.pack(form, value(blocks, ram) % (1 << 64))
        return ram.header_at + at, data
    return patch


# Fields that stock QEMU does not check; test_headers has many more for ours
one_field('page_size 0', 'SIGFPE',
          field_patch('page_size', lambda blocks, ram: 0))
one_field('page_size of 64 KiB', 'restored',
          field_patch('page_size', lambda blocks, ram: 65536))
one_field('the bitmap of another block', 'restored|SIG',
          field_patch('bitmap_offset',
                      lambda blocks, ram: blocks[1].bitmap_offset))


@test('images: a header that comes after itself', stock='does not answer')
def test_loop(t):
    """The pages end at the name of their block.  Since pages are aligned, the
    image's offset must be such that the name is aligned, too."""
    probe = Checker(t, t.path('probe'))
    ram = image.blocks(probe.path)[0]
    offset = ((ram.length + 2 * MIB) & -MIB) - ram.name_at
    checker = Checker(t, t.path('image'), offset)
    ram = image.blocks(checker.path, offset)[0]
    assert ram.name_at % MIB == 0
    at = ram.header_at + image.FIELDS['pages_offset'][0]
    with patched(checker.path, (at, u64(ram.name_at - ram.length))):
        checker.check('loop', Mode(0), must_fail=True, timeout=10)
    checker.done()


@test('images: total size and bitmaps wrong', quick=True, timeout=200)
def test_totals(t):
    checker = Checker(t, t.path('image'))
    path = checker.path
    at = image.total_at(path)
    with open(path, 'rb') as f:
        f.seek(at)
        total = struct.unpack('>Q', f.read(8))[0]
    for value in (0, 4, 4096 | 4, total - 4096, total + 4096, total * 2,
                  (1 << 62) | 4, (1 << 63) | 4, total & ~4, -4096 | 4):
        with patched(path, (at, u64(value))):
            for mode in LOADS:
                checker.check(f'total {value % (1 << 64):#x}', mode, True)
    # All bits set: pages that are holes in the file are read as zeros
    for block in image.blocks(path):
        pages = block.length // 4096
        with patched(path, (block.bitmap_offset, b'\xff' * (pages // 8))):
            for mode in LOADS:
                checker.check(f'{block.name.decode()}: all bits set', mode,
                              must_work=True)
    checker.done()


def is_assertion(err):
    """Returns whether QEMU died of an assertion outside of migration/."""
    return isinstance(err, Crashed) and 'SIGABRT' in str(err) and \
        'Assertion' in str(err) and 'migration/' not in str(err)


@test('images: random bytes changed in headers and device state')
def test_fuzz(t):
    """No damage causes a crash or a hang, except that the base's own code
    fails assertions on some states of devices.  Device state has no checksum,
    so QEMU may accept damaged state."""
    path = t.path('image')
    checker = Checker(t, path)
    blocks = image.blocks(path)
    size = os.path.getsize(path)
    tail = blocks[-1].pages_offset + blocks[-1].length
    rng = random.Random(3)
    for i in range(60):
        block = rng.choice(blocks)
        at = rng.choice((rng.randrange(tail, size), rng.randrange(0, 200),
                         rng.randrange(block.name_at, block.bitmap_offset)))
        with patched(path, (at, bytes([rng.randrange(256)]))):
            dst = t.vm(incoming=True, ram=RAM)
            try:
                if dst.try_load(f'file:{path}', LOADS[i % 2], timeout=30):
                    checker.refused += 1
                else:
                    checker.right += 1
            except Exception as err:
                if at >= tail and is_assertion(err):
                    t.note(f'byte {at}: {err}')
                else:
                    checker.wrong.append(f'byte {at}: {err}')
            dst.kill()
    checker.done()


@test('images: from a machine with another size of RAM', quick=True)
def test_other_ram_size(t):
    checker = Checker(t, t.path('image'))
    for ram in (16, 20, 32, 48):
        for mode in (Mode(0), Mode(4), Mode(4, True)):
            checker.check(f'{RAM} MiB restored into {ram} MiB', mode, True,
                          ram)
    checker.done()


@test('images: not an image at all', quick=True)
def test_not_an_image(t):
    checker = Checker(t, t.path('image'))
    for name, data in (('empty', b''), ('text', b'hello\n' * 100000),
                       ('zeros', bytes(3 * MIB)),
                       ('random', os.urandom(3 * MIB))):
        with open(checker.path, 'wb') as f:
            f.write(data)
        for mode in LOADS:
            checker.check(name, mode, True)
    checker.done()


@test('images: mapped-ram and a plain stream are told apart', quick=True)
def test_plain_stream(t):
    """A file saved without mapped-ram cannot be restored with it, and vice
    versa."""
    path = t.path('image')
    capabilities = ('mapped-ram', 'multifd')
    for mapped_save in (False, True):
        for mode in LOADS:
            src = t.source(ram=RAM)
            src.setup(mode)
            if not mapped_save:
                src.command('migrate-set-parameters', {'direct-io': False})
                src.set_capabilities(*capabilities, state=False)
            src.save(f'file:{path}')
            src.kill()
            dst = t.vm(incoming=True, ram=RAM)
            dst.setup(mode)
            if mapped_save:
                dst.command('migrate-set-parameters', {'direct-io': False})
                dst.set_capabilities(*capabilities, state=False)
            said = dst.try_load(f'file:{path}', timeout=30)
            assert said, 'restored without an error'
            assert 'mapped-ram' in said, f'"{said}" does not say mapped-ram'
            dst.kill()
            os.unlink(path)


@test('images: destination RAM with old content', quick=True,
      stock='restored RAM is not what was saved')
def test_old_content(t):
    """Pages that are zero in the image are zero after the restore."""
    size = 64
    src_ram, dst_ram = t.path('src.mem'), t.path('dst.mem')

    def backend(path):
        return ['-object', f'memory-backend-file,id=mem,size={size}M,'
                           f'mem-path={path},share=on',
                '-machine', 'memory-backend=mem']
    src = t.source(ram=size, args=backend(src_ram))
    uri = f'file:{t.path("image")}'
    for save_mode in (Mode(0), Mode(4)):
        src.save(uri, save_mode)
        want = src.ram_hash()
        for mode in (Mode(0), Mode(1), Mode(4), Mode(4, True)):
            with open(dst_ram, 'wb') as f:
                f.write(os.urandom(MIB) * size)
            with case(mode):
                t.restores(uri, want, mode, ram=size,
                           args=backend(dst_ram)).kill()
        src.command('cont')
