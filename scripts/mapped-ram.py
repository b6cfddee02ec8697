#!/usr/bin/env python3
#
# Inspect, verify, compare and extract mapped-ram migration files
#
# SPDX-License-Identifier: GPL-2.0-or-later

"""See EPILOG, and mapped_ram_image.py beside this file, which reads them."""

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
import tempfile
import traceback
from xml.sax.saxutils import escape, quoteattr

from mapped_ram_image import (GROUP_PAGES, NO_PAGES, NOT_ZERO,
                              Image, ImageError, ReadError, count_bits,
                              count_range, printable, runs)

EXIT_GOOD, EXIT_DIFFERENT, EXIT_ERROR, EXIT_UNFINISHED = 0, 1, 2, 3

EPILOG = '''
IMAGE is the name of a file or block device, or file:NAME as QEMU has it;
NAME,offset=N (N may end in k, M, G or T) says where the image begins.
libvirt's header is skipped automatically.

exit codes:
  0  all is well; with compare: guest RAM in the images is the same
  1  verify: the image is damaged; compare: guest RAM differs
  2  it can't be done: wrong usage, no image, a damaged image, a failing disk,
     output that can't be written
  3  the image is unfinished
  128 + N  stopped by signal N
'''


def size_text(size):
    for unit, name in ((1 << 40, 'TiB'), (1 << 30, 'GiB'), (1 << 20, 'MiB'),
                       (1 << 10, 'KiB')):
        if size >= unit:
            return f'{size / unit:.1f} {name}'
    return f'{size} B'


def percent(part, whole):
    return f'{100 * part / whole:.1f} %' if whole else '-'


# Commands.  Each returns an exit code, and what --json prints.

def describe(image):
    """What info says of the image as a whole."""
    return {'file': printable(image.path), 'file-size': image.file.size,
            'offset': image.offset, 'finished': not image.unfinished,
            'unfinished-because': image.unfinished,
            'libvirt': image.libvirt, 'machine': image.machine,
            'uuid': image.uuid, 'capabilities': image.capabilities,
            'page-size': image.blocks[0].page_size if image.blocks else None,
            'ram-size': image.total,
            'left-out': [{'name': block.label, 'length': block.length}
                         for block in image.left_out],
            'device-state-offset': image.state_at,
            'description-offset': image.description_at,
            'devices': [{'name': printable(n), 'instance': i, 'version': v}
                        for n, i, v in image.devices],
            'notes': image.notes}


