# SPDX-License-Identifier: GPL-2.0-or-later
"""Fills guest RAM with known contents and checks that they are restored."""

import functools
import os
import random

MIB = 1 << 20
PAGE = 4096

# name: (bytes of data, bytes of zeros), over and over; None: no data at all
KINDS = {
    'random': (1, 0),
    'half-zero-64k': (64 << 10, 64 << 10),
    'half-zero-8k': (8 << 10, 8 << 10),
    'zero': None,
}


@functools.lru_cache(maxsize=1)
def _noise():
    return memoryview(random.Random(1).randbytes(33 * MIB))


def _data(offset, size):
    """The data at `offset`, within 32 MiB.  Each 32 MiB contain the same
    noise, shifted by an amount that is not a multiple of the page size, so
    that all pages of RAM differ."""
    start = offset // (32 * MIB) * 67 + offset % (32 * MIB)
    return _noise()[start:start + size]


class Content:
    """One kind of content for `ram` MiB."""

    def __init__(self, kind, ram):
        self.kind = kind
        self.ram = ram
        self.name = f'{kind}-{ram}'

    def runs(self):
        """The runs of data: (offset, size), in order, each within an aligned
        32 MiB."""
        if KINDS[self.kind] is None:
            return
        data, zeros = KINDS[self.kind]
        if not zeros:
            data = 32 * MIB
        for offset in range(0, self.ram * MIB, data + zeros):
            yield offset, min(data, self.ram * MIB - offset)

    def data_bytes(self):
        return sum(size for _, size in self.runs())

    def run_bytes(self):
        """The length of the runs of data if there are zeros between them; else
        None."""
        data, zeros = KINDS[self.kind] or (0, 0)
        return data if data and zeros else None

    def fill(self, pid):
        """Fills the RAM of the guest in process `pid`.  The RAM must be
        anonymous, preallocated, and zero."""
        at = find_ram(pid, self.ram)
        memory = os.open(f'/proc/{pid}/mem', os.O_WRONLY)
        try:
            for offset, size in self.runs():
                _write_all(memory, _data(offset, size), at + offset)
        finally:
            os.close(memory)

    def check(self, pid, samples=256):
        """Raises an error unless a sample of pages has its original
        content."""
        at = find_ram(pid, self.ram)
        pages = self.ram * MIB // PAGE
        memory = os.open(f'/proc/{pid}/mem', os.O_RDONLY)
        try:
            for page in random.Random(2).sample(range(pages),
                                                min(samples, pages)):
                if os.pread(memory, PAGE, at + page * PAGE) != \
                        self.page(page):
                    raise RuntimeError(f'page {page} of {self.name} is not '
                                       'as it was saved')
        finally:
            os.close(memory)

    def page(self, number):
        """The content of page `number`."""
        offset = number * PAGE
        if KINDS[self.kind] is None:
            return bytes(PAGE)
        data, zeros = KINDS[self.kind]
        if zeros and offset % (data + zeros) >= data:
            return bytes(PAGE)
        return bytes(_data(offset, PAGE))


def _write_all(fd, data, offset):
    while data:
        done = os.pwrite(fd, data, offset)
        data = data[done:]
        offset += done


def parse_maps(text, size):
    """Finds the address of `size` bytes of anonymous memory, or of a memfd, in
    the text of /proc/PID/maps: the only mapping of that size or, if the kernel
    merged it with a neighbour, the largest."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        first, last = (int(x, 16) for x in fields[0].split('-'))
        if fields[1].startswith('rw-p') and len(fields) == 5 or \
                fields[1].startswith('rw-s') and 'memfd:' in line:
            found.append((last - first, first))
    exact = [first for length, first in found if length == size]
    if len(exact) == 1:
        return exact[0]
    length, first = max(found, default=(0, 0))
    if length < size:
        raise RuntimeError('the memory of the guest is not to be found')
    return (first + (2 * MIB - 1)) & ~(2 * MIB - 1)


def find_ram(pid, ram):
    with open(f'/proc/{pid}/maps') as f:
        return parse_maps(f.read(), ram * MIB)
