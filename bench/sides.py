# SPDX-License-Identifier: GPL-2.0-or-later
"""The things that are compared.  Each measures one save and one restore of
the same amount of random data, and knows nothing of the others."""

import json
import os
import subprocess
import time

from e2e.lib.vm import VM, Mode


def drop_caches():
    os.sync()
    with open('/proc/sys/vm/drop_caches', 'w') as f:
        f.write('3')


def page_cache():
    """Bytes in the host's page cache."""
    with open('/proc/meminfo') as f:
        for line in f:
            if line.startswith('Cached:'):
                return int(line.split()[1]) << 10
    raise RuntimeError('no Cached: in /proc/meminfo')


def cpu_seconds(pid):
    """CPU time of a process so far, in user space and in the kernel."""
    with open(f'/proc/{pid}/stat') as f:
        fields = f.read().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class Meter:
    """Wall time, CPU time of `pid`, and page cache, from start to stop."""

    def __init__(self, pid):
        self.pid = pid
        self.cache = page_cache()
        self.cpu = cpu_seconds(pid)
        self.start = time.monotonic()

    def stop(self):
        return {'seconds': time.monotonic() - self.start,
                'cpu': cpu_seconds(self.pid) - self.cpu,
                'cache': max(page_cache() - self.cache, 0)}


class Guest:
    """A QEMU with random RAM: it restores that from an image, measured, and
    saves it again, measured."""

    def __init__(self, emulator, channels, direct, ram):
        self.emulator = emulator
        self.mode = Mode(channels, direct)
        self.ram = ram
        self.name = f'{emulator.name}, {self.mode}'

    def vm(self, directory, backend, incoming):
        return VM(self.emulator, directory, 'bench', ram=self.ram,
                  incoming=incoming,
                  args=('-object', backend + f',id=ram0,size={self.ram}M',
                        '-machine', 'memory-backend=ram0')
                  + (() if incoming else ('-S',)))

    def make_image(self, directory, data, image):
        """Saves a guest whose RAM is the file `data`."""
        vm = self.vm(directory, 'memory-backend-file,share=off,'
                     f'mem-path={data}', False)
        try:
            vm.save('file:' + image, self.mode, timeout=600)
        finally:
            vm.kill()

    def run(self, directory, image):
        """Restores from `image`, and saves to a fresh file.  The memory is
        anonymous, and touched before, so that its first use costs nothing
        here."""
        fresh = os.path.join(directory, 'fresh')
        vm = self.vm(directory, 'memory-backend-ram,prealloc=on', True)
        try:
            vm.setup(self.mode)
            drop_caches()
            meter = Meter(vm.pid)
            vm.command('migrate-incoming', {'uri': 'file:' + image})
            info = vm.wait_migration(600)
            restore = meter.stop()
            if info['status'] != 'completed':
                raise RuntimeError(f'{self.name}: restore {info["status"]}')
            drop_caches()
            meter = Meter(vm.pid)
            vm.start_save('file:' + fresh)
            info = vm.wait_migration(600)
            if info['status'] != 'completed':
                raise RuntimeError(f'{self.name}: save {info["status"]}: '
                                   f'{info.get("error-desc")}')
            # Stock reports completed before this; ours has nothing left here
            fd = os.open(fresh, os.O_WRONLY)
            os.fdatasync(fd)
            os.close(fd)
            save = meter.stop()
        finally:
            vm.kill()
            if os.path.exists(fresh):
                os.unlink(fresh)
        return {'save': save, 'restore': restore}


class Fio:
    """What the disk can do: sequential direct I/O of 1 MiB, 16 in flight."""

    name = 'fio, direct'

    def __init__(self, ram):
        self.ram = ram

    def _job(self, path, rw):
        drop_caches()
        cache = page_cache()
        out = subprocess.run(
            ['fio', '--name=limit', f'--filename={path}', f'--rw={rw}',
             '--bs=1M', f'--size={self.ram}M', '--ioengine=io_uring',
             '--iodepth=16', '--direct=1', '--fallocate=none',
             '--refill_buffers' if rw == 'write' else '--norandommap',
             '--end_fsync=1', '--output-format=json'],
            check=True, capture_output=True, text=True).stdout
        job = json.loads(out[out.index('{'):])['jobs'][0]
        seconds = job['job_runtime'] / 1000
        return {'seconds': seconds,
                'cpu': seconds * (job['usr_cpu'] + job['sys_cpu']) / 100,
                'cache': max(page_cache() - cache, 0)}

    def run(self, directory, _image):
        path = os.path.join(directory, 'fio')
        try:
            save = self._job(path, 'write')
            return {'save': save, 'restore': self._job(path, 'read')}
        finally:
            if os.path.exists(path):
                os.unlink(path)