def print_table(rows):
    """The first column is text, the others are numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print('  ' + row[0].ljust(widths[0]) + ''.join(
            '  ' + cell.rjust(width)
            for cell, width in zip(row[1:], widths[1:])))


def print_info(found, blocks):
    libvirt = found['libvirt']
    print(f"{found['file']}: mapped-ram image at offset {found['offset']}, "
          f"{'finished' if found['finished'] else 'NOT FINISHED'}")
    if not found['finished']:
        print(f"  not finished: {found['unfinished-because']}")
    if libvirt:
        print(f"  saved by libvirt, header version {libvirt['version']}, "
              f"guest was {'running' if libvirt['running'] else 'paused'}")
    print(f"  machine type: {found['machine'] or 'not in the image'}")
    capabilities = ', '.join(found['capabilities']) or 'none recorded'
    print(f'  capabilities: {capabilities}')
    present = sum(b['pages-present'] * b['page-size'] for b in blocks)
    stored = sum(b['bytes-in-file'] for b in blocks)
    print(f"  RAM: {size_text(found['ram-size'])} in {len(blocks)} blocks, "
          f"pages of {found['page-size']} bytes, {size_text(present)} "
          f"({percent(present, found['ram-size'])}) present, "
          f'{size_text(stored)} of the file')
    rows = [('RAM block', 'length', 'pages', 'present', 'bitmap at',
             'pages at', 'in file', 'holes')]
    for b in blocks:
        rows.append((b['name'], size_text(b['length']), str(b['pages']),
                     percent(b['pages-present'], b['pages']),
                     str(b['bitmap-offset']), str(b['pages-offset']),
                     size_text(b['bytes-in-file']),
                     size_text(b['bytes-of-holes'])))
    print_table(rows)
    for block in found['left-out']:
        print(f"  RAM block '{block['name']}', {size_text(block['length'])}, "
              'is not in the image: it was shared memory (x-ignore-shared)')
    end = found['description-offset'] or found['file-size']
    print(f"  device state: at {found['device-state-offset']}, "
          f"{size_text(end - found['device-state-offset'])}, "
          f"{len(found['devices']) or 'unknown'} devices")
    for note in found['notes']:
        print(f'  note: {note}')


def command_info(args):
    with args.image(args.IMAGE) as image:
        blocks = [image.summary(block) for block in image.blocks]
        found = dict(describe(image), blocks=blocks)
    if not args.json:
        print_info(found, blocks)
    return EXIT_UNFINISHED if image.unfinished else EXIT_GOOD, found


def verify_bitmaps(image):
    """Reads all bitmaps; returns the summaries of the blocks."""
    blocks = []
    for block in image.blocks:
        found = image.summary(block)
        blocks.append(found)
        lost = found['pages-present-in-holes']
        if lost and block.end <= image.file.size:
            image.notes.append(
                f"RAM block '{block.label}': {lost} of "
                f"{found['pages-present']} pages in the bitmap are holes of "
                'the file, and restore as zeroes: was it copied sparsely, or '
                'did it lose data?')
    return blocks


def print_verdict(image, blocks, unfinished, damaged):
    path = printable(image.path)
    for problem in image.problems:
        print(problem)
    for note in image.notes:
        print(f'{path}: note: {note}')
    if unfinished:
        print(f"{path}: not finished: "
              f"{image.unfinished or 'there is no image'}")
    if damaged or not unfinished:
        count = len(image.problems)
        result = f"{count or 'no'} problem{'s' if count > 1 else ''}"
        pages = sum(b['pages-present'] for b in blocks)
        print(f'{path}: {result} ({len(blocks)} RAM blocks, {pages} pages '
              f'present, {len(image.devices)} devices)')


def command_verify(args):
    with args.image(args.IMAGE, collect=True) as image:
        blocks = []
        try:
            blocks = verify_bitmaps(image)
            image.check_devices()
        except ReadError:
            raise
        except ImageError as err:
            image.problems.append(err)
        found = dict(describe(image), blocks=blocks, problems=[
            p.as_dict() for p in image.problems])
    # What QEMU has not written yet is no damage; libvirt's mark hides none
    missing = image.interrupted or any(p.unfinished for p in image.problems)
    unfinished = image.unfinished or missing
    damaged = image.problems and not missing
    found['finished'] = not unfinished
    if not args.json:
        print_verdict(image, blocks, unfinished, damaged)
    if damaged:
        return EXIT_DIFFERENT, found
    return EXIT_UNFINISHED if unfinished else EXIT_GOOD, found


def finished(image, args):
    """Refuses an image that isn't finished, unless that was asked for."""
    if image.unfinished and not args.unfinished:
        raise image.error(f'the image is not finished: {image.unfinished}; '
                          '--unfinished takes what is there', image.offset,
                          unfinished=True)
    return image


def merged(first, second):
    """(number, bitmap, bitmap) of the groups that are in either."""
    none = (None, NO_PAGES)
    a, b = next(first, none), next(second, none)
    while a[0] is not None or b[0] is not None:
        number = min(g[0] for g in (a, b) if g[0] is not None)
        yield (number, a[1] if a[0] == number else NO_PAGES,
               b[1] if b[0] == number else NO_PAGES)
        if a[0] == number:
            a = next(first, none)
        if b[0] == number:
            b = next(second, none)


