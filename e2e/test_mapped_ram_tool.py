# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/mapped-ram.py with images saved by real emulators: its reports, and
the memory that it extracts, are correct."""

import hashlib
import os
import shutil
import struct

from lab import image
from lab.vm import MACHINE, Mode

from .checks import case
from .harness import test

MIB = 1 << 20
RAM = 32
# RAM below this address is in pc.ram; ROMs cover the next part
LOW = 0xa0000


def present(t):
    """Returns the names of the available emulators."""
    return [who for who in ('ours', 'other', 'stock')
            if getattr(t.config, who)]


def saved(t, who, mode, live, offset=0, header=b''):
    """Saves a guest; returns the image and a file with the guest's RAM."""
    vm = t.source(emulator=getattr(t.config, who), ram=RAM,
                  guest={'dirty': 16})
    if not live:
        vm.command('stop')
    path, memory = t.path('image'), t.path('memory')
    with open(path, 'wb') as f:
        f.write(header)
    vm.save(f'file:{path},offset={offset}' if offset else f'file:{path}',
            mode)
    vm.command('pmemsave', {'val': 0, 'size': RAM * MIB, 'filename': memory})
    vm.kill()
    return path, memory


def without_roms(path):
    """Returns the digest of guest RAM, except the part covered by ROMs."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        digest.update(f.read(LOW))
        f.seek(MIB)
        while chunk := f.read(MIB):
            digest.update(chunk)
    return digest.hexdigest()


def check_good(t, spec, memory):
    """Checks that the tool reports no error and extracts the right memory."""
    code, found = image.tool('verify', spec)
    assert code == 0 and not found['problems'] and not found['notes'], found
    assert found['machine'] == MACHINE, found['machine']
    assert len(found['devices']) > 20, 'device state was not understood'
    ram = next(b for b in found['blocks'] if b['name'] == 'pc.ram')
    assert ram['length'] == RAM * MIB and ram['pages-present'], ram
    raw = t.path('raw')
    code, found = image.tool('extract', spec, 'pc.ram', '-o', raw)
    assert code == 0, found
    assert without_roms(raw) == without_roms(memory), \
        'other memory was extracted than the guest had'
    assert os.stat(raw).st_blocks * 512 < RAM * MIB, 'not a sparse file'
    code, found = image.tool('extract', spec, 'pc.ram', '-o', raw)
    assert code == 2 and 'exists' in found['error']['cause'], found
    os.unlink(raw)


@test('tool: images by ours and stock, paused and live, at an offset',
      quick=True, timeout=200)
def test_real_images(t):
    for who in present(t):
        for mode, live, offset in ((Mode(0), False, 0),
                                   (Mode(4, True), True, 0x180200)):
            path, memory = saved(t, who, mode, live, offset)
            spec = f'{path},offset={offset}' if offset else path
            with case(f'saved by {who}', mode):
                check_good(t, spec, memory)


@test('tool: compares images, and finds the one byte that differs',
      quick=True)
def test_compare(t):
    path, _ = saved(t, 'ours', Mode(2), False)
    other = t.path('other')
    shutil.copy(path, other)
    code, found = image.tool('compare', path, other)
    assert code == 0 and found['same'], found
    with image.Image(other) as parsed:
        ram = next(b for b in parsed.blocks if b.name == b'pc.ram')
    page = 0x300                    # in the part that has no zero pages
    with open(other, 'r+b') as f:
        f.seek(ram.pages_offset + page * 4096 + 100)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 1]))
    code, found = image.tool('compare', path, other)
    assert code == 1 and found['differences'] == [{
        'block': 'pc.ram', 'page': page, 'address': page * 4096 + 100,
        'byte': 100, 'values': [byte, byte ^ 1]}], found


@test('tool: what is saved, restored and saved again is the same',
      quick=True)
def test_saved_again(t):
    """... with any emulator, as long as the guest remains stopped."""
    path, _ = saved(t, 'ours', Mode(4, True), False)
    for who in present(t):
        again = t.path('again')
        dst = t.vm(incoming=True, emulator=getattr(t.config, who), ram=RAM,
                   guest={'dirty': 16})
        dst.load(f'file:{path}', Mode(2))
        dst.save(f'file:{again}', Mode(1))
        dst.kill()
        code, found = image.tool('compare', path, again)
        assert code == 0 and found['same'], f'{who}: {found}'


@test("tool: an image behind a header as libvirt's", quick=True)
def test_libvirt_header(t):
    xml = b'<domain/>\0<cookie/>\0'.ljust(66000, b'\0')
    header = b'LibvirtQemudSave' + struct.pack(
        '<5I', 2, len(xml), 1, 6, 10) + bytes(56) + xml
    path, memory = saved(t, 'ours', Mode(2, True), False, len(header),
                         header)
    check_good(t, path, memory)
    with open(path, 'r+b') as f:
        f.seek(12)
        f.write(b'Part')
    code, found = image.tool('verify', path)
    assert code == 3 and 'incomplete' in found['unfinished-because'], found


@test('tool: an image on a block device, where an older one was',
      quick=True)
def test_block_device(t):
    device = t.loop(t.path('disk'), 64 * MIB)
    vm = t.source(ram=RAM)
    memory = t.path('memory')
    vm.save(f'file:{device}', Mode(2, True))
    vm.command('cont')
    vm.ticks_on()
    vm.save(f'file:{device}', Mode(2, True))
    vm.command('pmemsave', {'val': 0, 'size': RAM * MIB, 'filename': memory})
    vm.kill()
    check_good(t, device, memory)


@test('tool: says of what a killed save leaves that it is unfinished',
      quick=True)
def test_unfinished(t):
    path = t.path('image')
    vm = t.source(ram=RAM, guest={'dirty': 256})
    vm.setup(Mode(2), max_bandwidth=1 * MIB)
    vm.start_save(f'file:{path}')
    vm.wait_until(lambda: vm.written() >= 100000)
    vm.process.kill()
    vm.process.wait()
    code, found = image.tool('verify', path)
    assert code == 3 and not found['finished'], found
    code, found = image.tool('extract', path, 'pc.ram', '-o', t.path('raw'))
    assert code == 3 and not os.path.exists(t.path('raw')), found
    code, found = image.tool('extract', path, 'pc.ram', '-o', t.path('raw'),
                             '--unfinished', '--ignore-bitmap')
    assert code == 0 and found['bytes-written'] > 0, found
    vm = t.source(ram=RAM)
    vm.setup(Mode(2), max_bandwidth=1 * MIB)
    vm.start_save(f'file:{path}')
    vm.command('migrate_cancel')
    vm.wait_migration()
    code, found = image.tool('info', path)
    assert code == 3, found
