# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader of mapped-ram images: where what is, to break it on purpose.

An image begins like any migration stream.  In the start section of "ram"
comes, for each RAM block, its name and length as always, and then, big
endian: version (u32, 1), page size (u64), offset of the bitmap (u64), offset
of the pages (u64).  Bitmap and pages follow, the next block is described
right behind them.
"""

import collections
import struct

HEADER = struct.Struct('>IQQQ')

Block = collections.namedtuple(
    'Block', 'name name_at length length_at header_at version page_size '
             'bitmap_offset pages_offset')

# name of the field, where in the header, how to write it
FIELDS = {'version': (0, '>I'), 'page_size': (4, '>Q'),
          'bitmap_offset': (12, '>Q'), 'pages_offset': (20, '>Q')}


def _start(data):
    """Where the section "ram" has its first block, and RAM's total size."""
    at = data.index(b'\x03ram')
    at += 4 + 4 + 4                     # name, instance, version
    return at


def total_at(path, offset=0):
    """Where the image has the size of all RAM blocks together (u64, the low
    bits are flags)."""
    with open(path, 'rb') as f:
        f.seek(offset)
        return offset + _start(f.read(4096))


def blocks(path, offset=0):
    """All RAM blocks of an image that begins at `offset` of the file; all
    positions are positions in the file."""
    found = []
    with open(path, 'rb') as f:
        f.seek(offset)
        at = _start(f.read(4096)) + offset
        f.seek(at)
        left = struct.unpack('>Q', f.read(8))[0] & ~0xfff
        at += 8
        while left > 0:
            f.seek(at)
            size = f.read(1)[0]
            name = f.read(size)
            length = struct.unpack('>Q', f.read(8))[0]
            header_at = f.tell()
            version, page_size, bitmap, pages = HEADER.unpack(
                f.read(HEADER.size))
            found.append(Block(name, at, length, header_at - 8, header_at,
                               version, page_size, bitmap, pages))
            left -= length
            at = pages + length
    return found