class Comparison:
    """Compares images block by block; keeps the first `limit` differences."""

    def __init__(self, a, b, limit):
        self.a, self.b, self.limit = a, b, limit
        self.pages = 0
        self.differences, self.of_blocks = [], []
        self.left_out = []              # of both images

    def run(self):
        theirs = {block.name: block
                  for block in self.b.blocks + self.b.left_out}
        for block in self.a.blocks + self.a.left_out:
            other = theirs.pop(block.name, None)
            if other is None:
                self._differ(block, 'is only in the first image')
            else:
                self._pair(block, other)
        for block in theirs.values():
            self._differ(block, 'is only in the second image')
        return bool(self.pages or self.of_blocks)

    def _pair(self, block, other):
        if block.left_out != other.left_out:
            which = 'first' if block.left_out else 'second'
            self._differ(block, f'is not in the {which} image: it was shared '
                         'memory (x-ignore-shared)')
        elif other.page_size != block.page_size:
            self._differ(block, f'has pages of {block.page_size} and of '
                         f'{other.page_size} bytes')
        else:
            if other.length != block.length:
                self._differ(block, f'has {block.length} and {other.length} '
                             'bytes')
            if not block.left_out:
                self._block(block, other)
            elif other.length == block.length:
                self.left_out.append(block.label)

    def _differ(self, block, how):
        self.of_blocks.append({'block': block.label, 'how': how})

    def _block(self, block, other):
        common = min(block.length, other.length)
        size = GROUP_PAGES * block.page_size
        for number, bits, other_bits in merged(self.a.groups(block),
                                               self.b.groups(other)):
            length = min(size, common - number * size)
            if length <= 0:
                return
            x, y = (image.read_group(which, number, mask)[:length]
                    if mask != NO_PAGES else bytes(length)
                    for image, which, mask in ((self.a, block, bits),
                                               (self.b, other, other_bits)))
            if x != y:
                self._pages(block, number * GROUP_PAGES, x, y)

    def _pages(self, block, first, x, y):
        size = block.page_size
        for at in range(0, len(x), size):
            p, q = x[at:at + size], y[at:at + size]
            if p == q:
                continue
            self.pages += 1
            if len(self.differences) < self.limit:
                byte = next(i for i in range(size) if p[i] != q[i])
                self.differences.append({
                    'block': block.label, 'page': first + at // size,
                    'address': first * size + at + byte, 'byte': byte,
                    'values': [p[byte], q[byte]]})


def print_comparison(comparison, different):
    for d in comparison.of_blocks:
        print(f"RAM block '{d['block']}' {d['how']}")
    for d in comparison.differences:
        print(f"RAM block '{d['block']}', page {d['page']}: differs from "
              f"byte {d['byte']} on, address {d['address']:#x}: "
              f"{d['values'][0]:#04x} and {d['values'][1]:#04x}")
    if comparison.pages > len(comparison.differences):
        print('... and {} more pages'.format(
            comparison.pages - len(comparison.differences)))
    count = len(comparison.left_out)
    if count:
        print(f"{count} RAM {'blocks are' if count > 1 else 'block is'} not "
              f"in the images and {'were' if count > 1 else 'was'} not "
              'compared')
    if different:
        print(f'guest RAM differs, in {comparison.pages} pages' +
              (f' and {len(comparison.of_blocks)} blocks'
               if comparison.of_blocks else ''))
    elif count:
        print('guest RAM in the images is the same' if comparison.a.blocks
              else 'there is no guest RAM in the images')
    else:
        print('guest RAM is the same')


def command_compare(args):
    with args.image(args.A) as a, args.image(args.B) as b:
        comparison = Comparison(finished(a, args), finished(b, args),
                                args.limit)
        different = comparison.run()
        found = {'files': [printable(a.path), printable(b.path)],
                 'same': not different, 'blocks': comparison.of_blocks,
                 'not-compared': comparison.left_out,
                 'pages-different': comparison.pages,
                 'differences': comparison.differences}
    if not args.json:
        print_comparison(comparison, different)
    return EXIT_DIFFERENT if different else EXIT_GOOD, found


def publish(part, path):
    """Gives a file its name, unless somebody has made a file of that name."""
    try:
        # Unlike a rename, this fails then
        os.link(part, path)
    except OSError as err:
        if err.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # The file system has no hard links
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL,
                         0o600))
        try:
            os.replace(part, path)
        except OSError:
            os.unlink(path)
            raise
    else:
        os.unlink(part)


