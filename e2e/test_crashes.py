# SPDX-License-Identifier: GPL-2.0-or-later
"""The state after a crash of QEMU or of the host: a completed image is whole
and on the disk, and an incomplete one cannot be restored."""

import contextlib
import fcntl
import os
import random
import shutil
import struct
import time

from lab import fs
from lab.qmp import QMPClosed
from lab.vm import Crashed, Mode

from .checks import case, file_hash
from .faults import faulty
from .harness import Skip, test

MIB = 1 << 20
RAM = 32
GUEST = {'dirty': 16}
MODES = [Mode(4, True), Mode(0), Mode(1, True), Mode(4)]
NO_SYNC = ('-global', 'migration.file-sync=off')


def source(t, **kwargs):
    return t.source(ram=RAM, guest=GUEST, **kwargs)


def saved(t, path, mode=Mode(4, True)):
    return t.saved(path, mode, ram=RAM, guest=GUEST)


def restored(t, path, mode=Mode(2, True)):
    """Returns the SHA-256 of the RAM restored from `path`, after the guest has
    checked all of it; None if the image is refused."""
    dst = t.vm(incoming=True, ram=RAM)
    try:
        if dst.try_load(f'file:{path}', mode) is not None:
            return None
        have = dst.ram_hash()
        dst.command('cont')
        dst.wait_guest('sweep')
        return have
    finally:
        dst.kill()


# QEMU is killed

def said_completed(vm):
    """Whether QEMU reported `completed` before it died."""
    return any(event['event'] == 'MIGRATION' and
               event['data']['status'] == 'completed'
               for event in vm.qmp.last_events())


class Place:
    """The target of interrupted saves: the file with the previous image, a new
    file next to it, or a block device with the previous image."""

    def __init__(self, t, kind):
        self.kind = kind
        self.t = t
        self.kept = t.path(f'{kind}-previous')
        self.target = t.path(f'{kind}-image')
        self.want = saved(t, self.kept)
        self.digest = file_hash(self.kept)
        if kind == 'device':
            self.target = t.loop(t.path('disk'), 128 * MIB)

    def renew(self):
        """Restores the state before the save that was killed."""
        if self.kind == 'over':
            shutil.copy(self.kept, self.target)
        elif self.kind == 'device':
            fs.run('dd', f'if={self.kept}', f'of={self.target}', 'bs=1M',
                   'conv=notrunc,fsync')
        elif os.path.exists(self.target):
            os.unlink(self.target)

    def check(self, completed):
        """Checks the target, given whether QEMU reported `completed`.  Returns
        what it contains: 'nothing', 'previous' or 'new'."""
        if self.kind == 'new' and file_hash(self.kept) != self.digest:
            raise AssertionError('the previous image has changed')
        have = None
        if os.path.exists(self.target):
            have = restored(self.t, self.target)
        if completed and have in (None, self.want):
            raise AssertionError('what was completed does not restore')
        if have is None:
            return 'nothing'
        return 'previous' if have == self.want else 'new'


@test('killed: at random moments of a save', quick=True, timeout=500)
def test_kill(t):
    """After the kill, the previous image can be restored, or the new one if it
    was completed, or was intact and about to be completed."""
    rng = random.Random(7)
    found = {}
    for kind in ('over', 'new', 'device'):
        place = Place(t, kind)
        longest = 0.1
        for i in range(12 if t.config.quick else 24):
            mode = MODES[i % len(MODES)]
            place.renew()
            vm = source(t)
            vm.setup(mode)
            vm.start_save(f'file:{place.target}')
            time.sleep(rng.uniform(0, longest))
            vm.process.kill()
            vm.process.wait()
            completed = said_completed(vm)
            vm.kill()
            longest *= 0.8 if completed else 1.2
            with case(kind, mode, f'kill {i}'):
                now = place.check(completed)
            key = (kind, now, completed)
            found[key] = found.get(key, 0) + 1
    for (kind, now, completed), count in sorted(found.items()):
        t.note(f'{kind}: {count} times {now} is there, it was '
               f'{"completed" if completed else "not completed"}')
    assert any(now == 'nothing' for _, now, _ in found), \
        'no kill came in the middle of a save'


