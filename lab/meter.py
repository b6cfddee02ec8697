# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures the cost of a save or restore: time, CPU, page cache, memory, and
the response time of the monitor."""

import collections
import ctypes
import mmap
import os
import statistics
import time

from .vm import FINAL

POLL = 0.01             # seconds between two polls of a migration

Spread = collections.namedtuple('Spread', 'median least most count')


def spread(values):
    """The spread of one figure over several runs."""
    return Spread(statistics.median(values), min(values), max(values),
                  len(values))


def drop_caches():
    os.sync()
    with open('/proc/sys/vm/drop_caches', 'w') as f:
        f.write('3')


def field(text, name):
    """The number after `name:` in a file like /proc/meminfo, in bytes."""
    for line in text.splitlines():
        if line.startswith(name + ':'):
            return int(line.split()[1]) << 10
    raise ValueError(f'there is no {name} in it')


def page_cache():
    """Bytes in the host's page cache."""
    with open('/proc/meminfo') as f:
        return field(f.read(), 'Cached')


def parse_cpu(stat):
    """CPU seconds in /proc/PID/stat, in user space and in the kernel,
    including children that have exited."""
    fields = stat.rsplit(')', 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')


def cpu_seconds(pid):
    with open(f'/proc/{pid}/stat') as f:
        return parse_cpu(f.read())


def parse_busy(stat):
    """CPU seconds for which the machine was not idle, in /proc/stat."""
    fields = [int(x) for x in stat.splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf('SC_CLK_TCK')


def machine_busy():
    with open('/proc/stat') as f:
        return parse_busy(f.read())


def memory(pid, name):
    with open(f'/proc/{pid}/status') as f:
        return field(f.read(), name)


def cached(path):
    """How many bytes of a file are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
                          ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t,
                             ctypes.c_char_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with open(path, 'rb') as f:
        size = os.fstat(f.fileno()).st_size
        if not size:
            return 0
        at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED,
                       f.fileno(), 0)
        vector = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        failed = libc.mincore(at, size, vector)
        number = ctypes.get_errno()
        libc.munmap(at, size)
    if failed:
        raise OSError(number, f'mincore: {os.strerror(number)}', path)
    return mmap.PAGESIZE * sum(b & 1 for b in vector.raw)


class Unfinished(RuntimeError):
    """A migration has not ended in time, although QMP answers."""


class Machine:
    """Measures the CPU time of the whole machine, but for that which the
    function `apart` returns, from the creation of this object on."""

    def __init__(self, apart=lambda: 0):
        self.apart = apart
        self.begun = machine_busy() - apart()

    def cpu(self):
        return machine_busy() - self.apart() - self.begun


class Meter:
    """Measures a process from the creation of this object until stop().
    `apart`: see Machine."""

    def __init__(self, pid, apart=lambda: 0):
        self.pid = pid
        with open(f'/proc/{pid}/clear_refs', 'w') as f:
            f.write('5')                # reset the peak
        self.rss = memory(pid, 'VmRSS')
        self.cache = self.peak = page_cache()
        self.slowest = 0
        self.machine = Machine(apart)
        self.cpu = cpu_seconds(pid)
        self.start = time.monotonic()

    def wait(self, vm, timeout=900):
        """Waits for the end of a migration; returns the result of
        query-migrate.  Meanwhile it sends query-status and records the
        response times."""
        deadline = self.start + timeout
        while True:
            asked = time.monotonic()
            vm.command('query-status', timeout=timeout)
            self.slowest = max(self.slowest, time.monotonic() - asked)
            info = vm.command('query-migrate', timeout=timeout)
            if info.get('status') in FINAL:
                return info
            if time.monotonic() > deadline:
                raise Unfinished(f'{vm.name}: the migration is still '
                                 f'{info.get("status")}')
            self.peak = max(self.peak, page_cache())
            time.sleep(POLL)

    def stop(self, path=None):
        """Returns the figures: seconds, bytes, and CPU seconds.  `path` is the
        file that was written or read."""
        figures = {'seconds': time.monotonic() - self.start,
                   'cpu': cpu_seconds(self.pid) - self.cpu,
                   'machine_cpu': self.machine.cpu(),
                   'memory': max(memory(self.pid, 'VmHWM') - self.rss, 0),
                   'qmp': self.slowest}
        self.peak = max(self.peak, page_cache())
        figures['cache_growth'] = self.peak - self.cache
        if path:
            figures['cached'] = cached(path)
        return figures
