# SPDX-License-Identifier: GPL-2.0-or-later
"""Which data uses which descriptor, and that no descriptor is leaked."""

import os
import re

from lab import image, meter
from lab.qmp import QMPError
from lab.vm import Mode

from .faults import HeldRestore, faulty, forget_holds, held_save, open_gate
from .harness import test
from .strace import need_strace, strace

MIB = 1 << 20

CALLS = ('open,openat,dup,dup2,dup3,fcntl,close,read,write,pread64,pwrite64,'
         'readv,writev,preadv,pwritev,preadv2,pwritev2,fdatasync,fsync')
LINE = re.compile(r'^(\d+)\s+(\w+)\((?:(\d+)<([^>]*)>)?(.*)\)\s*='
                  r'\s*(-?\d+)(?:<([^>]*)>)?')


def joined(log):
    """Yields the lines of a trace, with interrupted calls rejoined."""
    pending = {}
    with open(log, errors='replace') as f:
        for line in f:
            line = line.rstrip('\n')
            pid = line.split(None, 1)[0]
            if line.endswith('<unfinished ...>'):
                pending[pid] = line[:-len('<unfinished ...>')].rstrip()
                continue
            resumed = re.match(r'^\d+\s+<\.\.\. \w+ resumed>(.*)', line)
            if resumed:
                line = pending.pop(pid, pid) + resumed.group(1)
            yield line


class Trace:
    """The transfers to or from one file: (direct, offset, length)."""

    def __init__(self, log, path):
        self.transfers = []
        self.synced = 0
        self.opens = 0
        direct, position = {}, {}
        for line in joined(log):
            match = LINE.match(line)
            if not match:
                continue
            _, call, fd, name, rest, result, new = match.groups()
            result = int(result)
            if call in ('open', 'openat') and result >= 0 and new == path:
                direct[result] = 'O_DIRECT' in rest
                position[result] = 0
                self.opens += 1
                continue
            if call == 'fcntl' and result >= 0 and new == path and \
                    'F_DUPFD' in rest:
                direct[result] = direct.get(int(fd), False)
                position[result] = 0
                continue
            if name != path or fd is None:
                continue
            fd = int(fd)
            if call == 'fcntl' and 'F_SETFL' in rest:
                direct[fd] = 'O_DIRECT' in rest
            elif call in ('fdatasync', 'fsync') and result == 0:
                self.synced += 1
            elif call in ('pread64', 'pwrite64', 'preadv', 'pwritev',
                          'preadv2', 'pwritev2') and result > 0:
                numbers = rest.split(', ')
                at = numbers[-2] if call.endswith('v2') else numbers[-1]
                self.transfers.append((direct.get(fd, False), int(at),
                                       result))
            elif call in ('read', 'write', 'readv', 'writev') and result > 0:
                at = position.get(fd, 0)
                self.transfers.append((direct.get(fd, False), at, result))
                position[fd] = at + result

    def total(self, direct):
        return sum(t[2] for t in self.transfers if t[0] == direct)


def check_split(trace, blocks, reading=False):
    """Checks that RAM uses the direct descriptor, and all other data the
    buffered one."""
    regions = [(b.pages_offset, b.pages_offset + b.length) for b in blocks]

    def inside(start, end):
        return any(a <= start and end <= b for a, b in regions)

    def touches(start, end):
        return any(start < b and a < end for a, b in regions)
    assert trace.total(True) > 10 * MIB, 'hardly anything was direct'
    for direct, at, length in trace.transfers:
        where = f'{length} bytes at {at:#x}'
        if direct:
            assert inside(at, at + length), f'{where}, direct, are not RAM'
            assert at % 4096 == 0 and length % 4096 == 0, where
        elif not reading:
            assert not touches(at, at + length), f'{where}, buffered, are RAM'
    # Buffered reads may read ahead slightly, into the pages
    limit = 8 * MIB if reading else 2 * MIB
    assert trace.total(False) < limit, \
        f'{trace.total(False)} bytes were buffered'


