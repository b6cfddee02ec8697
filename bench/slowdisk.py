# SPDX-License-Identifier: GPL-2.0-or-later
"""An emulated disk with one head above a rotating platter: a FUSE file system
that consists of a single file.

Sequential access is fast, other access is slow.  The disk has no write cache:
when it reports a write as complete, the data is on the platter.  So a program
that waits for each write before it sends the next one loses a rotation,
because the position has just passed the head; a program that keeps the next
write queued does not.  The disk reads ahead, so reads lose nothing.  Of the
waiting requests, the nearest ahead is served first.  A disk may also stall
once, for seconds.

The file becomes a loop device, which needs neither device-mapper nor another
program.  `python3 -m bench.slowdisk` is the disk itself.
"""

import argparse
import errno
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time

from lab import fuse
from lab.fuse import Op

SECTOR = 512


class Model:
    """The cost of requests, in bytes and seconds.

    rate    bytes in a second, in sequence; 0: nothing costs time
    seek    seconds to move the head elsewhere, without what the platter then
            still has to rotate
    turn    seconds for one rotation"""

    SLACK = 1e-5            # tolerance for rounding errors

    def __init__(self, rate, seek, turn):
        self.rate = rate
        self.seek = seek
        self.turn = turn
        self.head = 0               # the byte that the head is at,
        self.free_at = 0            # at this time
        self.seeks = 0
        self.requests = 0

    def serve(self, offset, size, arrived, write):
        """Serves a request that arrived at the time `arrived`; returns the
        time at which it is done."""
        self.requests += 1
        begin = max(arrived, self.free_at)
        if not self.rate:
            self.free_at = begin
        elif not write and self._ahead(offset) < self.turn:
            # Data that was read ahead is in the disk's memory
            self.free_at = begin + self._ahead(offset) + size / self.rate
        else:
            self.free_at = self._reach(offset, begin) + size / self.rate
        self.head = offset + size
        return self.free_at

    def _ahead(self, offset):
        """The time until `offset` passes the head without a seek; infinite if
        the offset lies behind."""
        gap = offset - self.head
        return gap / self.rate if gap >= 0 else float('inf')

    def _reach(self, offset, begin):
        """The time at which the head is over `offset`, if it may move from the
        time `begin` on."""
        begun = begin - self.free_at
        if self._ahead(offset) < self.turn:
            wait = self._ahead(offset) - begun
        else:
            self.seeks += 1
            begin += self.seek
            wait = (offset - self.head) / self.rate - begun - self.seek
        wait %= self.turn
        return begin + (0 if wait > self.turn - self.SLACK else wait)

    def nearest(self, offsets):
        """The index of the request in `offsets` to serve next: the nearest one
        ahead, or else the one furthest back."""
        return min(range(len(offsets)),
                   key=lambda i: (offsets[i] < self.head, offsets[i]))


