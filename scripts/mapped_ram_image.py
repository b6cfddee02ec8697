# The contents of mapped-ram migration files
#
# SPDX-License-Identifier: GPL-2.0-or-later

"""Reads files that QEMU, or libvirt with save_image_format = "sparse", has
saved a guest to with the capability mapped-ram.

A migration stream begins with a magic number and, from most machine types,
its configuration.  The setup of the section "ram" has the size of all RAM,
and for each RAM block its name, its length, a header of 28 bytes, a bitmap of
the pages that are in the file, and, from the next multiple of 1 MiB of the
file, the pages.  The next block is described right behind them.  Behind the
last block the stream goes on: device state and, from most machine types, a
description of it in JSON.  Numbers of the stream are big-endian; bitmaps are
whole words of the host that saved them.

No byte of a file is trusted: whatever it holds, there is a result or an error
that tells what is wrong where.
"""

import array
import errno
import itertools
import json
import os
import re
import stat
import struct

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# The stream
MAGIC, STREAM_VERSION = 0x5145564d, 3
EOF, START, PART, END, FULL, SUBSECTION, DESCRIPTION, CONFIGURATION = range(8)
FOOTER = 0x7e
RAM_START = re.compile(rb'\x01.{4}\x03ram\0\0\0\0\0\0\0\x04', re.S)
DESCRIPTION_START = re.compile(rb'\x06(.{4})\{"', re.S)
DEVICES_START = re.compile(rb'"page_size": (\d{1,8}), "devices": \[')
DEVICE = re.compile(rb'\{"name": ("(?:[^"\\]|\\.){1,1000}"), '
                    rb'"instance_id": (-?\d{1,12}), '
                    rb'(?:"vmsd_name": "[^"]{1,400}", "version": (\d{1,10}))?')
FLAG_MEM_SIZE, FLAG_EOS, FLAG_MULTIFD_FLUSH = 0x04, 0x10, 0x200

# The header of a block: version, page size, where bitmap and pages are
HEADER = struct.Struct('>IQQQ')
FIELDS = {'version': (0, '>I'), 'page_size': (4, '>Q'),
          'bitmap_offset': (12, '>Q'), 'pages_offset': (20, '>Q')}
HEADER_VERSION = 1
PAGES_ALIGN = MIB
PAGE_SIZES = [1 << n for n in range(8, 17)]     # of any target that QEMU has

# libvirt: magic, then version, length of the data behind the header, whether
# the guest ran, format, where the cookie is, and 14 unused numbers; in the
# byte order of the host that saved
LIBVIRT_SIZE = 92
LIBVIRT_DONE, LIBVIRT_PARTIAL = b'LibvirtQemudSave', b'LibvirtQemudPart'
LIBVIRT_FORMATS = ('raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse')
LIBVIRT_VERSION_MAX = 3
# If only the mark is missing; otherwise the disks no longer match the image
LIBVIRT_RESUMES = 'restore it only if the guest has not run since: libvirt ' \
    'resumes a guest whose save fails or is aborted, or if libvirtd is ' \
    'restarted meanwhile; after a crash of the host or of QEMU it does not'

FILE_MAX = (1 << 63) - 1        # offsets are signed

# What is more than any guest has is not believed
BLOCKS_MAX = 4096
NAME_MAX = 4096
CAPABILITIES_MAX = 256
SEARCH_MAX = MIB                # for RAM behind the configuration
DESCRIPTION_MAX = 64 * MIB
DESCRIPTIONS_MAX = 4            # texts that look like one
DEVICE_STATE_MAX = GIB          # where the description is looked for

MATCH_MAX = 2 * KIB             # of what is searched for
DEVICES_MAX = 65536

# Bitmaps are read in pieces, pages in groups of as many as 32 bytes of bitmap
# have bits
PIECE = MIB
GROUP_PAGES = 256
GROUP_BYTES = GROUP_PAGES // 8
NO_PAGES, ALL_PAGES = bytes(GROUP_BYTES), b'\xff' * GROUP_BYTES
NOT_ZERO = re.compile(rb'[^\0]')