@test('descriptors: RAM is written directly, and nothing else is', quick=True)
def test_save_split(t):
    need_strace()
    path = t.path('image')
    for channels in (1, 4):
        for offset in (0, 0x3000):
            vm = t.source(guest={'dirty': 16}, emulator=sync_engine(t))
            vm.setup(Mode(channels, True))
            tracer = strace(vm, t.path('log'), CALLS)
            vm.save(f'file:{path},offset={offset}')
            tracer.stop()
            vm.kill()
            trace = Trace(t.path('log'), path)
            check_split(trace, image.blocks(path, offset))
            t.note(f'{channels} channels: {trace.total(True)} bytes direct, '
                   f'{trace.total(False)} buffered, {trace.synced} syncs')
            assert trace.synced, 'nothing was synced'
            os.unlink(path)


@test('descriptors: RAM is read directly', quick=True)
def test_load_split(t):
    need_strace()
    path = t.path('image')
    src = t.source()
    src.save(f'file:{path}', Mode(4, True))
    src.kill()
    for channels in (1, 4):
        dst = t.vm(incoming=True, emulator=sync_engine(t))
        dst.setup(Mode(channels, True))
        tracer = strace(dst, t.path('log'), CALLS)
        dst.load(f'file:{path}')
        tracer.stop()
        dst.kill()
        trace = Trace(t.path('log'), path)
        check_split(trace, image.blocks(path), reading=True)
        t.note(f'{channels} channels: {trace.total(True)} bytes direct, '
               f'{trace.total(False)} buffered')


def sync_engine(t):
    """Returns an emulator whose transfers are system calls, for strace."""
    return faulty(t, 'no-such-file', engine='sync')


@test('descriptors: the page cache holds no RAM after a direct save',
      quick=True)
def test_page_cache(t):
    """With every engine, data written directly bypasses the page cache."""
    path = t.path('image')
    vm = t.source()

    def cached_by(direct):
        vm.save(f'file:{path}', Mode(4, direct))
        vm.command('cont')
        cached = meter.cached(path)
        written = os.stat(path).st_blocks * 512
        t.note(f'{"direct" if direct else "buffered"}: {cached >> 20} of '
               f'{written >> 20} MiB in the page cache')
        os.unlink(path)
        return cached

    # A busy host may need its memory for something else
    assert any(cached_by(False) > 8 * MIB for _ in range(3)), \
        'this measurement cannot fail'
    assert cached_by(True) < 8 * MIB, 'a direct save went to the page cache'


@test('descriptors: a new image is for its owner only', quick=True)
def test_mode(t):
    """The image contains all of the guest's memory, so its mode must not
    depend on the umask."""
    before = os.umask(0)
    try:
        vm = t.source(ram=32)
    finally:
        os.umask(before)
    for number, mode in enumerate((Mode(0), Mode(2, True))):
        path = t.path(f'image{number}')
        vm.save(f'file:{path}', mode)
        vm.command('cont')
        have = os.stat(path).st_mode & 0o777
        assert have == 0o600, f'mode {have:o}'


ACCESS = {'ro': os.O_RDONLY, 'wo': os.O_WRONLY, 'rw': os.O_RDWR}


def open_flags(vm, path):
    """The flags of a file's open descriptors: {number: flags}."""
    found = {}
    for fd in os.listdir(f'/proc/{vm.pid}/fd'):
        if os.readlink(f'/proc/{vm.pid}/fd/{fd}') == path:
            with open(f'/proc/{vm.pid}/fdinfo/{fd}') as f:
                found[fd] = int(re.search(r'flags:\s+(\d+)',
                                          f.read()).group(1), 8)
    return found


def opened(vm, path):
    """A file's open descriptors: {number: (access, whether O_DIRECT)}."""
    return {fd: (next(name for name, value in ACCESS.items()
                      if value == flags & os.O_ACCMODE),
                 bool(flags & os.O_DIRECT))
            for fd, flags in open_flags(vm, path).items()}