class Server:
    """Answers the kernel's requests.  `path` holds the disk's bytes."""

    def __init__(self, path, target, model, stall):
        self.size = os.path.getsize(path)
        self.file = os.open(path, os.O_RDWR)
        self.fuse = fuse.connect()
        self.model = model
        self.stall_at, self.stall_for = stall
        self.begun = False              # before that everything is fast
        self.written = 0
        fuse.mount(self.fuse, 'slowdisk', target, stat.S_IFREG)
        signal.signal(signal.SIGUSR1, self.begin)
        signal.signal(signal.SIGUSR2, self.tell)

    def begin(self, *_):
        self.begun = True
        self.written = self.model.seeks = self.model.requests = 0

    def tell(self, *_):
        print(json.dumps({'seeks': self.model.seeks,
                          'requests': self.model.requests}), flush=True)

    def answer(self, unique, data=b'', error=0):
        fuse.answer(self.fuse, unique, data, error)

    def run(self):
        waiting = []                    # reads and writes
        while self.receive(waiting, None if not waiting else 0):
            if not waiting:
                continue
            offsets = [request[2] for request in waiting]
            op, unique, offset, data, arrived = \
                waiting.pop(self.model.nearest(offsets))
            size = data if op == Op.READ else len(data)
            if self.begun:
                done = self.model.serve(offset, size, arrived, op == Op.WRITE)
                while (left := done - time.monotonic()) > 0:
                    if not self.receive(waiting, left):
                        return
                self.written += size if op == Op.WRITE else 0
                if self.stall_for and self.written >= self.stall_at:
                    time.sleep(self.stall_for)
                    self.stall_for = 0
            self.transfer(op, unique, offset, data)

    def receive(self, waiting, seconds):
        """Receives the requests that arrive within this many seconds, but
        waits for at least one; returns False at the end."""
        while select.select([self.fuse], [], [], seconds)[0]:
            try:
                request = fuse.receive(self.fuse)
            except OSError:             # unmounted
                return False
            self.take(request, waiting)
            seconds = 0
        return True

    def take(self, request, waiting):
        if request.op in (Op.READ, Op.WRITE):
            io = fuse.io(request.body)
            data = io.data if request.op == Op.WRITE else io.size
            waiting.append((request.op, request.unique, io.offset, data,
                            time.monotonic()))
        elif request.op not in fuse.SILENT:
            self.control(request.op, request.unique)

    def control(self, op, unique):
        if op == Op.INIT:
            self.answer(unique, fuse.init(fuse.ASYNC_READ | fuse.BIG_WRITES |
                                          fuse.ASYNC_DIO | fuse.MAX_PAGES))
        elif op == Op.GETATTR:
            self.answer(unique, fuse.attributes(fuse.ATTR.pack(
                1, self.size, self.size // SECTOR, 0, 0, 0, 0, 0, 0,
                stat.S_IFREG | 0o600, 1, 0, 0, 0, SECTOR, 0), 3600))
        elif op == Op.OPEN:
            self.answer(unique, fuse.opened())
        elif op == Op.STATFS:
            self.answer(unique, bytes(80))
        elif op in (Op.FSYNC, Op.FLUSH, Op.RELEASE, Op.DESTROY):
            self.answer(unique)
        else:
            self.answer(unique, error=errno.ENOSYS)

    def transfer(self, op, unique, offset, data):
        if op == Op.READ:
            self.answer(unique, os.pread(self.file, data, offset))
        else:
            os.pwrite(self.file, data, offset)
            self.answer(unique, fuse.written(len(data)))


class SlowDisk:
    """The disk as a context manager: `path` is a file of `size` bytes with an
    ext4 file system, which behaves like the disk after begin()."""

    def __init__(self, backing, size, rate=0, seek=0, turn=0,
                 stall=(0, 0)):
        self.path = backing + '.fuse'
        self.backing = backing
        self.size = size
        self.options = ['--rate', str(rate), '--seek', str(seek),
                        '--turn', str(turn),
                        '--stall', *map(str, stall)]
        self.process = None

    def __enter__(self):
        with open(self.backing, 'wb') as f:
            f.truncate(self.size)
        subprocess.run(['mkfs.ext4', '-q', '-F', '-E',
                        'lazy_itable_init=0,lazy_journal_init=0',
                        self.backing], check=True, capture_output=True)
        open(self.path, 'w').close()
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'bench.slowdisk', self.backing, self.path,
             *self.options], stdout=subprocess.PIPE, text=True,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        if self.process.stdout.readline() != 'ready\n':
            raise RuntimeError('the emulated disk does not start; FUSE may be '
                               'missing here (/dev/fuse)')
        return self

    def begin(self):
        """From now on requests cost time; resets the counters."""
        self.process.send_signal(signal.SIGUSR1)

    def counts(self):
        """The number of seeks and requests since begin()."""
        self.process.send_signal(signal.SIGUSR2)
        return json.loads(self.process.stdout.readline())

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        subprocess.run(['umount', '-l', self.path], capture_output=True)
        for path in (self.path, self.backing):
            os.unlink(path)


def main():
    parser = argparse.ArgumentParser(prog='python3 -m bench.slowdisk')
    parser.add_argument('backing')
    parser.add_argument('target')
    parser.add_argument('--rate', type=float, default=0)
    parser.add_argument('--seek', type=float, default=0)
    parser.add_argument('--turn', type=float, default=0)
    parser.add_argument('--stall', type=float, nargs=2, default=(0, 0),
                        metavar=('BYTES', 'SECONDS'))
    args = parser.parse_args()
    server = Server(args.backing, args.target, Model(args.rate, args.seek,
                                                      args.turn), args.stall)
    print('ready', flush=True)
    server.run()


if __name__ == '__main__':
    main()
