# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that the host of this virtual machine is known to back.

The host may take back memory that has been free for some seconds (free page
reporting of virtio-balloon).  The next use of such memory costs many times
what it does on a physical host.  A Reserve uses memory beforehand, and gives
it back while something is measured, shortly before that needs it."""

import concurrent.futures
import ctypes
import errno
import glob
import mmap
import os
import select
import subprocess
import sys

from .meter import cpu_seconds, field
from .vm import die_with_parent

MIB = 1 << 20
CHUNK = 64                  # MiB that are given back at once
LEAD = 512                  # MiB that are free beyond what is used so far
# MiB that the kernel takes off the lists of free memory for a moment, when it
# reports them to the host: 32 blocks of 4 MiB, and some
REPORTED = 144
LEAVE = 1536                # MiB that always stay available to others
PAUSE = 0.002               # seconds between two looks at the free memory
POPULATE_WRITE = 23         # MADV_POPULATE_WRITE, since Linux 5.14
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def reporting(devices='/sys/bus/virtio/devices'):
    """Whether this machine tells its host which memory is free."""
    for where in glob.glob(os.path.join(devices, '*')):
        try:
            with open(os.path.join(where, 'device')) as f:
                kind = f.read().strip()
            with open(os.path.join(where, 'features')) as f:
                features = f.read().strip()
        except OSError:
            continue
        if kind == '0x0005' and features[5:6] == '1':
            return True
    return False


def limited(mib, available, beside=0):
    """How many of `mib` may be held if so much is available without them, and
    `beside` MiB will be used before they are given back."""
    return max(min(mib, available - beside - LEAVE), 0)


class Reserve:
    """Holds memory in another process, and gives it back bit by bit."""

    def __init__(self):
        self._child = subprocess.Popen(
            [sys.executable, '-m', 'lab.reserve'], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1,
            preexec_fn=die_with_parent)
        self._begun = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def pid(self):
        return self._child.pid

    def close(self):
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()

    def _ask(self, *words):
        try:
            print(*words, file=self._child.stdin)
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ''
        if not answer:
            raise RuntimeError('the process that holds memory has ended')
        return int(answer)

    def hold(self, mib, beside=0):
        """Holds this much, or less if there is not enough memory; gives back
        the rest.  Returns how much, in MiB; see limited()."""
        return self._ask('hold', mib, beside)

    def held(self):
        """How many MiB are being held."""
        return self._ask('held')

    def let_go(self):
        """Gives the memory back from now on, until hold(): LEAD at once, and
        more whenever less than that remains free of it."""
        self._ask('let_go')
        self._begun = cpu_seconds(self.pid)

    def cpu(self):
        """CPU seconds since let_go()."""
        return cpu_seconds(self.pid) - self._begun


# The process that holds the memory

def populate(at, size, libc=None):
    """Lets the kernel provide this memory."""
    libc = libc or ctypes.CDLL(None, use_errno=True)
    if not libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size),
                        POPULATE_WRITE):
        return
    number = ctypes.get_errno()
    if number != errno.EINVAL:
        raise OSError(number, f'madvise: {os.strerror(number)}')
    ctypes.memset(at, 0, size)          # an old kernel


def _chunk(_=None):
    chunk = mmap.mmap(-1, CHUNK * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    chunk.madvise(mmap.MADV_HUGEPAGE)
    buffer = (ctypes.c_char * len(chunk)).from_buffer(chunk)
    populate(ctypes.addressof(buffer), len(chunk))
    del buffer                          # else it can't be closed
    return chunk


def memory(name):
    """A line of /proc/meminfo, in MiB.  MemFree comes from sysinfo(), which
    takes much less time."""
    if name == 'MemFree':
        return os.sysconf('SC_AVPHYS_PAGES') * mmap.PAGESIZE // MIB
    with open('/proc/meminfo') as f:
        return field(f.read(), name) // MIB


class Holder:
    """What is held.  `make` makes a chunk, `memory` tells about the system's
    memory."""

    def __init__(self, make=_chunk, memory=memory):
        self.make = make
        self.memory = memory
        self.chunks = []
        self.level = None       # MiB to keep free, once memory is given back

    def held(self):
        return len(self.chunks) * CHUNK

    def hold(self, mib, beside):
        self.level = None
        available = self.memory('MemAvailable') + self.held()
        want = limited(mib, available, beside) // CHUNK
        self.release(len(self.chunks) - want)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as p:
            self.chunks += p.map(self.make, range(want - len(self.chunks)))

    def release(self, number):
        for _ in range(min(number, len(self.chunks))):
            self.chunks.pop().close()

    def let_go(self):
        self.level = self.memory('MemFree') + LEAD - REPORTED
        self.release(LEAD // CHUNK)

    def gives_back(self):
        return self.level is not None and bool(self.chunks)

    def look(self):
        """Gives back as much as has been used since the last look."""
        self.release(-(-(self.level - self.memory('MemFree')) // CHUNK))

    def obey(self, line):
        word, *numbers = line.split()
        if word == 'hold':
            self.hold(*map(int, numbers))
        elif word == 'let_go':
            self.let_go()


def main():
    # If memory becomes short, nothing else shall be killed
    with open('/proc/self/oom_score_adj', 'w') as f:
        f.write('1000')
    holder = Holder()
    # Unbuffered, for select()
    with os.fdopen(0, 'rb', buffering=0) as commands:
        while True:
            wait = PAUSE if holder.gives_back() else None
            if not select.select([commands], [], [], wait)[0]:
                holder.look()
                continue
            line = commands.readline()
            if not line:
                return
            holder.obey(line.decode())
            print(holder.held(), flush=True)


if __name__ == '__main__':
    main()
