# SPDX-License-Identifier: GPL-2.0-or-later
"""An emulated disk with one head: a FUSE file system that is a single file.

It is fast in sequence and slow elsewhere.  A request costs the time of its
bytes at the disk's rate; in front of that, a gap that lies ahead costs the
time in which the head passes over it, but never more than a seek, and a way
back costs a seek.  Of the requests that wait, the nearest ahead is served
first, as a disk with a queue of its own does.  Reads and writes cost the same.
A disk may also stall once, for seconds.

The file is made into a loop device; so that needs neither device-mapper nor
another program.  `python3 -m bench.slowdisk` is the disk itself.
"""

import argparse
import ctypes
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time

# Of the kernel's include/uapi/linux/fuse.h
GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, DESTROY = \
    3, 14, 15, 16, 17, 18, 20, 25, 26, 38
FORGET, BATCH_FORGET, INTERRUPT = 2, 42, 36
ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES = 1, 1 << 5, 1 << 15, 1 << 22
IN = struct.Struct('<IIQQIIII')         # len opcode unique nodeid ...
OUT = struct.Struct('<IiQ')             # len error unique
ATTR = struct.Struct('<QQQQQQIIIIIIIIII')
RW = struct.Struct('<QQIIQII')          # fh offset size ...
INIT_OUT = struct.Struct('<IIIIHHIIHHI28x')
LARGEST = 1 << 20
SECTOR = 512


class Model:
    """What requests cost.  All in bytes and seconds.

    rate    bytes in a second
    seek    seconds until the head is elsewhere"""

    def __init__(self, rate, seek):
        self.rate = rate
        self.seek = seek
        self.head = 0
        self.seeks = 0
        self.requests = 0

    def move(self, offset):
        """What it costs to bring the head to `offset`."""
        if not self.rate:
            return 0
        if offset < self.head:
            return self.seek
        return min(self.seek, (offset - self.head) / self.rate)

    def serve(self, offset, size):
        """Serves a request; returns what it cost."""
        cost = self.move(offset)
        if cost and cost >= self.seek:
            self.seeks += 1
        self.requests += 1
        self.head = offset + size
        return cost + (size / self.rate if self.rate else 0)

    def nearest(self, offsets):
        """Which of the requests at `offsets` to serve next: the nearest one
        ahead, or else the one furthest back."""
        return min(range(len(offsets)),
                   key=lambda i: (offsets[i] < self.head, offsets[i]))


class Server:
    """Answers the kernel.  `path` holds the disk's bytes."""

    def __init__(self, path, target, model, stall):
        self.size = os.path.getsize(path)
        self.file = os.open(path, os.O_RDWR)
        self.fuse = os.open('/dev/fuse', os.O_RDWR)
        self.model = model
        self.stall_at, self.stall_for = stall
        self.begun = False              # before that all is fast
        self.written = 0
        self.free_at = 0
        options = f'fd={self.fuse},rootmode=100000,user_id=0,group_id=0'
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b'slowdisk', target.encode(), b'fuse', 0,
                      options.encode()):
            raise OSError(ctypes.get_errno(), 'mount of a FUSE file system')
        signal.signal(signal.SIGUSR1, self.begin)
        signal.signal(signal.SIGUSR2, self.tell)

    def begin(self, *_):
        self.begun = True
        self.written = self.model.seeks = self.model.requests = 0

    def tell(self, *_):
        print(json.dumps({'seeks': self.model.seeks,
                          'requests': self.model.requests}), flush=True)

    def answer(self, unique, data=b'', error=0):
        os.write(self.fuse,
                 OUT.pack(OUT.size + len(data), -error, unique) + data)

    def run(self):
        waiting = []                    # reads and writes
        while True:
            ready, _, _ = select.select([self.fuse], [], [],
                                        0 if waiting else None)
            if ready:
                try:
                    request = os.read(self.fuse, LARGEST + 4096)
                except OSError:         # unmounted
                    return
                self.take(request, waiting)
            elif waiting:
                offsets = [offset for _, _, offset, _ in waiting]
                self.transfer(*waiting.pop(self.model.nearest(offsets)))

    def take(self, request, waiting):
        _, opcode, unique, *_ = IN.unpack_from(request)
        body = request[IN.size:]
        if opcode in (READ, WRITE):
            _, offset, size, *_ = RW.unpack_from(body)
            data = body[RW.size:RW.size + size] if opcode == WRITE else size
            waiting.append((opcode, unique, offset, data))
        elif opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            pass                        # these get no answer
        else:
            self.control(opcode, unique)

    def control(self, opcode, unique):
        if opcode == INIT:
            flags = ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES
            self.answer(unique, INIT_OUT.pack(7, 31, 1 << 17, flags, 64, 48,
                                              LARGEST, 1, LARGEST // 4096, 0,
                                              0))
        elif opcode == GETATTR:
            attr = ATTR.pack(1, self.size, self.size // SECTOR, 0, 0, 0, 0, 0,
                             0, 0o100600, 1, 0, 0, 0, SECTOR, 0)
            self.answer(unique, struct.pack('<QII', 3600, 0, 0) + attr)
        elif opcode == OPEN:
            self.answer(unique, struct.pack('<QII', 0, 0, 0))
        elif opcode == STATFS:
            self.answer(unique, bytes(80))
        elif opcode in (FSYNC, FLUSH, RELEASE, DESTROY):
            self.answer(unique)
        else:
            self.answer(unique, error=38)           # ENOSYS

    def transfer(self, opcode, unique, offset, data):
        size = data if opcode == READ else len(data)
        if self.begun:
            self.pay(self.model.serve(offset, size))
            self.written += size if opcode == WRITE else 0
            if self.stall_for and self.written >= self.stall_at:
                time.sleep(self.stall_for)
                self.stall_for = 0
        if opcode == READ:
            self.answer(unique, os.pread(self.file, size, offset))
        else:
            os.pwrite(self.file, data, offset)
            self.answer(unique, struct.pack('<II', size, 0))

    def pay(self, cost):
        """Lets the time pass; what sleeping takes too long is given back."""
        self.free_at = max(self.free_at, time.monotonic() - 0.01) + cost
        time.sleep(max(self.free_at - time.monotonic(), 0))


class SlowDisk:
    """The disk, as a context manager: `path` is a file of `size` bytes with
    an ext4 on it, that behaves like the disk after begin()."""

    def __init__(self, backing, size, rate=0, seek=0, stall=(0, 0)):
        self.path = backing + '.fuse'
        self.backing = backing
        self.size = size
        self.options = ['--rate', str(rate), '--seek', str(seek),
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
        """From now on requests cost time, and are counted anew."""
        self.process.send_signal(signal.SIGUSR1)

    def counts(self):
        """How many seeks and requests there were since begin()."""
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
    parser.add_argument('--stall', type=float, nargs=2, default=(0, 0),
                        metavar=('BYTES', 'SECONDS'))
    args = parser.parse_args()
    server = Server(args.backing, args.target, Model(args.rate, args.seek),
                    args.stall)
    print('ready', flush=True)
    server.run()


if __name__ == '__main__':
    main()