@contextlib.contextmanager
def new_file(path, image, force, binary=True):
    """A file that appears under its name when it is complete.  What has that
    name already is kept, or with `force` replaced if it is a plain file, but
    not the image itself."""
    if os.path.lexists(path):
        if os.path.exists(path) and os.path.samestat(os.stat(path),
                                                     image.file.stat):
            raise ImageError(path, 'is the image itself; name another file')
        if not force:
            raise ImageError(path, 'exists; --force replaces it')
        if os.path.islink(path) or not os.path.isfile(path):
            raise ImageError(path,
                             'is not a regular file, so it is not replaced')
    directory = os.path.dirname(path) or '.'
    try:
        fd, part = tempfile.mkstemp('.part', os.path.basename(path)[:64] + '.',
                                    directory)
    except OSError as err:
        raise ImageError(path, err.strerror) from None
    try:
        with open(fd, 'wb' if binary else 'w',
                  encoding=None if binary else 'utf-8') as f:
            yield f
            # Else a crash of the host could leave neither old nor new data
            f.flush()
            os.fsync(f.fileno())
        if force:
            os.replace(part, path)
        else:
            publish(part, path)
    except OSError as err:
        raise ImageError(path, err.strerror) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def write_block(image, block, f, from_file):
    """Writes memory and leaves holes; returns how many bytes were written."""
    size = block.page_size
    written = 0
    for number, bits in image.groups(block, from_file):
        data = image.read_group(block, number, bits)
        if not NOT_ZERO.search(data):
            continue
        at = number * GROUP_PAGES * size
        for first, count in runs(bits):
            part = data[first * size:(first + count) * size]
            if part and (len(part) > size or NOT_ZERO.search(part)):
                f.seek(at + first * size)
                f.write(part)
                written += len(part)
    f.truncate(block.length)
    return written


def command_extract(args):
    with args.image(args.IMAGE, collect=args.unfinished) as image:
        finished(image, args)
        block = next((b for b in image.blocks
                      if args.BLOCK in (b.label, os.fsdecode(b.name))), None)
        if block is None:
            if image.problems:
                raise image.problems[0]
            names = ', '.join(f"'{b.label}'" for b in image.blocks)
            raise image.error(f"there is no RAM block '{args.BLOCK}'; there "
                              f'are {names}')
        for problem in image.problems:
            print(f'mapped-ram: continuing despite this: {problem}',
                  file=sys.stderr)
        if args.ignore_bitmap and not image.file.regular:
            print(f'mapped-ram: warning: {printable(image.path)}: is a block '
                  'device, so pages that were not saved have the data that '
                  'was on it before', file=sys.stderr)
        with new_file(args.output, image, args.force) as f:
            written = write_block(image, block, f, args.ignore_bitmap)
    found = {'file': printable(image.path), 'block': block.label,
             'output': printable(args.output), 'length': block.length,
             'bytes-written': written}
    if not args.json:
        print(f"{printable(args.output)}: {size_text(block.length)} of RAM "
              f"block '{block.label}', {size_text(written)} of it present")
    return EXIT_GOOD, found


