# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads 4 KiB at a time from a file with direct I/O, with a pause after each
read: shows how long a page read takes beside other reads.

    python3 -m bench.probe FILE

begins when a line arrives on its standard input, and ends at the end of that
or on SIGTERM.  Then it writes its figures as JSON.  It is a process of its own,
because a thread would wait for the interpreter, and measure that."""

import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import time

PAGE = 4096
PAUSE = 0.001                       # seconds
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def figures(times):
    """{'probe-median', 'probe-p99'}, or nothing if it never began to
    read."""
    times = sorted(times)
    return {f'probe-{name}': times[int(share * (len(times) - 1))]
            for name, share in (('median', 0.5), ('p99', 0.99)) if times}


def read(path, ended):
    """The times of reads in microseconds, until ended(seconds), which waits as
    long, returns true; one at least, however late this process runs."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    pages = os.fstat(fd).st_size // PAGE
    times = []
    with mmap.mmap(-1, PAGE) as buffer:
        while True:
            page = random.randrange(pages)
            begin = time.monotonic()
            os.preadv(fd, [buffer], page * PAGE)
            times.append((time.monotonic() - begin) * 1e6)
            if ended(PAUSE):
                break
    os.close(fd)
    return times


class Probe:
    """Such a process."""

    def __init__(self, path):
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'bench.probe', os.path.abspath(path)],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process.stdout.readline()         # it is ready
        self._figures = {}

    def begin(self):
        self._process.stdin.write('begin\n')
        self._process.stdin.flush()

    def stop(self):
        """Stops reading, without waiting for the figures; may be called
        again."""
        self._process.stdin.close()

    def close(self):
        self.stop()
        if self._process.stdout.closed:
            return
        with self._process.stdout as out:
            said = out.read()
        if self._process.wait():
            raise RuntimeError('the process that reads pages has failed')
        self._figures = json.loads(said)

    def figures(self):
        """In microseconds; see figures() above."""
        self.close()
        return self._figures


def main(path):
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # it is for the parent

    def ended(seconds):
        return bool(stopped or select.select([0], [], [], seconds)[0])

    print('ready', flush=True)
    times = read(path, ended) if os.read(0, 100) else []
    print(json.dumps(figures(times)))


if __name__ == '__main__':
    main(sys.argv[1])
