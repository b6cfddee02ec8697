# SPDX-License-Identifier: GPL-2.0-or-later
"""The sides that are compared.  Each measures saves and restores of the same
contents, independently of the others.

run(place, content) returns figures by phase, {'save': {...}, 'restore':
{...}}, as from Meter.stop(); facts() describes the side."""

import contextlib
import ctypes
import json
import mmap
import os
import subprocess
import tempfile
import threading
import time

from lab import fs
from lab.content import MIB
from lab.guest import build_checker, configure_checker
from lab.image import blocks
from lab.memory import huge_pages
from lab.meter import Unfinished, cached, page_cache, parse_busy
from lab.uring import io_uring_error
from lab.vm import VM, Mode

from . import conditions
from .place import Place

PAGE = 4096

ENGINE = 'x-direct-io-engine'
UNLIMITED = 1 << 40


# Kinds of guest memory, as arguments of the memory object
MEMORY = {
    # anonymous, and touched before: its first use costs nothing later
    'touched': 'memory-backend-ram,prealloc=on,'
               f'prealloc-threads={os.cpu_count() or 1}',
    # what a user's QEMU has that has just been started
    'fresh': 'memory-backend-ram',
    conditions.RECLAIMED: 'memory-backend-ram',
    'memfd': 'memory-backend-memfd',
    'hugetlb': 'memory-backend-memfd,hugetlb=on,hugetlbsize=2M',
}


def start(emulator, place, content, incoming=False, name='bench',
          memory='touched'):
    """Starts a paused guest with the given kind of memory."""
    ram = content.ram
    conditions.prepare(ram, memory)
    return VM(emulator, place.sockets, name, ram=ram, incoming=incoming,
              patience=300,
              args=('-object', f'{MEMORY[memory]},id=ram0,size={ram}M',
                    '-machine', 'memory-backend=ram0')
              + (() if incoming else ('-S',)))


class Lacking(Exception):
    """This host does not have what a side needs."""


@contextlib.contextmanager
def pages_for(mib):
    """So many MiB of huge pages."""
    with huge_pages(mib) as there:
        if not there:
            raise Lacking(f'not {mib} MiB of huge pages')
        yield


def completed(side, what, info):
    if info['status'] != 'completed':
        raise RuntimeError(f'{side.name}: {what} {info["status"]}: '
                           f'{info.get("error-desc")}')
    return info