class ImageError(Exception):
    """What is wrong with an image: names the file, and where known the
    offset in the file and the field."""

    def __init__(self, path, cause, offset=None, field=None,
                 unfinished=False):
        self.path, self.cause = path, cause
        self.offset, self.field = offset, field
        self.unfinished = unfinished
        parts = [printable(path)]
        if offset is not None:
            parts.append(f'offset {offset}')
        if field:
            parts.append(field)
        super().__init__(': '.join(parts + [cause]))

    def as_dict(self):
        return {'file': printable(self.path), 'offset': self.offset,
                'field': self.field, 'cause': self.cause}


class ReadError(ImageError):
    """The system could not read the file, which says nothing about what is
    in it."""


class TruncatedError(ImageError):
    """The file ends where the image should go on."""


def printable(text):
    """Something from a file or command line that is safe on a terminal."""
    if isinstance(text, bytes):
        text = text.decode('utf-8', 'backslashreplace')
    return ''.join(c if c.isprintable() else
                   c.encode('unicode_escape', 'backslashreplace').decode()
                   for c in text.encode('utf-8', 'backslashreplace').decode())


def round_up(number, unit):
    return -(-number // unit) * unit


class Input:
    """A file that is read at offsets, and whose size does not change."""

    def __init__(self, path):
        self.path = path
        try:
            # Opening a FIFO must not wait for a writer
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as err:
            raise ImageError(path, getattr(err, 'strerror', None)
                             or str(err)) from None
        try:
            self.stat = os.fstat(self.fd)
            mode = self.stat.st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise ImageError(path, 'is neither a regular file nor a '
                                 'block device')
            self.regular = stat.S_ISREG(mode)
            self.size = os.lseek(self.fd, 0, os.SEEK_END)
        except OSError as err:
            self.close()
            raise ImageError(path, err.strerror) from None
        except ImageError:
            self.close()
            raise

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def read(self, offset, size, field):
        """Exactly `size` bytes; the caller sees to it that these are few."""
        if not 0 <= offset <= self.size - size:
            raise TruncatedError(self.path, f'the file ends at {self.size}, '
                                 f'before the {size} bytes that belong here',
                                 offset, field)
        parts, at = [], offset
        while at < offset + size:
            try:
                part = os.pread(self.fd, offset + size - at, at)
            except OSError as err:
                raise ReadError(self.path, err.strerror, at, field) from None
            if not part:
                raise ImageError(self.path, 'the file has become shorter '
                                 'while it was read', at, field)
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b''.join(parts)

    def extents(self, start, end):
        """(from, to) for each part of a range that is not a hole."""
        at = start
        end = min(end, self.size)
        while at < end:
            try:
                data = os.lseek(self.fd, at, os.SEEK_DATA)
                hole = os.lseek(self.fd, data, os.SEEK_HOLE)
            except OSError as err:
                if err.errno == errno.ENXIO:
                    return
                data, hole = at, end            # nobody knows, so all is data
            if data >= end:
                return
            # Guard against a file system that would make this endless
            hole = max(hole, data + 1)
            yield max(data, start), min(hole, end)
            at = hole

    def search(self, pattern, start, end):
        """Matches of a short pattern in what is not a hole."""
        seen = -1
        end = min(end, self.size)
        for first, last in self.extents(start, end):
            at = max(start, first - MATCH_MAX)
            piece = 8 * MATCH_MAX
            while at < last:
                size = min(piece, end - at)
                # What begins too near to the end is found in the next piece
                limit = at + size - MATCH_MAX if at + size < last else last
                for match in pattern.finditer(self.read(at, size, None)):
                    found = at + match.start()
                    if seen < found < limit:
                        seen = found
                        yield found, match
                at = limit
                piece = min(2 * piece, PIECE)


class Cursor:
    """Reads numbers and names one after the other."""

    def __init__(self, file, at):
        self.file, self.at = file, at
        self._window, self._start = b'', 0

    def take(self, size, field):
        skip = self.at - self._start
        if not 0 <= skip <= len(self._window) - size:
            ahead = max(size, min(64 * KIB, self.file.size - self.at))
            self._window = self.file.read(self.at, ahead, field) \
                if self.at + ahead <= self.file.size \
                else self.file.read(self.at, size, field)
            self._start, skip = self.at, 0
        self.at += size
        return self._window[skip:skip + size]

    def number(self, size, field):
        return int.from_bytes(self.take(size, field), 'big')

    def name(self, field):
        return self.take(self.number(1, field), field)

    def peek(self):
        """The next byte, or None at the end of the file."""
        if self.at >= self.file.size:
            return None
        byte = self.number(1, 'stream')
        self.at -= 1
        return byte


class Block:
    """One RAM block: the name is bytes, all else are numbers of bytes or
    offsets in the file; `name_at`, `length_at` and `header_at` tell where
    these stand.  A block that is left out is shared memory, which stays in
    its own file (x-ignore-shared)."""

    def __init__(self, name_at, name, length_at, length):
        self.name_at, self.name = name_at, name
        self.length_at, self.length = length_at, length
        self.header_at = length_at + 8
        self.left_out = False
        self.version = self.page_size = 0
        self.bitmap_offset = self.pages_offset = 0
        self.bitmap_size = 0

    @property
    def pages(self):
        return self.length // self.page_size

    @property
    def end(self):
        return self.pages_offset + self.length

    @property
    def label(self):
        return printable(self.name)


class Image:
    """A mapped-ram image, parsed.

    spec        the file, as on the command line
    collect     do not raise the first error in a field, but go on as long as
                possible, and have all errors in `problems`
    big_endian  whether the host that saved the image was that
    word        its size of an unsigned long
    """

    def __init__(self, spec, collect=False, big_endian=False, word=8):
        self.path, self.offset = split_spec(spec)
        self.collect, self.big_endian, self.word = collect, big_endian, word
        self.problems, self.notes = [], []
        self.libvirt = self.unfinished = None
        self.interrupted = False        # QEMU did not write all of it
        self.machine = self.page_bits = self.uuid = None
        self.capabilities = []
        self.blocks = []
        self.left_out = []
        self.total = self.total_at = 0
        self.configuration_end = self.ram_at = self.state_at = 0
        self.section = 0
        self.footers = False
        self.description_at = self.description_page_size = None
        self.devices = []
        self.file = Input(self.path)
        try:
            self._parse()
        except ImageError as err:
            if not collect or isinstance(err, ReadError):
                self.close()
                raise
            self.problems.append(err)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    @property
    def ignores_shared(self):
        """Whether RAM that is shared memory is not in the image."""
        return 'x-ignore-shared' in self.capabilities

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.file.close()

    def error(self, cause, offset=None, field=None, unfinished=False):
        return ImageError(self.path, cause, offset, field, unfinished)

    def _bad(self, cause, offset, field):
        """Something is wrong that can be passed over."""
        problem = self.error(cause, offset, field)
        if not self.collect:
            raise problem
        self.problems.append(problem)

    # The beginning

    def _parse(self):
        self._libvirt_header()
        cursor = Cursor(self.file, self.offset)
        self._stream_header(cursor)
        if self.unfinished and not self.interrupted:
            self.notes.append(LIBVIRT_RESUMES)
        self._configuration(cursor)
        self.configuration_end = cursor.at
        self._find_ram(cursor)
        self._ram_blocks(cursor)
        try:
            self._ram_rest(cursor)
            self.state_at = cursor.at
            self._find_description()
            self._check_end()
        except ImageError as err:
            # RAM is complete so far as the stream tells
            self.state_at = self.state_at or cursor.at
            self._wrong_behind_ram(err)

    def _wrong_behind_ram(self, err):
        """If what follows RAM is not written yet, or truncated, RAM can
        nevertheless be looked at."""
        if isinstance(err, ReadError):
            raise err
        if self.interrupted:
            return
        if self.collect or not isinstance(err, TruncatedError):
            raise err
        before = f'{self.unfinished}; ' if self.unfinished else ''
        self.unfinished = f'{before}what follows RAM is incomplete: ' \
            f'offset {err.offset}: {err.field}: {err.cause}'

    def _libvirt_header(self):
        at = self.offset
        if self.file.size - at < LIBVIRT_SIZE:
            return
        data = self.file.read(at, LIBVIRT_SIZE, 'libvirt header')
        if data[:16] not in (LIBVIRT_DONE, LIBVIRT_PARTIAL):
            return
        for order in ('<5I', '>5I'):
            version, length, ran, form, cookie = struct.unpack_from(
                order, data, 16)
            if 0 < version <= LIBVIRT_VERSION_MAX:
                break
        else:
            raise self.error(f'has {data[16:20].hex()}, and this tool knows '
                             f'versions 1 to {LIBVIRT_VERSION_MAX}', at + 16,
                             "version of libvirt's header")
        if not 0 < length <= self.file.size - at - LIBVIRT_SIZE:
            raise self.error(f'is {length}, which is not within the file',
                             at + 20, "data length of libvirt's header")
        if cookie > length:
            self._bad(f'is {cookie}, behind the data of {length} bytes',
                      at + 32, "cookie offset of libvirt's header")
        if form >= len(LIBVIRT_FORMATS):
            raise self.error(f'is {form}, which this tool does not know',
                             at + 28, "format of libvirt's header")
        name = LIBVIRT_FORMATS[form]
        self.libvirt = {'offset': at, 'version': version,
                        'data-length': length, 'running': bool(ran),
                        'format': name}
        if name != 'sparse':
            raise self.error(f'libvirt has saved in the format {name}, which '
                             'is not mapped-ram; that is the format sparse '
                             '(save_image_format in qemu.conf, or --image-'
                             'format)', at + 28, "format of libvirt's header")
        if data[:16] == LIBVIRT_PARTIAL:
            self.unfinished = 'libvirt has marked it as incomplete'
        self.offset = at + LIBVIRT_SIZE + length

    def _stream_header(self, cursor):
        at = self.offset
        if at >= self.file.size:
            raise self.error(
                f'the file has {self.file.size} bytes, so nothing is here; '
                'that is what a failed or cancelled save leaves', at,
                unfinished=True)
        magic = cursor.number(4, 'magic number')
        version = cursor.number(4, 'version of the stream')
        if magic == version == 0:
            raise self.error('zeroes where an image begins: nothing was saved '
                             'here, or the save failed or was cancelled', at,
                             'magic number', unfinished=True)
        if magic == 0:
            self.interrupted = True
            self.unfinished = 'its magic number is zero, which is written ' \
                'last: the save runs, or it ended with QEMU or the host'
        elif magic != MAGIC:
            raise self.error(
                f'is {magic:#010x}, not {MAGIC:#010x}: no migration stream '
                'begins here (is there a header? say ,offset=N)', at,
                'magic number')
        if version != STREAM_VERSION:
            raise self.error(f'is {version}, not {STREAM_VERSION}', at + 4,
                             'version of the stream')

    def _configuration(self, cursor):
        if cursor.peek() != CONFIGURATION:
            return
        cursor.at += 1
        field = 'machine type'
        at = cursor.at
        size = cursor.number(4, field)
        if size > NAME_MAX:
            raise self.error(f'has {size} bytes, more than {NAME_MAX}', at,
                             field)
        self.machine = printable(cursor.take(size, field))
        while cursor.peek() == SUBSECTION:
            start = cursor.at
            cursor.at += 1
            name = cursor.name('name of a subsection')
            cursor.at += 4                  # its version
            if not self._subsection(cursor, name):
                cursor.at = start
                self.notes.append('the configuration has a part that this '
                                  f'tool does not know: {printable(name)}')
                return

    def _subsection(self, cursor, name):
        if name == b'configuration/capabilities':
            field = 'number of capabilities'
            at = cursor.at
            count = cursor.number(4, field)
            count += len(self.capabilities)
            if count > CAPABILITIES_MAX:
                raise self.error(f'is {count}, more than {CAPABILITIES_MAX}',
                                 at, field)
            while len(self.capabilities) < count:
                self.capabilities.append(
                    printable(cursor.name('name of a capability')))
        elif name == b'configuration/target-page-bits':
            self.page_bits = cursor.number(4, 'bits of a page')
        elif name == b'configuration/uuid':
            self.uuid = cursor.take(16, 'UUID').hex()
        else:
            return False
        return True

    def _find_ram(self, cursor):
        """Some devices are saved before RAM; their length is not told."""
        at = cursor.at
        for found, match in self.file.search(RAM_START, at, at + SEARCH_MAX):
            if found != at:
                self.notes.append(f'{found - at} bytes of device state are '
                                  'before RAM')
            self.ram_at = found
            self.section = int.from_bytes(match.group()[1:5], 'big')
            cursor.at = found + len(match.group())
            return
        raise self.error('no section "ram" begins here', at, 'section')

    # RAM

    def _ram_blocks(self, cursor):
        self.total_at = cursor.at
        word = cursor.number(8, 'size of RAM')
        self.total = word & ~0xff
        if word & 0xff != FLAG_MEM_SIZE:
            raise self.error(f'is {word:#x}, whose low byte is not '
                             f'{FLAG_MEM_SIZE}', self.total_at, 'size of RAM')
        left = self.total
        names = set()
        while left > 0:
            if len(self.blocks) == BLOCKS_MAX:
                raise self.error(f'more than {BLOCKS_MAX} RAM blocks',
                                 cursor.at, 'RAM block')
            block = self._block(cursor, left)
            if block.name in names:
                self._bad('there is another block of that name',
                          block.name_at, self._of(block, 'name'))
            names.add(block.name)
            if block.left_out:
                self.left_out.append(block)
                left -= block.length
                continue
            self.blocks.append(block)
            if block.end > self.file.size:
                raise self.error(
                    f'end at {block.end}, but the file ends at '
                    f'{self.file.size}: it is truncated, or was never '
                    'completely written', block.pages_offset,
                    self._of(block, 'pages'))
            left -= block.length
            cursor.at = block.end
        # Their page size is that of the blocks that are in the image
        for block in self.left_out:
            self._check_version_and_page_size(block,
                                              self.blocks or self.left_out)

    @staticmethod
    def _of(block, field):
        return f"RAM block '{block.label}': {field}"

    def _block(self, cursor, left):
        name_at = cursor.at
        name = cursor.name('name of a RAM block')
        block = Block(name_at, name, cursor.at, 0)
        block.length = cursor.number(8, self._of(block, 'length'))
        if self.ignores_shared:
            cursor.number(8, self._of(block, 'address'))
        block.header_at = cursor.at
        header = cursor.take(HEADER.size, self._of(block, 'header'))
        block.version, block.page_size, block.bitmap_offset, \
            block.pages_offset = HEADER.unpack(header)
        if not name or b'\0' in name:
            self._bad('is no name', name_at, 'name of a RAM block')
        if block.version != HEADER_VERSION and \
                block.page_size not in PAGE_SIZES:
            raise self.error('is no mapped-ram header: the image is damaged, '
                             'or was saved without mapped-ram',
                             block.header_at, self._of(block, 'header'))
        if block.length == 0 or block.length > left:
            raise self.error(f'is {block.length}, and {left} bytes of RAM are '
                             'left', block.length_at,
                             self._of(block, 'length'))
        block.left_out = self.ignores_shared and \
            block.bitmap_offset == block.pages_offset == 0
        if not block.left_out:
            self._check_version_and_page_size(block, self.blocks)
            self._check_offsets(block)
        return block

    def _check(self, block, name, right, text=None):
        """Version 1 leaves no choice in any field of a header.  What is wrong
        is put right, to be able to go on."""
        have = getattr(block, name)
        if have != right:
            self._bad(f'is {have}, not {text or right}',
                      block.header_at + FIELDS[name][0],
                      self._of(block, name.replace('_', ' ')))
            setattr(block, name, right)

    def _check_version_and_page_size(self, block, known):
        """The page size is that of the blocks that are known already."""
        self._check(block, 'version', HEADER_VERSION)
        if known and known[0] is not block:
            self._check(block, 'page_size', known[0].page_size)
        elif self.page_bits is not None and 1 << min(self.page_bits, 64) \
                in PAGE_SIZES:
            self._check(block, 'page_size', 1 << self.page_bits)
        elif block.page_size not in PAGE_SIZES:
            self._check(block, 'page_size', 4096, 'a page size of any target')

    def _check_offsets(self, block):
        if block.length % block.page_size:
            raise self.error(f'is {block.length}, not a whole number of pages '
                             f'of {block.page_size} bytes', block.length_at,
                             self._of(block, 'length'))
        words = round_up(block.pages, 8 * self.word) // (8 * self.word)
        block.bitmap_size = words * self.word
        bitmap_offset = block.header_at + HEADER.size
        pages_offset = round_up(bitmap_offset + block.bitmap_size,
                                PAGES_ALIGN)
        if pages_offset + block.length > FILE_MAX:
            raise self.error(f'is {block.length}, with which the pages would '
                             f'end at {pages_offset + block.length}, and no '
                             'file is that large', block.length_at,
                             self._of(block, 'length'))
        self._check(block, 'bitmap_offset', bitmap_offset)
        self._check(block, 'pages_offset', pages_offset)

    def _ram_rest(self, cursor):
        """What the section "ram" has behind the blocks, which with mapped-ram
        is only marks, up to the first section of something else."""
        self._marks(cursor)
        self.footers = cursor.peek() == FOOTER
        self._footer(cursor)
        while cursor.peek() in (PART, END):
            at = cursor.at
            kind = cursor.number(1, 'section')
            number = cursor.number(4, 'number of a section')
            if number != self.section:
                cursor.at = at
                self.notes.append(f'section {number} has parts of its own')
                return
            self._marks(cursor)
            self._footer(cursor)
            if kind == END:
                return

    def _marks(self, cursor):
        while True:
            at = cursor.at
            mark = cursor.number(8, 'mark of the section "ram"')
            if mark == FLAG_EOS:
                return
            if mark != FLAG_MULTIFD_FLUSH:
                raise self.error(f'is {mark:#x}, which mapped-ram has no use '
                                 'for', at, 'mark of the section "ram"')

    def _footer(self, cursor):
        if not self.footers:
            return
        at = cursor.at
        field = 'footer of the section "ram"'
        mark, number = cursor.number(1, field), cursor.number(4, field)
        if (mark, number) != (FOOTER, self.section):
            raise self.error(f'is {mark:#x} {number}, not {FOOTER:#x} '
                             f'{self.section}', at, field)

    # Device state

    def _find_description(self):
        """The description is the last thing of a stream, and usually of the
        file.  But anything may follow it on a block device, and in a file
        that was passed by fd: or contains several images, and device state
        may look like one.  So one that does not end with the file must match
        the device state."""
        size, problem = self.file.size, None
        for at, end in itertools.islice(self._descriptions(),
                                        DESCRIPTIONS_MAX):
            usual = self.file.regular and end == size and not problem
            try:
                self._read_description(at, end)
                if not usual:
                    self._check_sections()
            except ReadError:
                raise
            except ImageError as err:
                problem = problem or err
                self.description_at, self.devices = None, []
                continue
            if self.file.regular and end < size:
                self.notes.append(f'{size - end} bytes follow the image')
            return
        if problem:
            raise problem

    def _descriptions(self):
        """(start, end) of what may be the description.  A regular file may
        have any amount of device state, if the description is at its end."""
        start, size = self.state_at + 1, self.file.size
        limit = min(size, start + DEVICE_STATE_MAX)
        places = [(start, limit)]
        if self.file.regular and limit < size:
            places.append((max(limit - MATCH_MAX, size - DESCRIPTION_MAX),
                           size))
        for first, last in places:
            for at, match in self.file.search(DESCRIPTION_START, first, last):
                length = int.from_bytes(match.group(1), 'big')
                end = at + 5 + length
                if length <= DESCRIPTION_MAX and (
                        end <= limit or end == size) and \
                        self.file.read(end - 1, 1, 'description') == b'}':
                    yield at, end

    def _read_description(self, at, end):
        """Takes the names of the devices out of the text, which is as QEMU
        writes it, without parsing all of it."""
        mark = self.file.read(at - 1, 1, 'end mark')[0]
        if mark != EOF:
            raise self.error(f'is {mark:#x}, not {EOF}', at - 1, 'end mark')
        self.description_at = at - 1
        found = next(self.file.search(DEVICES_START, at, end), None)
        if not found:
            raise self.error('has no list of devices', at, 'description')
        at, match = found
        self.description_page_size = int(match.group(1))
        for at, match in self.file.search(DEVICE, at, end):
            if len(self.devices) == DEVICES_MAX:
                raise self.error(f'has more than {DEVICES_MAX} devices', at,
                                 'description')
            name, instance, version = match.groups()
            try:
                name = json.loads(name)
            except ValueError:
                raise self.error('has a name that is no JSON', at,
                                 'description') from None
            self.devices.append((name, int(instance) % (1 << 32),
                                 version and int(version)))

    def _check_end(self):
        if self.description_at is not None:
            return
        if not self.file.regular:
            self.notes.append('no description of the device state was found')
            return
        size = min(6, self.file.size - self.state_at)
        tail = self.file.read(self.file.size - size, size, 'end of the stream')
        if size == 6 and tail[-1] == EOF and (
                not self.footers or tail[0] == FOOTER):
            self.notes.append(
                'the stream has no description of the device state' +
                ('' if self.footers else ' and no footers of sections, so it '
                 "can't be checked whether it is complete"))
        else:
            raise TruncatedError(
                self.path, 'is incomplete, or something follows it: the file '
                'is truncated, or was never completely written',
                self.state_at, 'device state')

    def check_devices(self):
        """Compares the description with the stream."""
        if self.description_at is None:
            return
        size = self.description_page_size
        if self.blocks and size not in (None, self.blocks[0].page_size):
            self._bad(f'has page size {size}, but RAM has '
                      f'{self.blocks[0].page_size}', self.description_at,
                      'description')
        self._check_sections()

    def _check_sections(self):
        """Each device of the description must have a section, in the same
        order, and each section must end where the next one begins."""
        at, before = self.configuration_end, None
        for name, instance, version in self.devices:
            found = self._section(name, instance, version, at)
            if not found:
                raise self.error(
                    f"has no section for '{printable(name)}', instance "
                    f'{instance}, version {version}', max(at, self.state_at),
                    'device state')
            at, match = found
            if before is not None and self.footers and \
                    match.group(1) != bytes((FOOTER,)) + before:
                raise self.error('is not where the section before it ends',
                                 at + 5, f"section of '{printable(name)}'")
            before = match.group(2) if at + 5 >= self.state_at else None
            at += 5
        end = self.description_at
        if self.footers:
            last = self.file.read(end - 5, 5, 'device state')
            if last[0] != FOOTER or before not in (None, last[1:]):
                raise self.error('does not end with the footer of its last '
                                 'section', end - 5, 'device state')

    def _section(self, name, instance, version, at):
        """The first beginning of a section at or behind `at`, preceded by 5
        bytes, or None; RAM is not looked at."""
        text = name.encode('utf-8', 'replace')[:255]
        look = re.compile(
            b'(.{5})\\x04(.{4})' + re.escape(
                bytes((len(text),)) + text + struct.pack('>I', instance)
                + (b'' if version is None else
                   struct.pack('>I', version % (1 << 32)))), re.S)
        if at < self.ram_at:
            found = next(self.file.search(look, at - 5, self.ram_at), None)
            if found:
                return found
        start = max(at, self.state_at) - 5
        return next(self.file.search(look, start, self.description_at), None)

    # Bitmaps and pages

    def bitmap(self, block):
        """(first page, bytes) of the pieces of a bitmap that are not holes;
        the lowest bit of the first byte is the first page."""
        field = self._of(block, 'bitmap')
        at = 0
        while at < block.bitmap_size:
            start = block.bitmap_offset
            extent = next(self.file.extents(start + at, start +
                                            block.bitmap_size), None)
            if not extent:
                return
            at = max(at, (extent[0] - start) // PIECE * PIECE)
            size = min(PIECE, block.bitmap_size - at)
            data = self.file.read(start + at, size, field)
            if self.big_endian:
                words = array.array('Q' if self.word == 8 else 'I', data)
                words.byteswap()
                data = words.tobytes()
            if at + size == block.bitmap_size:
                data = self._clip(block, data, at)
            yield at * 8, data
            at += size

    def _clip(self, block, data, at):
        """The end of a bitmap, without bits for pages that aren't there."""
        pages = block.pages - at * 8
        last = pages // 8 // 8 * 8              # only look at the last word
        bits = int.from_bytes(data[last:], 'little')
        stray = bits >> (pages - last * 8)
        if not stray:
            return data
        first = block.pages + (stray & -stray).bit_length() - 1
        self._bad(f'has page {first}, but the block has only {block.pages}',
                  block.bitmap_offset, self._of(block, 'bitmap'))
        bits &= (1 << (pages - last * 8)) - 1
        return data[:last] + bits.to_bytes(len(data) - last, 'little')

    def groups(self, block, from_file=False):
        """(number, bitmap) of each group of pages that has any.  With
        `from_file` the bitmap is not asked: what is no hole is there."""
        if from_file:
            yield from self._groups_in_file(block)
            return
        there = (self.file.size - block.pages_offset) // block.page_size + 1
        for first, data in self.bitmap(block):
            match = NOT_ZERO.search(data)
            while match:
                number = match.start() // GROUP_BYTES
                if first + number * GROUP_PAGES >= there:
                    return              # all that follows has been cut off
                part = data[number * GROUP_BYTES:(number + 1) * GROUP_BYTES]
                yield (first // GROUP_PAGES + number,
                       part.ljust(GROUP_BYTES, b'\0'))
                match = NOT_ZERO.search(data, (number + 1) * GROUP_BYTES)

    def _groups_in_file(self, block):
        size = GROUP_PAGES * block.page_size
        done = 0
        for start, end in self.file.extents(block.pages_offset, block.end):
            first = max(done, (start - block.pages_offset) // size)
            done = max(first, round_up(end - block.pages_offset, size) // size)
            for number in range(first, done):
                yield number, ALL_PAGES

    def read_group(self, block, number, bits):
        """The contents of a group of pages; what is absent is zero, and so,
        if the image is taken as it is, is what has been cut off."""
        at = number * GROUP_PAGES * block.page_size
        size = min(GROUP_PAGES * block.page_size, block.length - at)
        start = block.pages_offset + at
        there = size
        if self.collect:
            there = max(0, min(size, self.file.size - start))
        data = self.file.read(start, there, self._of(
            block, f'page {number * GROUP_PAGES}')).ljust(size, b'\0') \
            if there else bytes(size)
        if bits == ALL_PAGES:
            return data
        result = bytearray(size)
        for first, count in runs(bits):
            part = slice(first * block.page_size,
                         (first + count) * block.page_size)
            result[part] = data[part]
        return bytes(result)

    def summary(self, block):
        """How much of a block is where."""
        present = holes = 0
        for first, data in self.bitmap(block):
            present += count_bits(data)
            holes += self._pages_in_holes(block, first, data)
        stored = sum(end - start for start, end in
                     self.file.extents(block.pages_offset, block.end))
        return {'name': block.label, 'length': block.length,
                'page-size': block.page_size, 'pages': block.pages,
                'pages-present': present, 'pages-present-in-holes': holes,
                'header-offset': block.header_at,
                'bitmap-offset': block.bitmap_offset,
                'bitmap-size': block.bitmap_size,
                'pages-offset': block.pages_offset,
                'bytes-in-file': stored, 'bytes-of-holes':
                block.length - stored}

    def _pages_in_holes(self, block, first, data):
        """How many of the pages that a piece of the bitmap has are wholly in
        holes of the file."""
        size = block.page_size
        last = min(first + len(data) * 8, block.pages)
        bits = 0
        at = first
        for start, end in self.file.extents(block.pages_offset + first * size,
                                            block.pages_offset + last * size):
            page = (start - block.pages_offset) // size
            bits += count_range(data, at - first, page - first)
            at = max(at, round_up(end - block.pages_offset, size) // size)
        return bits + count_range(data, at - first, last - first)


def split_spec(spec):
    """NAME[,offset=N] as QEMU has it."""
    name = spec[5:] if spec.startswith('file:') and \
        not os.path.lexists(spec) else spec
    found = re.match(r'(.*),offset=([^,]*)\Z', name, re.S)
    if not found or os.path.lexists(name):
        return name, 0
    number = re.match(r'(0[xX][0-9a-fA-F]+|\d+)([kKmMgGtTbB]?)\Z',
                      found.group(2))
    offset = number and int(number.group(1), 0 if number.group(1)[:2].lower()
                            == '0x' else 10) * \
        1024 ** 'bkmgt'.index(number.group(2).lower() or 'b')
    if offset is None or offset >= 1 << 63:
        raise ImageError(found.group(1), f"'offset={found.group(2)}' is not a "
                         'number of bytes, which may end in k, M, G or T')
    return found.group(1), offset


def count_bits(data):
    return bin(int.from_bytes(data, 'little')).count('1')


def count_range(data, first, last):
    """How many of the bits from `first` to before `last` are set."""
    if first >= last:
        return 0
    part = int.from_bytes(data[first // 8:(last + 7) // 8], 'little')
    return bin((part >> first % 8) &
               ((1 << (last - first)) - 1)).count('1')


def runs(bits):
    """(first, how many) of the runs of set bits."""
    text = bin(int.from_bytes(bits, 'little'))[:1:-1]
    return [(m.start(), m.end() - m.start())
            for m in re.finditer('1+', text)]