def cells_of(image, block, limit):
    """(pages of a cell, [pages present in each cell]), at most `limit`."""
    pages = 1
    while pages * limit < block.pages:
        pages *= 2
    cells = [0] * -(-block.pages // pages)
    for number, bits in image.groups(block):
        if pages >= GROUP_PAGES:
            cells[number * GROUP_PAGES // pages] += count_bits(bits)
            continue
        for first in range(0, GROUP_PAGES, pages):
            cell = (number * GROUP_PAGES + first) // pages
            if cell < len(cells):
                cells[cell] += count_range(bits, first, first + pages)
    return pages, cells


SHADES = ' .:-=+*#%@'
# From nothing, which is gray, to all, by the same steps as above
COLORS = ['#ececec', '#d6e4f5', '#b9d2ef', '#9bbfe8', '#7eace1', '#6099d9',
          '#4585cf', '#336fb5', '#265894', '#194173']


def level(count, pages, steps):
    """0 only if there is nothing, the highest only if all is there."""
    if count in (0, pages):
        return 0 if count == 0 else steps - 1
    return 1 + count * (steps - 2) // pages


def levels(entry, row, width, steps):
    """The levels of one row of cells."""
    pages = entry['pages-per-cell']
    left = entry['pages'] - row * pages
    return [level(count, min(pages, left - i * pages), steps)
            for i, count in enumerate(entry['cells'][row:row + width])]


def caption(entry, unit):
    return (f"{entry['name']}: {size_text(entry['length'])}, "
            f"{percent(sum(entry['cells']), entry['pages'])} present; a "
            f"{unit} is "
            f"{size_text(entry['pages-per-cell'] * entry['page-size'])}")


CELL = 10                       # side of a square


def svg_row(y, tones):
    """One row of squares; neighbors of one color are one rectangle."""
    x = 0
    while x < len(tones):
        end = x
        while end < len(tones) and tones[end] == tones[x]:
            end += 1
        yield (f'<rect x="{CELL + x * CELL}" y="{y}" width='
               f'"{(end - x) * CELL}" height="{CELL}" fill='
               f'"{COLORS[tones[x]]}"/>')
        x = end


def svg_text(x, y, text):
    return f'<text x="{x}" y="{y}">{escape(text)}</text>'


def svg_of(title, maps, width):
    """A picture with one grid for each block."""
    y = 24
    parts = [svg_text(CELL, 18, title)]
    for entry in maps:
        parts.append(svg_text(CELL, y + 16, caption(entry, 'square')))
        y += 22
        for row in range(0, len(entry['cells']), width):
            parts += svg_row(y, levels(entry, row, width, len(COLORS)))
            y += CELL
        y += 14
    parts.append(svg_text(CELL, y + 19, 'nothing present'))
    parts += svg_row(y + 10, [0] * 10 + list(range(len(COLORS))))
    parts.append(svg_text((2 + 10 + len(COLORS)) * CELL, y + 19, 'all'))
    size = f'width="{2 * CELL + max(width * CELL, 500)}" height="{y + 30}"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
            'font-family="sans-serif" font-size="12" '
            f'aria-label={quoteattr(title)}>\n'
            '<rect width="100%" height="100%" fill="white"/>\n'
            + '\n'.join(parts) + '\n</svg>\n')


def print_map(maps, width):
    print(f'  "{SHADES[0]}" nothing present ... "{SHADES[-1]}" all present')
    for entry in maps:
        print(caption(entry, 'character'))
        unit = entry['pages-per-cell'] * entry['page-size']
        for row in range(0, len(entry['cells']), width):
            text = ''.join(SHADES[i] for i in
                           levels(entry, row, width, len(SHADES)))
            print(f'  {row * unit:#014x} |{text}|')


def command_map(args):
    with args.image(args.IMAGE) as image:
        maps = []
        for block in image.blocks:
            pages, cells = cells_of(image, block, args.width * args.rows)
            maps.append({'name': block.label, 'length': block.length,
                         'pages': block.pages, 'page-size': block.page_size,
                         'pages-per-cell': pages, 'cells': cells})
        found = {'file': printable(image.path), 'blocks': maps,
                 'finished': not image.unfinished}
    if args.output:
        with new_file(args.output, image, args.force, binary=False) as f:
            f.write(svg_of(printable(image.path), maps, args.width))
    if not args.json:
        if args.output:
            print(f'{printable(args.output)}: a picture of '
                  f'{len(maps)} RAM blocks')
        else:
            print_map(maps, args.width)
    return EXIT_UNFINISHED if image.unfinished else EXIT_GOOD, found


# The command line

def number_in(low, high):
    def convert(text):
        number = int(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f'{number} is not within {low} '
                                             f'and {high}')
        return number
    convert.__name__ = 'number'
    return convert


def parser():
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--json', action='store_true',
                        help='print the result as JSON')
    common.add_argument('--big-endian', action='store_true',
                        help='the bitmaps are of a big-endian host')
    common.add_argument('--word-size', type=int, choices=(4, 8), default=8,
                        help='size of an unsigned long of the host that '
                        'saved, in bytes (default: 8)')
    partial = argparse.ArgumentParser(add_help=False)
    partial.add_argument('--unfinished', action='store_true',
                         help='accept an unfinished image, too; with extract '
                         'also a damaged one, as far as it can be read')
    result = argparse.ArgumentParser(
        description='Inspect, verify, compare and extract images that '
        'QEMU or libvirt saved with the capability mapped-ram.',
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(dest='command', metavar='COMMAND')
    commands.required = True

    def command(name, function, help_text, *parents):
        sub = commands.add_parser(name, help=help_text, description=help_text,
                                  parents=[common, *parents])
        sub.set_defaults(function=function)
        return sub

    sub = command('info', command_info, 'what is in an image')
    sub.add_argument('IMAGE')
    sub = command('verify', command_verify, 'check all that can be checked')
    sub.add_argument('IMAGE')
    sub = command('compare', command_compare,
                  'compare the guest RAM of two images', partial)
    sub.add_argument('A')
    sub.add_argument('B')
    sub.add_argument('--limit', type=number_in(0, 1000000), default=20,
                     help='how many different pages to name (default: 20)')
    sub = command('extract', command_extract,
                  'write the contents of a RAM block to a file', partial)
    sub.add_argument('IMAGE')
    sub.add_argument('BLOCK', help='name of the block, for example pc.ram')
    sub.add_argument('-o', '--output', metavar='FILE', required=True)
    sub.add_argument('--force', action='store_true',
                     help='replace FILE if it exists')
    sub.add_argument('--ignore-bitmap', action='store_true',
                     help='take all pages that have something in the file: '
                     'the bitmap is written at the end of a save')
    sub = command('map', command_map, 'show which parts of RAM are present')
    sub.add_argument('IMAGE')
    sub.add_argument('-o', '--output', metavar='FILE',
                     help='write a picture, as SVG')
    sub.add_argument('--force', action='store_true',
                     help='replace FILE if it exists')
    sub.add_argument('--width', type=number_in(8, 512), default=64,
                     help='cells in a row (default: 64)')
    sub.add_argument('--rows', type=number_in(1, 512), default=16,
                     help='rows of a block at most (default: 16)')
    return result


def main(argv=None):
    args = parser().parse_args(argv)

    def image(spec, collect=False):
        return Image(spec, collect, args.big_endian, args.word_size)

    args.image = image
    try:
        code, found = args.function(args)
    except ImageError as err:
        code = EXIT_UNFINISHED if err.unfinished else EXIT_ERROR
        found = {'error': err.as_dict()}
        print(f'mapped-ram: {err}', file=sys.stderr)
    if args.json:
        print(json.dumps(found, indent=2))
    return code


def catch_signals():
    """Lets a signal end the tool as ^C does, so that it removes the file that
    it was writing."""
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

    def stop(number, _):
        for other in signals:
            signal.signal(other, signal.SIG_IGN)    # removing takes a while
        raise KeyboardInterrupt(number)

    for number in signals:
        if signal.getsignal(number) != signal.SIG_IGN:      # as by nohup
            signal.signal(number, stop)


def complain(err):
    """Reports an error that no ImageError describes."""
    if isinstance(err, BrokenPipeError):
        return                          # whoever reads it wants no more
    where = f'{printable(err.filename)}: ' if err.filename else \
        'cannot write the output: '
    with contextlib.suppress(OSError):
        print(f'mapped-ram: {where}{err.strerror or err}', file=sys.stderr)


def run():
    """main() as a process: whatever happens, the exit code is right."""
    for stream in sys.stdout, sys.stderr:
        if stream:
            # Names in images may have characters that its encoding has not
            stream.reconfigure(errors='backslashreplace')
    catch_signals()
    try:
        try:
            code = main()
        except SystemExit as end:       # of argparse
            code = end.code
        if sys.stdout:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as err:
        code = 128 + err.args[0]
    except OSError as err:
        complain(err)
        code = EXIT_ERROR
    except Exception:
        traceback.print_exc()
        code = EXIT_ERROR
    # Python flushes its output when it exits; that must not fail again
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    return code


if __name__ == '__main__':
    sys.exit(run())