def disk_in_fdset(vm, path, fdset, access, direct):
    """Opens a disk that is passed as descriptors.  Returns (access, whether
    O_DIRECT) of the one that QEMU uses, or None if QEMU refuses them."""
    fds = [os.open(path, ACCESS[have] | (os.O_DIRECT if has_direct else 0))
           for have, has_direct in fdset]
    vm.add_fds(4, *fds)
    before = opened(vm, path)
    try:
        vm.command('blockdev-add', {
            'node-name': 'disk', 'driver': 'file',
            'filename': '/dev/fdset/4', 'read-only': access == 'ro',
            'cache': {'direct': direct}})
        after = opened(vm, path)
        vm.command('blockdev-del', {'node-name': 'disk'})
        new, = after.keys() - before.keys()
        return after[new]
    except QMPError:
        return None
    finally:
        vm.command('remove-fd', {'fdset-id': 4})
        for fd in fds:
            os.close(fd)


@test('descriptors: disks in fdsets get what they get without the series',
      quick=True)
def test_disks(t):
    """QEMU 7.2 uses a descriptor with the access mode that a disk requests,
    and sets or clears its O_DIRECT; 10.0 uses one that matches in both."""
    path = t.path('disk')
    with open(path, 'wb') as f:
        f.truncate(MIB)
    vm = t.vm(ram=32)
    changes_flags = vm.command('query-version')['qemu']['major'] < 9
    sets = ([('rw', False)], [('rw', True)], [('rw', False), ('rw', True)],
            [('rw', True), ('rw', False)], [('ro', False)], [('ro', True)],
            [('ro', False), ('rw', True)], [('wo', False), ('wo', True)])
    for fdset in sets:
        for want in (('rw', False), ('rw', True), ('ro', False),
                     ('ro', True)):
            have = disk_in_fdset(vm, path, fdset, *want)
            suits = want in fdset or changes_flags and \
                want[0] in (access for access, _ in fdset)
            assert have == (want if suits else None), \
                f'of {fdset}, for {want}: {have}'


def check_private(vm, path):
    """Checks that a process which QEMU starts does not get the descriptors."""
    flags = open_flags(vm, path)
    assert len(flags) > 2, flags
    for fd, have in flags.items():
        assert have & os.O_CLOEXEC, f'descriptor {fd} would be inherited'


@test('descriptors: none is inherited', quick=True)
def test_inherited(t):
    """As long as a process has one, removing the image frees no space."""
    path = t.path('image')
    vm = held_save(t, Mode(2, True), 'write:d1')
    check_private(vm, path)
    open_gate(t)
    assert vm.wait_migration()['status'] == 'completed'
    vm.kill()
    forget_holds(t)
    held = HeldRestore(t, Mode(2, True))
    check_private(held.vm, path)
    held.release()


@test('descriptors: none is left open', quick=True)
def test_leaks(t):
    """After saves, failures, refusals and cancels, no more descriptors are
    open than after the second round."""
    path = t.path('image')
    small = t.filesystem('tmpfs', 8 * MIB)
    refusing = t.filesystem('ramfs', MIB)
    vm = t.source(guest={'dirty': 16})
    counts = []
    for _ in range(3 if t.config.quick else 10):
        for mode in (Mode(0), Mode(1, True), Mode(4), Mode(4, True)):
            vm.save(f'file:{path}', mode)
            vm.command('cont')
            vm.try_save(f'file:{small}/image', mode)
            if mode.direct:
                vm.try_save(f'file:{refusing}/image', mode)
            vm.try_save('file:/no/such/dir', mode)
            for flags in (os.O_WRONLY, os.O_WRONLY | os.O_DIRECT):
                fd = os.open(path, flags)
                vm.add_fds(5, fd)
                os.close(fd)
            vm.save('file:/dev/fdset/5', mode)
            vm.command('cont')
            vm.command('remove-fd', {'fdset-id': 5})
            vm.start_save(f'file:{path}')
            vm.command('migrate_cancel')
            if vm.wait_migration()['status'] == 'completed':
                vm.command('cont')
            vm.ticks_on(1)
        counts.append(vm.open_descriptors())
    t.note(f'open descriptors after each round: {counts}')
    vm.wait_descriptors(counts[1])
