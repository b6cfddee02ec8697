# SPDX-License-Identifier: GPL-2.0-or-later
"""Instant restore from all kinds of targets into all kinds of RAM."""

import hashlib
import os
import time

from lab.guest import BALLOON, DISK, build_initramfs, find_modules
from lab.memory import huge_pages
from lab.vm import VM, Mode

from .checks import case, check_chain, each
from .harness import Skip, test
from .instant import DIRECT, HELD, RAM, begin, check_complete, follows, \
    restore, saved

MIB = 1 << 20
MODES = [Mode(0), Mode(1), DIRECT]


@test('instant: from an fdset, and at an offset', quick=True)
def test_fdset(t):
    path = t.path('image')
    with open(path, 'wb') as f:
        f.write(b'x' * 12345)
    src = t.source(ram=RAM)
    src.save(f'file:{path},offset=1M', DIRECT)
    want = src.ram_hash()
    src.kill()

    def one(mode):
        follows(t, f'file:{path},offset=1M', mode, want)
        fds = [t.open(path, os.O_RDONLY)]
        if mode.direct:
            fds.append(t.open(path, os.O_RDONLY | os.O_DIRECT))
        follows(t, 'file:/dev/fdset/3,offset=1M', mode, want, fds)
    each(MODES, one)


@test('instant: from descriptors with O_APPEND', quick=True)
def test_append(t):
    """It does not matter for reading."""
    path = t.path('image')
    want = saved(t, path)
    fds = [t.open(path, os.O_RDONLY | os.O_APPEND | more)
           for more in (0, os.O_DIRECT)]
    follows(t, 'file:/dev/fdset/3', DIRECT, want, fds)
    t.restores(f'file:{path}', want, DIRECT, ram=RAM).kill()


@test('instant: of an fdset no more stays open than of an eager restore',
      quick=True)
def test_fdset_closed(t):
    """libvirt closes its own descriptors at once.  QEMU keeps those of an
    fdset until the guest runs."""
    path = t.path('image')
    want = saved(t, path)

    def descriptors_after(restores):
        vm = t.vm(incoming=True, ram=RAM)
        before = vm.open_descriptors()
        fds = [os.open(path, os.O_RDONLY | flag) for flag in (0, os.O_DIRECT)]
        vm.add_fds(3, *fds)
        for fd in fds:
            os.close(fd)
        restores(vm, 'file:/dev/fdset/3', DIRECT)
        vm.command('remove-fd', {'fdset-id': 3})
        assert vm.wait_migration()['status'] == 'completed'
        assert vm.ram_hash() == want
        vm.command('cont')
        vm.ticks_on(1)
        found = vm.open_descriptors() - before
        vm.kill()
        return found

    eager, later = map(descriptors_after, (VM.load, begin))
    assert eager == later, f'{eager} descriptors more, or {later}'


def follows_from_device(t, sector_size):
    path = t.path('image')
    want = saved(t, path)
    try:
        device = t.loop(path, 512 * MIB, sector_size=sector_size)
    except OSError as err:
        if sector_size <= 4096:
            raise
        raise Skip(f'no sectors of {sector_size} bytes here: {err}') from None
    each(MODES, lambda mode: follows(t, f'file:{device}', mode, want))


@test('instant: from a block device', quick=True)
def test_device(t):
    follows_from_device(t, 512)


@test('instant: from a block device with sectors of 4 KiB', quick=True)
def test_sectors(t):
    follows_from_device(t, 4096)


@test('instant: from a block device with sectors of 16 KiB', quick=True)
def test_big_sectors(t):
    follows_from_device(t, 16384)


@test('instant: into huge pages', quick=True)
def test_huge(t):
    t.need_root()
    path = t.path('image')
    want = saved(t, path)
    backend = f'memory-backend-memfd,id=pc.ram,size={RAM}M,hugetlb=on,' \
              'hugetlbsize=2M'
    args = ('-object', backend, '-machine', 'memory-backend=pc.ram')
    with huge_pages(RAM + 2) as free:
        if not free:
            raise Skip('the host has no huge pages to give')
        for mode in MODES:
            with case(mode):
                follows(t, f'file:{path}', mode, want, args=args)


def linux(t, names, *device):
    """The arguments for a Linux guest with these modules and a device."""
    if not (t.config.kernel and t.config.busybox):
        raise Skip('no Linux guest: give --kernel and --busybox')
    modules = find_modules(t.config.kernel, names)
    if names[-1] not in modules:
        raise Skip(f'no module {names[-1]} lies beside the kernel')
    initramfs = build_initramfs(t.config.busybox, t.path('initramfs.gz'),
                                modules)
    return ['-kernel', t.config.kernel, '-initrd', initramfs, '-append',
            'console=ttyS0 quiet panic=1 tsc=unstable no_timer_check '
            'mitigations=off random.trust_bootloader=on', *device]


@test("instant: a disk's DMA to and from RAM that is not there", quick=True,
      timeout=400)
def test_dma(t):
    """Linux does direct I/O on a virtio disk while RAM is loaded only by page
    faults."""
    disk = t.path('disk')
    data = os.urandom(16 * MIB)
    with open(disk, 'wb') as f:
        f.write(data)
    args = linux(t, DISK, '-drive', f'if=virtio,format=raw,file={disk}')
    src = t.vm(guest=False, ram=256, args=args)
    src.wait_guest('count', 2, timeout=240)
    want = hashlib.sha256(data[:8 * MIB]).hexdigest()
    assert f'disk {want}' in src.serial(), 'the guest does not read the disk'
    faults, _, _, vm, info = restore(t, HELD, source=src, guest=False,
                                     ram=256, args=args)
    assert info['status'] == 'postcopy-active', info
    vm.command('cont')
    vm.wait_guest('count', 2, timeout=120)
    assert vm.migration()['status'] == 'postcopy-active', vm.migration()
    faults.release()
    check_complete(t, vm)
    vm.wait_guest('count', 2, timeout=120)
    check_chain(vm)


def balloon(vm, mib):
    """Has the guest inflate or deflate its balloon, so that this much memory
    is left, and returns how many times QEMU discarded some of it."""
    def discards():
        return sum('ram_block_discard_range' in line for line in vm.errors())

    before = discards()
    vm.command('balloon', {'value': mib * MIB})
    while vm.command('query-balloon')['actual'] != mib * MIB:
        vm.check_guest()
        time.sleep(0.01)
    return discards() - before


@test('instant: a balloon gives no memory back meanwhile', timeout=400)
def test_balloon(t):
    args = linux(t, BALLOON, '-device', 'virtio-balloon-pci')
    src = t.vm(guest=False, ram=256, args=args)
    src.wait_guest('count', 2, timeout=240)
    faults, _, _, vm, info = restore(t, HELD, source=src, guest=False,
                                     ram=256, args=args)
    assert info['status'] == 'postcopy-active', info
    vm.command('trace-event-set-state', {'name': 'ram_block_discard_range',
                                         'enable': True})
    vm.command('cont')
    found = balloon(vm, 192)
    assert vm.migration()['status'] == 'postcopy-active', vm.migration()
    assert not found, f'memory was discarded {found} times'
    faults.release()
    check_complete(t, vm)
    assert not balloon(vm, 256)
    assert balloon(vm, 192), 'a balloon discards nothing anyway'
    vm.wait_guest('count', 2, timeout=120)
    check_chain(vm)
