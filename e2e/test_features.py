# SPDX-License-Identifier: GPL-2.0-or-later
"""Other features of QEMU that affect RAM, combined with saving to files."""

import os
import re
import time

from lab import image
from lab.qmp import QMPClosed
from lab.vm import FINAL, Exited, Mode

from .checks import case, expect_error, file_hash
from .faults import faulty, held_save, open_gate, wait_stall
from .harness import Skip, test

MODES = (None, Mode(0), Mode(4), Mode(1, True), Mode(4, True))
TABLE = 60000           # an ACPI table has less than 64 KiB


def used_length(vm, block):
    """The current used length of a RAM block."""
    found = re.search(rf'{re.escape(block)} .*?0x[0-9a-f]+ (0x[0-9a-f]+)',
                      vm.hmp('info ramblock'))
    assert found, f'there is no RAM block {block}'
    return int(found.group(1), 16)


def tables(t, count):
    """Returns arguments that add `count` ACPI tables."""
    path = t.path('table')
    if not os.path.exists(path):
        with open(path, 'wb') as f:
            f.write(bytes(range(250)) * (TABLE // 250))
    args = []
    for i in range(count):
        args += ['-acpitable', f'sig=QDI{i},data={path}']
    return args


@test('features: RAM blocks that are resized when they are restored',
      quick=True, timeout=240)
def test_resizable(t):
    """ACPI tables are in a block that grows with their number.  The source has
    more tables than the destination, then fewer."""
    block = '/rom@etc/acpi/tables'
    for here, there in ((4, 0), (0, 4)):
        for mode in MODES:
            path = t.path('image')
            src = t.vm(guest=False, ram=64, args=tables(t, here))
            src.command('stop')
            src.setup(mode)
            src.save(f'file:{path}')
            size, want = used_length(src, block), src.ram_hash()
            src.kill()
            for emulator in others(t):
                dst = t.vm(guest=False, ram=64, incoming=True,
                           emulator=emulator, args=tables(t, there))
                before = used_length(dst, block)
                assert before != size, 'both have the same size already'
                dst.setup(mode)
                dst.load(f'file:{path}')
                after = used_length(dst, block)
                assert after == size, f'{before} became {after}, not {size}'
                assert dst.ram_hash() == want, 'restored RAM differs'
                # Stock QEMU leaves old content where zeros should be
                if mode and emulator is not t.config.stock:
                    check_saved_again(t, dst, path)
                dst.kill()
            os.unlink(path)


def others(t):
    """Returns the emulators that restore the image."""
    return [t.config.ours] + [e for e in (t.config.other, t.config.stock) if e]


def check_saved_again(t, vm, path):
    """Checks that all RAM blocks of the VM equal those of the image."""
    again = t.path('again')
    vm.save(f'file:{again}', Mode(1))
    code, found = image.tool('compare', path, again)
    assert code == 0 and found['same'], f'{vm.emulator.name}: {found}'
    os.unlink(again)


@test('features: shared memory is left out with x-ignore-shared', quick=True)
def test_ignore_shared(t):
    """Shared RAM stays in its file, and is not in the image."""
    memory = t.path('memory')
    args = ('-object', f'memory-backend-file,id=ram0,size=128M,share=on,'
            f'mem-path={memory}', '-machine', 'memory-backend=ram0')
    path = t.path('image')
    for mode in (None, Mode(0), Mode(2, True)):
        # With both capabilities, stock QEMU 10.0 writes an image that cannot
        # be restored
        for emulator in [t.config.ours] + [e for e in (t.config.other,) if e]:
            want = shared_save(t, args, mode, path)
            dst = t.vm(incoming=True, emulator=emulator, args=args)
            dst.setup(mode)
            dst.set_capabilities('x-ignore-shared')
            dst.load(f'file:{path}')
            assert dst.ram_hash() == want, f'{mode}: restored RAM differs'
            goes_on(dst)
            os.unlink(path)
            os.unlink(memory)


def shared_save(t, args, mode, path):
    """Saves a guest with shared RAM; returns the hash of its RAM."""
    src = t.source(args=args)
    src.setup(mode)
    src.set_capabilities('x-ignore-shared')
    src.save(f'file:{path}')
    want = src.ram_hash()
    src.kill()
    # The other RAM, such as firmware, is in the image, aligned to 1 MiB
    size = os.stat(path).st_blocks * 512
    assert size < 16 << 20, f'{mode}: the image has {size} bytes'
    if mode:
        # The tool supports such images, too
        code, found = image.tool('info', path)
        assert not code, found
        assert [b['name'] for b in found['left-out']] == ['ram0'], found
        assert 'pc.bios' in [b['name'] for b in found['blocks']], found
        code, found = image.tool('verify', path)
        assert not code, found
    return want


def goes_on(vm):
    vm.command('cont')
    vm.ticks_on()
    vm.kill()


@test('features: cpr-reboot saves to files', quick=True)
def test_cpr_reboot(t):
    if not t.config.ours.at_least(8, 2):
        raise Skip(f'QEMU {t.config.ours.version} has no parameter "mode"')
    for mode in MODES:
        path = t.path('image')
        src = t.source()
        src.setup(mode)
        src.command('migrate-set-parameters', {'mode': 'cpr-reboot'})
        src.save(f'file:{path}')
        want = src.ram_hash()
        src.kill()
        dst = t.vm(incoming=True)
        dst.setup(mode)
        dst.command('migrate-set-parameters', {'mode': 'cpr-reboot'})
        dst.load(f'file:{path}')
        assert dst.ram_hash() == want, f'{mode}: restored RAM differs'
        goes_on(dst)
        os.unlink(path)


@test('features: memory that virtio-mem has not plugged stays unpopulated',
      quick=True)
def test_virtio_mem(t):
    # On tmpfs, reading a hole fills it, and this one is too small for all of
    # the memory.  The device later punches the holes again, so filled ones
    # must be detected before that.
    memory = os.path.join(t.filesystem('tmpfs', 32 << 20), 'memory')
    args = ('-m', '128,maxmem=2G', '-object',
            f'memory-backend-file,id=vm0,size=512M,share=on,mem-path={memory}',
            '-device', 'virtio-mem-pci,id=vmem0,memdev=vm0,requested-size=0')
    for mode in MODES:
        path = t.path('image')
        src = t.source(args=args)
        src.setup(mode)
        src.save(f'file:{path}')
        want = src.ram_hash()
        check_unpopulated(memory, 'saving')
        src.kill()
        dst = t.vm(incoming=True, args=args)
        dst.setup(mode)
        dst.load(f'file:{path}')
        assert dst.ram_hash() == want, f'{mode}: restored RAM differs'
        check_unpopulated(memory, 'restoring')
        goes_on(dst)
        os.unlink(path)
        os.unlink(memory)


def check_unpopulated(memory, what):
    used = os.stat(memory).st_blocks * 512
    assert used < 1 << 20, f'{what} populated {used} bytes'


@test('features: no write to a busy page is lost', quick=True)
def test_busy_page(t):
    # The guest's RAM is the first block or follows another one.  This makes
    # a difference if offsets in the block and in all of RAM are confused.
    first = ('-object', 'memory-backend-ram,id=first,size=4M')
    for args in ((), first):
        vm = t.source(guest={'dirty': 32}, args=args)
        for i in range(4):
            path = t.path(f'image{i}')
            # Slow enough to take several passes
            vm.setup(Mode(i & 1), max_bandwidth=400 << 20)
            vm.start_save(f'file:{path}')
            info = vm.wait_or_hurry()
            assert info['status'] == 'completed', info
            t.restores(f'file:{path}', vm.ram_hash(), Mode(i & 1),
                       args=args).kill()
            os.unlink(path)
            vm.command('cont')
            vm.ticks_on()
        vm.kill()


@test('features: no synchronization while workers write', quick=True,
      timeout=200)
def test_throttle_sync(t):
    """From the second pass on, upstream's throttling synchronizes the dirty
    bitmap from a timer every 5 seconds, even in the middle of a pass.  Our
    builds assert that the workers are idle at that point."""
    vm = t.source(ram=256, guest={'dirty': 128})
    path = t.path('image')
    while not slow_pass(vm, f'file:{path}'):
        # The guest got too little CPU time to write much
        assert vm.migration()['status'] == 'completed', vm.migration()
        vm.command('cont')
        vm.ticks_on()
    vm.command('migrate-set-parameters', {'max-bandwidth': 1 << 40,
                                          'downtime-limit': 100000})
    info = vm.wait_migration()
    assert info['status'] == 'completed', info
    t.restores(f'file:{path}', vm.ram_hash(), Mode(2, True), ram=256)


def slow_pass(vm, uri):
    """Starts a save, and waits until its second pass has lasted longer than
    two periods of the timer; returns False if the save has ended before."""
    # With such a limit on the downtime, hardly anything may be left to write
    vm.setup(Mode(2, True), max_bandwidth=1 << 40, downtime_limit=1)
    vm.set_capabilities('auto-converge')
    vm.start_save(uri)
    while (info := vm.migration())['status'] not in FINAL:
        if info.get('ram', {}).get('dirty-sync-count', 0) >= 2:
            break
        time.sleep(0.01)
    vm.command('migrate-set-parameters', {'max-bandwidth': 2 << 20})
    end = time.monotonic() + 11
    while (info := vm.migration())['status'] not in FINAL:
        if time.monotonic() > end:
            return True
        time.sleep(0.1)
    return False


@test('features: dirty-bitmaps does not make a save postcopy', quick=True)
def test_start_postcopy(t):
    args = ('-blockdev', 'null-co,node-name=disk,size=1048576')
    vm = t.source(emulator=faulty(t, 'image', 'write:d1:hold'), args=args)
    vm.command('block-dirty-bitmap-add', {'node': 'disk', 'name': 'map'})
    vm.set_capabilities('dirty-bitmaps')
    vm.setup(Mode(2, True))
    vm.start_save(f'file:{t.path("image")}')
    wait_stall(t, vm)
    with expect_error('a save turns into postcopy', t.path('image')):
        vm.command('migrate-start-postcopy')
    open_gate(t)
    assert vm.wait_migration()['status'] == 'completed', vm.migration()
    want = vm.ram_hash()
    vm.kill()
    t.restores(f'file:{t.path("image")}', want, args=args).kill()


@test('features: large dirty bitmaps do not keep a save from ending',
      quick=True)
def test_large_bitmap(t):
    """They can be saved in the last stage only, and would take longer than
    downtime-limit; for a stopped guest that does not matter."""
    args = ('-blockdev', f'null-co,node-name=disk,size={1 << 40}')
    for mode in Mode(0), Mode(2, True):
        with case(mode):
            vm = t.source(args=args)
            vm.command('block-dirty-bitmap-add', {
                'node': 'disk', 'name': 'map', 'granularity': 65536})
            vm.set_capabilities('dirty-bitmaps')
            vm.command('stop')
            vm.save(f'file:{t.path("image")}', mode, downtime_limit=1)
            vm.kill()
            dst = t.vm(incoming=True, args=args)
            dst.set_capabilities('dirty-bitmaps')
            dst.load(f'file:{t.path("image")}', mode)
            dst.kill()


@test('features: disks are copied by block migration', quick=True)
def test_block_migration(t):
    """RAM waits until they are, lest the last stage begins too early."""
    if t.config.ours.at_least(8):
        raise Skip(f'{t.config.ours.version} has no block migration')
    disks = [t.path(name) for name in ('disk', 'copy')]
    with open(disks[0], 'wb') as f:
        f.write(os.urandom(192 << 20))
    with open(disks[1], 'wb') as f:
        f.truncate(192 << 20)
    path = t.path('image')
    for mode in Mode(0), Mode(2, True):
        with case(mode):
            vms = [t.vm(incoming=bool(i), guest=False, args=(
                '-drive', f'if=none,id=d0,format=raw,file={disk}',
                '-device', 'virtio-blk-pci,drive=d0'))
                for i, disk in enumerate(disks)]
            vms[0].command('stop')
            vms[0].setup(mode)
            vms[0].command('migrate', {'uri': f'file:{path}', 'blk': True})
            assert vms[0].wait_migration()['status'] == 'completed'
            vms[0].kill()
            vms[1].load(f'file:{path}', mode)
            vms[1].kill()
            assert file_hash(disks[1]) == file_hash(disks[0])
            os.unlink(path)


@test('features: query-migrationthreads lists the workers', quick=True)
def test_thread_list(t):
    if not t.config.ours.at_least(8):
        raise Skip(f'{t.config.ours.version} has no such command')
    vm = held_save(t, Mode(3, True), 'write:d1')

    def names():
        return {x['name'] for x in vm.command('query-migrationthreads')}

    wanted = {f'mapped-save_{i}' for i in range(3)}
    # A thread is listed as soon as it has run
    vm.wait_until(lambda: wanted <= names())
    open_gate(t)
    assert vm.wait_migration()['status'] == 'completed', vm.migration()
    # It ends a moment after the save
    vm.wait_until(lambda: not wanted & names())


@test('features: there are as many workers as CPUs that QEMU may use',
      quick=True)
def test_workers(t):
    cpus = sorted(os.sched_getaffinity(0))
    for usable in cpus, cpus[:1]:
        vm = t.vm(guest=False, ram=64, wrapper=(
            'taskset', '--cpu-list', ','.join(map(str, usable))))
        vm.setup(Mode(1, True))
        save = vm.save(f'file:{t.path("image")}')
        assert save['direct-io']['channels'] == min(len(usable), 8), save
        vm.kill()


@test('features: zero-page-detection=none writes zero pages', quick=True)
def test_keep_zeros(t):
    if not t.config.ours.at_least(9):
        raise Skip(f'{t.config.ours.version} has no such parameter')
    path = t.path('image')
    vm = t.vm(guest=False, ram=64)
    vm.command('stop')
    vm.setup(Mode(2, True), zero_page_detection='none')
    ram = vm.save(f'file:{path}')['ram']
    assert ram['duplicate'] == 0, ram
    assert os.stat(path).st_blocks * 512 >= 64 << 20, os.stat(path)
    want = vm.ram_hash()
    vm.setup(Mode(2, True), zero_page_detection='multifd')
    vm.command('cont')
    vm.command('stop')
    ram = vm.save(f'file:{path}.2')['ram']
    assert ram['duplicate'] > 0, ram
    dst = t.vm(guest=False, ram=64, incoming=True)
    dst.load(f'file:{path}', Mode(2, True))
    assert dst.ram_hash() == want, 'restored RAM differs'


@test('features: the property has the name of the capability', quick=True)
def test_property(t):
    """7.2 also accepts x-mapped-ram, formerly its only name."""
    for name in ('mapped-ram', 'x-mapped-ram'):
        try:
            vm = t.vm(guest=False, args=['-global', f'migration.{name}=on'])
        except (Exited, QMPClosed) as err:
            assert name == 'x-mapped-ram', err
            assert t.config.ours.at_least(8, 0), err
            continue
        on = {x['capability'] for x in
              vm.command('query-migrate-capabilities') if x['state']}
        assert 'mapped-ram' in on, on
        vm.kill()


@test('features: multifd over a socket, after a direct save', quick=True)
def test_socket_after_direct(t):
    """What was set for the save, and libvirt leaves set, does not matter."""
    mode = Mode(2, True)
    src = t.source(guest={'dirty': 4})
    src.save(f'file:{t.path("image")}', mode)
    src.command('cont')
    src.ticks_on()
    dst = t.vm(incoming=True)
    for vm in (dst, src):
        vm.setup(mode)
        vm.set_capabilities('mapped-ram', state=False)
    uri = f'unix:{t.path("socket")}'
    dst.command('migrate-incoming', {'uri': uri})
    src.save(uri)
    assert dst.wait_migration()['status'] == 'completed'
    assert dst.ram_hash() == src.ram_hash(), 'RAM differs'