def sync(path):
    """Stock reports "completed" before the data is on the disk; ours reports
    it afterwards and has nothing left to do here."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def told(info):
    """The I/O statistics of query-migrate that are worth keeping."""
    direct = info.get('direct-io', {})
    return {key: direct[key] for key in ('engine', 'requests', 'depth')
            if key in direct}


class Side:
    """The common base of all sides.

    works_alone     whether nothing but the measured process has work to do,
                    so that other use of the CPUs is a disturbance"""

    works_alone = False


class Migration(Side):
    """A QEMU that is restored from an image, the same for all sides, and then
    saves to a fresh file.  Subclasses have `emulator`, `name`, and

    image               the kind of images, see Place.image()
    memory              the kind of memory it is restored into, see MEMORY
    save(vm, path)      saves, and returns the figures
    restore(vm, path)   likewise"""

    memory = 'touched'

    def make_image(self, place, content, path):
        vm = start(self.emulator, place, content)
        try:
            content.fill(vm.pid)
            self.save(vm, path)
        finally:
            vm.kill()

    def image_of(self, place, content):
        """The path of the image."""
        return place.image(content, self.image, lambda path: self.make_image(
            place, content, path))

    def run(self, place, content):
        image = self.image_of(place, content)
        if self.memory == 'hugetlb':
            conditions.give_all(content.ram)
        with pages_for(content.ram) if self.memory == 'hugetlb' else \
                contextlib.nullcontext():
            vm = start(self.emulator, place, content, incoming=True,
                       memory=self.memory)
            try:
                restore = self.restore(vm, image)
                content.check(vm.pid)
                with place.fresh() as path:
                    return {'save': self.save(vm, path), 'restore': restore}
            finally:
                vm.kill()


class Guest(Migration):
    """A QEMU that saves to a file with mapped-ram.

    program     the name of the emulator: ours, stock, base
    channels    of multifd; 0 for none
    engine      of ours; None: the emulator chooses
    bandwidth   a limit in bytes per second, or None
    legacy      whether the main thread looks for zero pages, as QEMU since 9.0
                does for guests of older machine types; else the channels do,
                as it does by default"""

    image = 'mapped'

    def __init__(self, program, emulator, channels, direct, engine=None,
                 bandwidth=None, legacy=False, memory='touched'):
        self.memory = memory
        self.works_alone = direct
        self.program = program
        self.emulator = emulator
        self.mode = Mode(channels, direct)
        self.engine = engine
        self.bandwidth = bandwidth
        self.legacy = legacy
        words = [f'{program} {emulator.version}',
                 'direct' if direct else 'buffered']
        if engine:
            words.append(engine)
        if legacy:
            words.append('legacy')
        if memory not in ('touched', 'fresh', conditions.RECLAIMED):
            words.append(memory)
        words.append(f'{channels} ch' if channels else 'no multifd')
        self.name = ', '.join(words)

    def facts(self):
        return {'program': self.program, 'version': self.emulator.version,
                'channels': self.mode.channels, 'direct': self.mode.direct,
                'engine': self.engine, 'legacy': self.legacy,
                'memory': self.memory}

    def setup(self, vm):
        params = {'max_bandwidth': self.bandwidth or UNLIMITED}
        if self.engine:
            params[ENGINE] = self.engine
        if self.mode.channels and self.emulator.detects_in_channels:
            params['zero_page_detection'] = 'legacy' if self.legacy \
                else 'multifd'
        vm.setup(self.mode, **params)

    def save(self, vm, path, timeout=900):
        self.setup(vm)
        conditions.ready(vm.ram, self.memory)
        meter = conditions.meter(vm.pid)
        vm.start_save('file:' + path)
        info = completed(self, 'save', meter.wait(vm, timeout))
        sync(path)
        return {**meter.stop(path), **told(info),
                'file': os.stat(path).st_blocks * 512}

    def restore(self, vm, path):
        self.setup(vm)
        conditions.ready(vm.ram, self.memory)
        meter = conditions.meter(vm.pid)
        vm.command('migrate-incoming', {'uri': 'file:' + path}, timeout=900)
        info = completed(self, 'restore', meter.wait(vm))
        return {**meter.stop(path), **told(info)}


class Pipe(Migration):
    """A QEMU that saves through a pipe to a program that uses direct I/O, as
    libvirt 9 does."""

    image = 'stream'
    SAVE = 'exec:exec dd of={} oflag=direct bs=1M iflag=fullblock ' \
           'conv=fdatasync status=none'
    RESTORE = 'exec:exec dd if={} iflag=direct bs=1M status=none'

    def __init__(self, program, emulator):
        self.emulator = emulator
        self.name = f'{program} {emulator.version}, exec: direct dd'

    def facts(self):
        return {'program': 'exec', 'version': self.emulator.version}

    def migrate(self, vm, command, uri):
        vm.command('migrate-set-parameters', {'max-bandwidth': UNLIMITED})
        conditions.ready(vm.ram)
        meter = conditions.meter(vm.pid)
        vm.command(command, {'uri': uri}, timeout=900)
        completed(self, command, meter.wait(vm))
        while children(vm.pid):
            time.sleep(0.005)
        return meter

    def save(self, vm, path):
        meter = self.migrate(vm, 'migrate', self.SAVE.format(path))
        sync(path)
        return meter.stop(path)

    def restore(self, vm, path):
        meter = self.migrate(vm, 'migrate-incoming',
                             self.RESTORE.format(path))
        return meter.stop(path)


def children(pid):
    """The children of a process that have not been waited for."""
    found = []
    for task in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{task}/children') as f:
            found += f.read().split()
    return found


class Limit(Side):
    """A side that shows what the machine can do."""

    works_alone = True


class Fio(Limit):
    """The performance of the disk: sequential direct I/O of 1 MiB, 16 in
    flight, for as many bytes as the guest has data.

    final       whether the file has its size before it is written; else each
                write makes it longer
    huge        whether its memory is of huge pages, as a guest's often is:
                then a request has fewer pieces
    runs        a Guest: only the content's runs of data are written and read,
                each at its offset, 64 in flight; written to a file of final
                size, but read from the guest's image, because the same runs
                are not everywhere on the disk equally fast"""

    JOB = 'limit'

    def __init__(self, final=False, huge=False, runs=None):
        self.final = final or bool(runs)
        self.huge = huge
        self.runs = runs
        self.name = 'fio, ' + ('runs of data' if runs else
                               'file of final size' if final else 'fresh file')
        self.name += ', huge pages' if huge else ''

    def facts(self):
        return {'program': 'fio', 'final': self.final, 'huge': self.huge,
                'runs': bool(self.runs), 'ioengine': self.ioengine()}

    @staticmethod
    def ioengine():
        return 'libaio' if io_uring_error() else 'io_uring'

    def amount(self, rw, content, offset):
        """The options that define how much is written or read, and where."""
        size = content.data_bytes()
        if not self.runs:
            return [f'--rw={rw}', '--bs=1M', f'--size={size}', '--iodepth=16']
        run = content.run_bytes()
        return [f'--rw={rw}:{run}', f'--bs={run}', f'--io_size={size}',
                f'--offset={offset}', f'--size={content.ram}M',
                '--iodepth=64']

    def command(self, path, rw, content, offset):
        return ['fio', f'--name={self.JOB}',
                f'--filename={os.path.abspath(path)}',
                *self.amount(rw, content, offset),
                f'--ioengine={self.ioengine()}', '--direct=1', '--end_fsync=1',
                f'--fallocate={"truncate" if self.final else "none"}',
                f'--iomem={"mmaphuge" if self.huge else "malloc"}',
                # fio's own start and end take long, compared with short jobs
                '--exec_prerun=cat /proc/stat',
                '--exec_postrun=cat /proc/stat', '--output-format=json']

    def job(self, path, rw, content, offset=0):
        conditions.ready(content.ram)
        before = page_cache()
        apart = conditions.apart()
        with tempfile.TemporaryDirectory() as where:
            out = subprocess.run(self.command(path, rw, content, offset),
                                 cwd=where, check=True, capture_output=True,
                                 text=True).stdout
            busy = [self.busy(os.path.join(where, f'{self.JOB}.{when}.txt'))
                    for when in ('prerun', 'postrun')]
        apart = conditions.apart() - apart
        job = json.loads(out[out.index('{'):])['jobs'][0]
        seconds = job['job_runtime'] / 1000
        return {'seconds': seconds,
                'cpu': seconds * (job['usr_cpu'] + job['sys_cpu']) / 100,
                'machine_cpu': busy[1] - busy[0] - apart,
                'cache_growth': max(page_cache() - before, 0),
                'cached': cached(path)}

    @staticmethod
    def busy(path):
        with open(path) as f:
            return parse_busy(f.read())

    def run(self, place, content):
        with place.fresh('fio') as path, \
                pages_for(32) if self.huge else contextlib.nullcontext():
            save = self.job(path, 'write', content)
            offset = 0
            if self.runs:
                path = self.runs.image_of(place, content)
                offset = next(block.pages_offset for block in blocks(path)
                              if block.length == content.ram * MIB)
            return {'save': save,
                    'restore': self.job(path, 'read', content, offset)}


class Scan(Limit):
    """Reads zeros from memory: the minimum cost of zero page detection with
    this number of channels, but with no more threads than CPUs."""

    def __init__(self, channels):
        self.channels = channels
        self.threads = min(channels, os.cpu_count() or 1)
        self.name = f'scan of memory, {self.threads} threads'

    def facts(self):
        return {'program': 'scan', 'channels': self.channels}

    def run(self, place, content):
        size = content.ram * MIB
        libc = ctypes.CDLL(None)
        libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p,
                                ctypes.c_size_t]
        # Hundreds of MiB, repeatedly: far more than the CPU caches hold
        part = min(size, 512 * MIB)
        with mmap.mmap(-1, part, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as m:
            m.madvise(mmap.MADV_HUGEPAGE)
            for offset in range(0, part, 4096):
                m[offset] = 0
            buffer = (ctypes.c_char * part).from_buffer(m)
            at = ctypes.addressof(buffer)
            threads = self.threads
            each = part // threads - 4096

            def scan(number):
                first = at + number * (part // threads)
                for _ in range(size // part):
                    libc.memcmp(first, first + 64, each)

            pool = [threading.Thread(target=scan, args=(i,))
                    for i in range(threads)]
            machine = conditions.machine()
            cpu = time.process_time()
            begin = time.monotonic()
            for thread in pool:
                thread.start()
            for thread in pool:
                thread.join()
            figures = {'seconds': time.monotonic() - begin,
                       'cpu': time.process_time() - cpu,
                       'machine_cpu': machine.cpu()}
            del buffer
        return {'save': figures}


class Populate(Limit):
    """First use of as much memory as the guest has, by one thread for each
    CPU: the minimum cost of a restore into fresh memory.

    memory      the kind of it: fresh, or reclaimed"""

    threads = os.cpu_count() or 1
    POPULATE_WRITE = 23                 # MADV_POPULATE_WRITE

    def __init__(self, memory='fresh'):
        self.memory = memory
        self.name = f'first use of memory, {self.threads} threads'

    def facts(self):
        return {'program': 'populate'}

    def run(self, place, content):
        size = content.ram * MIB
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t,
                                 ctypes.c_int]
        conditions.prepare(content.ram, self.memory)
        conditions.ready(content.ram, self.memory)
        with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as m:
            m.madvise(mmap.MADV_HUGEPAGE)
            buffer = (ctypes.c_char * size).from_buffer(m)
            at = ctypes.addressof(buffer)
            part = size // self.threads & -4096

            # No new thread gets a stack while memory is being populated
            together = threading.Barrier(self.threads + 1)
            errors = []

            def populate(number):
                together.wait()
                if libc.madvise(at + number * part, part,
                                self.POPULATE_WRITE):
                    errors.append(os.strerror(ctypes.get_errno()))

            pool = [threading.Thread(target=populate, args=(i,))
                    for i in range(self.threads)]
            for thread in pool:
                thread.start()
            machine = conditions.machine()
            cpu = time.process_time()
            begin = time.monotonic()
            together.wait()
            for thread in pool:
                thread.join()
            figures = {'seconds': time.monotonic() - begin,
                       'cpu': time.process_time() - cpu,
                       'machine_cpu': machine.cpu()}
            del buffer
        if errors:
            raise Lacking(f'madvise: {errors[0]}')
        return {'restore': figures}


class OnTmpfs(Guest):
    """A save to memory and the restore from it: the upper limit of the
    engine."""

    def run(self, place, content):
        where = place.path('tmpfs')
        with fs.mounted('tmpfs', where, 2 * content.ram * MIB + 512 * MIB):
            there = Place(where)
            try:
                return super().run(there, content)
            finally:
                there.close()


class Live(Guest):
    """A save of a running guest that rewrites random pages of its memory.

    rate        how much it rewrites, in bytes per second, about

    A save that has not ended after PATIENCE seconds, because the guest is
    faster, is given up."""

    PATIENCE = 60
    DIRTY = 64                          # pages in a round of the guest
    LOOPS = 1 << 20
    COSTS = {}          # by emulator: seconds of a round; see costs()
    ATTEMPTS = 3
    OFF = 0.05          # how far the rate may be from the wanted one

    def __init__(self, *args, rate, **kwargs):
        super().__init__(*args, **kwargs)
        self.works_alone = False
        self.rate = rate
        self.name += f', {rate // 1000000} MB/s'

    def facts(self):
        return {**super().facts(), 'rate': self.rate}

    def boot(self, place, ram, pause):
        rom = configure_checker(build_checker(place.sockets),
                                place.path('guest.rom'), dirty=self.DIRTY,
                                check=1, pause=pause)
        conditions.prepare(ram)
        vm = VM(self.emulator, place.sockets, 'live', ram=ram,
                firmware=rom, patience=300)
        vm.wait_guest('tick', 2)
        return vm

    def round_seconds(self, vm):
        """Measures how long the guest takes for a round."""
        first = vm.last_number('tick')
        begin = time.monotonic()
        time.sleep(2)
        return (time.monotonic() - begin) / (vm.last_number('tick') - first)

    def costs(self, place):
        """How many seconds a round takes without idle loops, and how many each
        of these adds; measured once for an emulator, in small guests."""
        if self.emulator.path not in self.COSTS:
            seconds = []
            for pause in (0, self.LOOPS):
                vm = self.boot(place, 128, pause)
                try:
                    seconds.append(self.round_seconds(vm))
                finally:
                    vm.kill()
            least, most = seconds
            self.COSTS[self.emulator.path] = \
                least, (most - least) / self.LOOPS
        return self.COSTS[self.emulator.path]

    def wanted(self):
        """Seconds of a round that lead to the rate."""
        return self.DIRTY * PAGE / self.rate

    def corrected(self, pause, seconds, loop):
        """The number of idle loops, each of which takes `loop` seconds, for
        the rate, if with `pause` of them a round took `seconds`."""
        return max(int(pause + (self.wanted() - seconds) / loop), 0)

    def at_rate(self, place, ram):
        """A guest at the rate, or nearly, and its rate.  Its rounds take
        longer than those of small guests, and more so if others use the
        CPUs."""
        seconds, loop = self.costs(place)
        pause = self.corrected(0, seconds, loop)
        for more in reversed(range(self.ATTEMPTS)):
            vm = self.boot(place, ram, pause)
            try:
                seconds = self.round_seconds(vm)
            except BaseException:
                vm.kill()
                raise
            better = self.corrected(pause, seconds, loop)
            if abs(self.wanted() / seconds - 1) <= self.OFF or \
                    better == pause or not more:
                return vm, self.DIRTY * PAGE / seconds
            vm.kill()
            pause = better

    def run(self, place, content):
        vm, rate = self.at_rate(place, content.ram)
        try:
            with place.fresh() as path:
                try:
                    save = self.save(vm, path, self.PATIENCE)
                except Unfinished:
                    return {'save': {'seconds': self.PATIENCE, 'given_up': 1,
                                     'dirtied': rate}}
            info = vm.migration()
            # The CPU time includes the guest's
            save.pop('cpu')
            return {'save': {**save, 'dirtied': rate,
                             'downtime': info['downtime'] / 1000,
                             'passes': info['ram']['dirty-sync-count']}}
        finally:
            vm.kill()


class OnEmulatedDisk(Guest):
    """A save to an emulated disk of a guest that was filled in memory, and the
    restore from the disk.

    model       of the disk, see SlowDisk"""

    def __init__(self, *args, model=None, restore=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.works_alone = False
        self.model = model
        self.restores = restore

    def run(self, place, content):
        size = 2 * content.ram * MIB + 512 * MIB
        with place.on_slow_disk(size, **self.model) as (slow, disk), \
                slow.fresh() as path:
            vm = start(self.emulator, slow, content)
            try:
                content.fill(vm.pid)
                result = {'save': self.save(vm, path)}
            finally:
                vm.kill()
            result['save']['disk'] = disk.counts()
            if self.restores:
                disk.begin()
                vm = start(self.emulator, slow, content, incoming=True)
                try:
                    result['restore'] = self.restore(vm, path)
                    content.check(vm.pid)
                finally:
                    vm.kill()
                result['restore']['disk'] = disk.counts()
            return result


class Socket(Guest):
    """A migration over TCP with multifd, which must be as fast as on the
    base.  It never uses direct I/O, so it does not set `works_alone`."""

    def setup_socket(self, vm):
        vm.set_capabilities('multifd', state=self.mode.channels > 0)
        vm.command('migrate-set-parameters', {
            'max-bandwidth': UNLIMITED,
            **({'multifd-channels': self.mode.channels}
               if self.mode.channels else {})})

    def run(self, place, content):
        source = start(self.emulator, place, content, name='source')
        try:
            target = start(self.emulator, place, content, incoming=True,
                           name='target')
            try:
                return self.measure(source, target, content)
            finally:
                target.kill()
        finally:
            source.kill()

    def measure(self, source, target, content):
        content.fill(source.pid)
        self.setup_socket(source)
        self.setup_socket(target)
        target.command('migrate-incoming', {'uri': 'tcp:127.0.0.1:0'})
        port = target.command('query-migrate')['socket-address'][0]['port']
        conditions.ready(content.ram)
        receiving = conditions.meter(target.pid)
        sending = conditions.meter(source.pid)
        source.command('migrate', {'uri': f'tcp:127.0.0.1:{port}'})
        completed(self, 'migration', sending.wait(source))
        completed(self, 'migration', receiving.wait(target))
        result = {'save': sending.stop(), 'restore': receiving.stop()}
        content.check(target.pid)
        return result