@test('killed: at the last writes and at the syncs', quick=True, timeout=400)
def test_kill_steps(t):
    """The file becomes a valid image only with its last write, which is
    between two syncs."""
    place = Place(t, 'new')
    for mode in MODES[:2]:
        syncs = kills(t, place, mode, 'sync:', range(1, 10))
        # killed at a write before the last one, or after the last one
        before = syncs.count('nothing')
        assert 0 < before < len(syncs) and \
            set(syncs[:before]) == {'nothing'} and \
            set(syncs[before:]) == {'new'}, \
            f'{mode}: what is there after a kill at each sync: {syncs}'
    # Without direct I/O these writes include a varying number of pages.  The
    # slower the disk, the more of them there are: each 50 ms of writing to RAM
    # end with one.
    writes = kills(t, place, Mode(4, True), 'write:b', range(8, 500))
    assert set(writes[:-1]) == {'nothing'} and writes[-1] == 'new', \
        f'what is there after a kill at each write of the stream: {writes}'


def kills(t, place, mode, what, numbers):
    """Kills QEMU at the n-th call of one kind, for each n in `numbers` until
    the call does not occur.  Returns the state after each kill."""
    found = []
    for nth in numbers:
        place.renew()
        vm = t.source(ram=RAM, emulator=faulty(
            t, os.path.basename(place.target), f'{what}{nth}:kill'))
        vm.setup(mode)
        completed = False
        try:
            vm.start_save(f'file:{place.target}')
            completed = vm.wait_migration()['status'] == 'completed'
        except (Crashed, QMPClosed):
            pass
        vm.kill()
        found.append(place.check(completed))
        if completed:
            return found
    raise AssertionError(f'{mode}: still killed at {what}{numbers[-1]}')


# Power failures of the host

SHUTDOWN = 0x8004587d       # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
FICLONE = 0x40049409


def device_of(directory):
    """Returns the device that is mounted at `directory`."""
    with open('/proc/mounts') as f:
        return next(line.split()[0] for line in f
                    if line.split()[1] == directory)


def shut_down(t, kind, mode, **kwargs):
    """Saves to the file system `kind`, shuts it down as soon as the save has
    completed, dropping unwritten data, and mounts it again.  Returns the
    SHA-256 of RAM, and the image's path."""
    target = t.filesystem(kind, 320 * MIB,
                          name=f'{kind}{mode.channels}{len(os.listdir(t.dir))}')
    path = os.path.join(target, 'image')
    root = os.open(target, os.O_RDONLY)
    vm = source(t, **kwargs)
    os.sync()
    vm.save(f'file:{path}', mode)
    fcntl.ioctl(root, SHUTDOWN, struct.pack('I', 2))
    os.close(root)
    want = vm.ram_hash()
    vm.kill()
    device = device_of(target)
    fs.unmount(target)
    fs.run('mount', '-t', kind, device, target)
    return want, path


@test('power: completed survives a shutdown of the file system', quick=True,
      timeout=240, stock='the completed image is gone')
def test_shutdown(t):
    for kind in ('ext4', 'xfs'):
        for mode in MODES if not t.config.quick else MODES[:2]:
            want, path = shut_down(t, kind, mode)
            if not os.path.exists(path) or restored(t, path) != want:
                raise AssertionError(f'{kind}, {mode}: the completed image '
                                     'is gone, or is not whole')


@test('power: without file-sync a shutdown loses the image', quick=True,
      timeout=240)
def test_shutdown_without_sync(t):
    """Shows that the power failure tests can fail.  Whatever else calls sync()
    on this machine saves the image, so try again then."""
    for kind in ('ext4', 'xfs'):
        for mode in MODES[:2]:
            for _ in range(10):
                want, path = shut_down(t, kind, mode, args=NO_SYNC)
                if not os.path.exists(path) or restored(t, path) != want:
                    break
            else:
                raise AssertionError(f'{kind}, {mode}: all was on the disk, '
                                     'this test shows nothing')


class Disk:
    """A file system on a disk whose state after a power failure can be
    inspected: its backing file is on XFS, which copies it atomically.  Data
    that the kernel has not yet sent to the disk is not in the copy."""

    def __init__(self, t, kind):
        self.t = t
        self.kind = kind
        self.copies = []
        try:
            self.below = t.filesystem('xfs', 6 << 30, name=f'below-{kind}')
            self.backing = os.path.join(self.below, 'disk')
            self.root = t.filesystem(
                kind, 320 * MIB, name=kind, backing=self.backing,
                options={'ext4': 'commit=300', 'btrfs': 'commit=300',
                         'xfs': ''}[kind])
        except OSError as err:
            raise Skip(f'no {kind} on XFS here: {err}') from None
        self.device = device_of(self.root)
        os.sync()

    def unmount(self):
        """Unmounts it, so that copies of it can be mounted."""
        fs.unmount(self.root)
        self.t.stack.callback(fs.run, 'mount', '-t', self.kind, self.device,
                              self.root)

    def copy(self):
        """Copies the current state of the disk."""
        path = os.path.join(self.below, f'copy{len(self.copies)}')
        with open(self.backing, 'rb') as old, open(path, 'xb') as new:
            try:
                fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
            except OSError as err:
                raise Skip(f'XFS makes no copies here: {err}') from None
        self.copies.append(path)

    @contextlib.contextmanager
    def as_copied(self, number):
        """Mounts a copy, while the disk itself is not mounted."""
        with fs.loop(self.copies[number]) as device:
            fs.run('mount', '-t', self.kind, device, self.root)
            try:
                yield self.root
            finally:
                fs.unmount(self.root)


def copies_of_a_save(t, kind, mode, **kwargs):
    """Runs a save and copies the disk repeatedly meanwhile.  Returns the disk,
    the hash of RAM, and for each copy whether it was made after
    `completed`."""
    rng = random.Random(len(kind))
    disk = Disk(t, kind)
    os.mkdir(os.path.join(disk.root, 'saves'))
    saved(t, os.path.join(disk.root, 'previous'))
    disk.previous = file_hash(os.path.join(disk.root, 'previous'))
    vm = source(t, **kwargs)
    # The first copy must be made in time, even on a busy host
    vm.setup(mode, max_bandwidth=MIB)
    vm.start_save(f'file:{disk.root}/saves/image')
    disk.copy()
    after = [False]
    vm.command('migrate-set-parameters', {'max-bandwidth': 40 * MIB})
    while True:
        disk.copy()
        done = vm.migration()['status'] == 'completed'
        after.append(done)
        if done:
            # Only the last copy was certainly made after completion
            disk.copy()
            after.append(True)
            after[-2] = None
            break
        time.sleep(rng.uniform(0, 0.1))
    want = vm.ram_hash()
    vm.kill()
    disk.unmount()
    return disk, want, after


@test('power: images on a disk that loses power during or after a save',
      quick=True, timeout=500)
def test_power(t):
    for kind in ('ext4', 'xfs', 'btrfs'):
        for mode in MODES[:2]:
            found = []
            with t.part(f'{kind}{mode.channels}') as one:
                disk, want, after = copies_of_a_save(one, kind, mode)
                last = 5 if t.config.quick else 8
                for number in [0, *range(1, len(after))[-last:]]:
                    with disk.as_copied(number) as root:
                        found.append(state(one, disk, root, want,
                                           after[number]))
            t.note(f'{kind}, {mode}: {" ".join(found)}')
            assert 'nothing' in found, 'no copy is from before completed'


def state(t, disk, root, want, completed):
    """Checks the content of the disk and returns it."""
    if file_hash(os.path.join(root, 'previous')) != disk.previous:
        raise AssertionError(f'{disk.kind}: the previous image is lost')
    path = os.path.join(root, 'saves', 'image')
    have = restored(t, path) if os.path.exists(path) else None
    if have not in (None, want):
        raise AssertionError(f'{disk.kind}: what restores is not what was '
                             'saved')
    if completed and not have:
        raise AssertionError(f'{disk.kind}: the completed image is lost')
    return 'image' if have else 'nothing'


@test('power: without file-sync btrfs loses the image', timeout=500)
def test_power_without_sync(t):
    """As above, whatever else calls sync() saves the image."""
    for number in range(10):
        with t.part(f'try{number}') as one:
            disk, want, after = copies_of_a_save(one, 'btrfs', Mode(4, True),
                                                 args=NO_SYNC)
            with disk.as_copied(len(after) - 1) as root:
                if state(one, disk, root, want, None) == 'nothing':
                    return
    raise AssertionError('all was on the disk, this test shows nothing')
