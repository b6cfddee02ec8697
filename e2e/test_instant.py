# SPDX-License-Identifier: GPL-2.0-or-later
"""Instant restore: the guest runs while its RAM is still on the disk."""

import errno
import os
import re
import time

from lab.memory import huge_pages
from lab.qmp import QMPError
from lab.vm import Mode

from .checks import case, check_says, expect_error, file_hash
from .faults import check_engine, each_engine, faulty, with_engine
from .harness import Skip, test
from .instant import ALL, DIRECT, FOUR, HELD, LATER, RAM, begin, \
    check_complete, figures, follows, instant, restore, resume, saved, \
    wait_error, wait_hung

MODES = [Mode(0), Mode(1, True), Mode(4, True), Mode(2)]
DIRTY = {'dirty': 32}


@test('instant: RAM is what an eager restore gives', quick=True)
def test_same(t):
    for mode in MODES:
        path = t.path('image')
        want = saved(t, path, mode)
        follows(t, f'file:{path}', mode, want)
        t.restores(f'file:{path}', want, mode, ram=RAM).kill()
        os.unlink(path)


@test('instant: images of stock QEMU', quick=True)
def test_stock(t):
    if not t.config.stock:
        raise Skip('no stock QEMU: give --stock')
    for mode in (Mode(0), Mode(4, True)):
        path = t.path('image')
        want = saved(t, path, mode, emulator=t.config.stock)
        follows(t, f'file:{path}', mode, want)
        os.unlink(path)


@test('instant: what QMP and HMP tell', quick=True)
def test_told(t):
    """The events, and the figures of the threads that load while the guest
    runs, of which there are fewer than channels."""
    disk, _, _, vm, info = restore(t, HELD, mode=Mode(8, True))
    assert info['direct-io']['channels'] == 4, info
    assert 'instant restore: active' in vm.hmp('info migrate')
    disk.release()
    found = check_complete(t, vm)
    statuses = [e['data']['status'] for e in vm.events('MIGRATION')]
    assert statuses[-2:] == ['postcopy-active', 'completed'], statuses
    assert 'failed' not in statuses, statuses
    said = vm.hmp('info migrate')
    for line in (
            'instant restore: inactive',
            f'instant restore ram: {found["total"] >> 10} kbytes, '
            f'{found["fault-bytes"] >> 10} by faults, '
            f'{found["background-bytes"] >> 10} in the background, '
            f'{found["moved-bytes"] >> 10} of these moved',
            f'instant restore faults: {found["faults"]}, median '
            f'{found["fault-median"]} us, p99 {found["fault-p99"]} us, '
            f'slowest {found["fault-slowest"]} us at offset '
            f'{found["fault-slowest-offset"]}; {found["zero-faults"]} on '
            'pages that are zero'):
        assert line in said, f'no "{line}" in: {said}'


@test('instant: the guest runs, and writes, before its RAM is there',
      quick=True)
def test_runs(t):
    """The background load hangs, or all reads are slow, so that most of RAM is
    still missing when the guest resumes."""
    assert check_runs(t, DIRECT, HELD), 'RAM was loaded by reads that hang'
    # Reads through the page cache do not tell who waits for them.  The slower
    # they are, the less it matters when the guest gets CPU time.
    pause = 0.02
    while not check_runs(t, Mode(0), ('read', LATER, pause)):
        pause *= 4


def check_runs(t, mode, fault):
    """Returns whether the guest ran before all of its RAM was loaded."""
    disk, _, _, vm, info = restore(t, fault, mode=mode, guest=DIRTY)
    if info['status'] == 'postcopy-active':
        vm.command('cont')
        vm.ticks_on(1)
        info = vm.migration()
    # A fault is counted a moment after its page has been placed
    while info['status'] == 'postcopy-active' and not figures(info)['faults']:
        vm.raise_if_dead()
        info = vm.migration()
    early = info['status'] == 'postcopy-active' and not all_there(info)
    if early:
        assert figures(info)['active'], info
    disk.disarm()
    disk.release()
    found = check_complete(t, vm)
    vm.command('cont')
    vm.wait_guest('sweep', 2)
    t.note(f'{mode}: {found["faults"]} faults of {found["fault-median"]} us, '
           f'{found["fault-bytes"] >> 10} of {found["total"] >> 10} KiB by '
           'faults')
    vm.kill()
    return early


@test('instant: query-migrationthreads lists the threads', quick=True)
def test_threads(t):
    def names():
        return {x['name'] for x in vm.command('query-migrationthreads')}

    if not t.config.ours.at_least(8):
        raise Skip(f'{t.config.ours.version} has no such command')
    disk, _, _, vm, _ = restore(t, HELD)
    # A thread is listed as soon as it has run
    wanted = {'mapped-fault_0', 'mapped-rest_0', 'mapped-rest_1'}
    vm.wait_until(lambda: wanted <= names())
    disk.release()
    check_complete(t, vm)
    assert not names(), names()


@test('instant: a disk that fails stops the guest, and cont tries again',
      quick=True)
def test_error(t):
    for engine in ('', 'sync'):
        path = t.path('image')
        saved(t, path)
        emulator = faulty(t, 'image', 'read:d16:5', 'read:d24:5',
                          engine=engine)
        vm = t.vm(incoming=True, ram=RAM, emulator=emulator)
        info = begin(vm, f'file:{path}', DIRECT)
        rounds = 0
        while info['status'] != 'completed':
            said = info.get('error-desc')
            if said:
                assert 'RAM block' in said and path in said and \
                    'Input/output error' in said, said
                rounds += 1
                vm.command('cont')
                vm.command('stop')
            info = vm.migration()
        assert rounds, 'no error was seen'
        check_complete(t, vm)
        vm.command('cont')
        vm.ticks_on()
        vm.wait_guest('sweep')
        vm.kill()
        os.unlink(path)


@test('instant: a disk that fails while the guest runs', quick=True)
def test_error_running(t):
    """A CPU of the guest waits for a page that cannot be read: all CPUs stop,
    QMP answers, and the guest continues when the disk works again."""
    disk, path, _, vm, _ = restore(t, ('direct read', LATER, errno.EIO),
                                   guest=DIRTY)
    for _ in range(3):
        vm.command('cont')
        vm.wait_runstate('io-error')
    info = vm.migration()
    assert info['status'] == 'postcopy-active', info
    said = info['error-desc']
    found = re.search(r"RAM block '[^']+', pages from 0x[0-9a-f]+ on: (.*): "
                      r'cannot read \d+ bytes at offset (\d+): '
                      'Input/output error', said)
    assert found and path in found[1], said
    assert int(found[2]) < os.path.getsize(path), said
    assert len(vm.events('STOP')) >= 3, vm.qmp.events
    assert any('instant restore: stopping the guest' in line and path in line
               for line in vm.errors()), vm.errors()
    assert f'instant restore error: {said}' in vm.hmp('info migrate')
    disk.disarm()
    # A read in flight may still fail
    while vm.migration()['status'] != 'completed':
        vm.command('cont')
        time.sleep(0.05)
    check_complete(t, vm)
    assert 'error-desc' not in vm.migration(), vm.migration()
    # The last error may have followed the last cont, and the rest of RAM may
    # then have been loaded without another one
    status = vm.command('query-status')['status']
    assert status in ('running', 'io-error'), status
    t.note(f'{status} in the end')
    vm.command('cont')
    vm.ticks_on()
    vm.wait_guest('sweep', 2)
    vm.kill()


@test('instant: QMP answers while a CPU waits for a page that cannot be read',
      quick=True)
def test_stuck(t):
    """The background load hangs and reads for faults fail, so the guest stops
    for a CPU that is in the middle of an instruction."""
    disk, _, _, vm, _ = restore(t, HELD, ('later small read', ALL, errno.EIO),
                                **FOUR)
    wait_hung(vm, lambda: disk.held)
    disk.arm_later()
    vm.command('cont')
    vm.wait_runstate('io-error')
    for _ in range(10):
        vm.command('cont')
        vm.command('stop')
        status = vm.command('query-status')['status']
        assert status in ('paused', 'io-error'), status
    vm.command('system_reset')
    vm.command('query-status')
    assert vm.count_lines('ready') == 0
    disk.disarm()
    disk.release()
    check_complete(t, vm)
    # The reset has waited for the CPU
    while vm.count_lines('ready') == 0:
        if vm.command('query-status')['status'] != 'running':
            vm.command('cont')
        time.sleep(0.05)
    vm.ticks_on()
    vm.wait_guest('sweep')
    vm.kill()


@test('instant: no device is added meanwhile', quick=True)
def test_device_add(t):
    """It might access RAM by the descriptor, which userfaultfd does not see."""
    device = {'driver': 'virtio-balloon-pci', 'id': 'new', 'bus': 'rp0'}
    disk, path, _, vm, _ = restore(
        t, HELD, args=('-device', 'pcie-root-port,id=rp0'))
    with expect_error('a device was added', 'still being loaded', path):
        vm.command('device_add', device)
    said = vm.hmp('device_add virtio-balloon-pci,id=new,bus=rp0')
    check_says(said, 'still being loaded', path)
    disk.release()
    check_complete(t, vm)
    vm.command('device_add', device)
    vm.command('cont')
    vm.ticks_on()


@test('instant: an error that is gone before the guest has stopped',
      quick=True)
def test_error_gone(t):
    """A read for a fault fails.  While it is retried, a background read fails,
    so the guest should stop; a moment later the retry succeeds."""
    disk, _, _, vm, _ = restore(t, ('large read', ALL, 'hold, fail'),
                                ('later small read', range(1, 2), errno.EIO),
                                ('later small read', range(2, 3), 'fail held'),
                                **FOUR)
    wait_hung(vm, lambda: disk.held_to_fail)
    before = figures(vm.migration())['faults']
    disk.arm_later()
    vm.command('cont')
    # On a busy host the read may be retried before the guest stops
    while vm.command('query-status')['status'] != 'io-error' and \
            figures(vm.migration())['faults'] == before:
        vm.raise_if_dead()
        time.sleep(0.005)
    vm.command('cont')
    vm.wait_until(lambda: figures(vm.migration())['faults'] != before)
    disk.release()
    # On a busy host the background read may fail only now
    while vm.migration()['status'] != 'completed':
        resume(vm)
        time.sleep(0.005)
    check_complete(t, vm)
    if resume(vm):
        t.note('the guest stopped in time')
    vm.ticks_on()
    vm.wait_guest('sweep')


@test('instant: background reads fail while another hangs', quick=True)
def test_error_beside_held(t):
    """The error is reported, and the rest is loaded, although the first read
    does not end."""
    disk, _, _, vm, _ = restore(t, ('large read', range(1, 2), 'hold'),
                                ('large read', range(2, 1 << 30), errno.EIO),
                                mode=Mode(1, True))
    wait_error(vm)
    vm.wait_until(lambda: disk.held)
    disk.disarm()
    while vm.count_lines('sweep') < 2:
        # A read in flight may still have failed
        if vm.command('query-status')['status'] != 'running':
            vm.command('cont')
        time.sleep(0.05)
    info = vm.migration()
    assert info['status'] == 'postcopy-active', info
    assert figures(info)['background-bytes'], info
    disk.release()
    check_complete(t, vm)
    vm.ticks_on()


def touch(vm, first, last):
    """Has QEMU read these MiB of guest RAM, and thus load them."""
    vm.command('pmemsave', {'val': first << 20, 'size': (last - first) << 20,
                            'filename': '/dev/null'})


def all_there(info):
    return info['direct-io']['load-done'] == info['direct-io']['load-total']


@test('instant: all of RAM is there while a read hangs', quick=True)
def test_end_beside_held(t):
    """The last pages come from a background read, or from a fault, while
    another background read of pages that are there by now hangs: only the
    status waits for it."""
    while not end_beside_held(t):
        t.note('the error was not reported')


def end_beside_held(t):
    """Returns whether this could be tested: the read that fails may be one
    half of a background read, and the other half hangs."""
    disk, _, _, vm, _ = restore(
        t, ('large read', range(1, 2), 'hold, fail'),
        ('large read', range(3, 5), 'hold'), mode=Mode(1, True))
    vm.wait_until(lambda: disk.held and disk.held_to_fail)
    # The background load begins at 2 MiB, below which RAM is nearly empty
    touch(vm, 0, 2)
    touch(vm, 4, RAM)
    disk.fail_held()
    # If the read that fails is another one, all may be there already
    for _ in range(2000):
        if all_there(info := vm.migration()) or 'error-desc' in info:
            break
        time.sleep(0.005)
    else:
        disk.release()
        vm.kill()
        return False
    vm.command('cont')
    vm.command('stop')
    touch(vm, 2, 4)
    # Pages are counted a moment after they have been placed
    while not all_there(info := vm.migration()):
        time.sleep(0.005)
    assert info['status'] == 'postcopy-active', info
    disk.release()
    check_complete(t, vm)
    vm.command('cont')
    vm.wait_guest('sweep')
    return True


@test('instant: a background read that fails when its pages are there',
      quick=True)
def test_late_error(t):
    disk, _, want, vm, _ = restore(t, ('large read', ALL, 'hold, fail'))
    vm.wait_until(lambda: disk.held_to_fail)
    assert vm.ram_hash() == want, 'restored RAM is not what was saved'
    # Pages are counted a moment after they have been placed
    vm.wait_until(lambda: all_there(vm.migration()))
    disk.fail_held()
    check_complete(t, vm, want)
    assert 'error-desc' not in vm.migration(), vm.migration()
    assert not any('stopping the guest' in line for line in vm.errors()), \
        vm.errors()
    vm.command('cont')
    vm.ticks_on()


@test('instant: quit while the disk fails', quick=True)
def test_quit(t):
    for how in ('fails', 'runs', 'stopped'):
        vm = restore(t, ('direct read', LATER,
                         errno.EIO if how == 'fails' else 0.02)).vm
        if how != 'stopped':
            vm.command('cont')
        if how == 'fails':
            vm.wait_runstate('io-error')
        vm.command('quit')
        assert vm.wait_exit() == 0
        vm.kill()


@test('instant: a machine whose RAM is being loaded is not saved', quick=True)
def test_save_refused(t):
    disk, path, want, vm, _ = restore(t, HELD)
    other = t.path('other')
    # There is nothing to go back to, so as in any postcopy this has no effect
    vm.command('migrate_cancel')
    assert vm.migration()['status'] == 'postcopy-active', vm.migration()
    with expect_error('the load was paused', 'Loading RAM from a file cannot '
                                             'be paused'):
        vm.command('migrate-pause')
    vm.set_capabilities('postcopy-ram', state=False)
    info = vm.try_save(f'file:{other}')
    assert info['status'] == 'failed', info
    assert 'still being loaded' in info['error-desc'], info
    assert path in info['error-desc'], info
    assert not os.path.exists(other)
    vm.set_capabilities('multifd', 'mapped-ram', state=False)
    info = vm.try_save(f'unix:{other}')
    assert 'still being loaded' in info['error-desc'], info
    # The image is in use, so no other process may write it
    second = t.source(ram=RAM)
    info = second.try_save(f'file:{path}', DIRECT)
    assert info['status'] == 'failed' and 'lock' in info['error-desc'], \
        info
    disk.release()
    check_complete(t, vm, want)
    vm.save(f'file:{other}', DIRECT)
    assert vm.ram_hash() == want
    t.restores(f'file:{other}', want, DIRECT, ram=RAM).kill()
    # Now the lock is released
    second.save(f'file:{path}', DIRECT)


@test('instant: two guests from one image, which is then removed',
      quick=True)
def test_removed(t):
    disk, path, want, first, _ = restore(t, HELD)
    second = t.vm(incoming=True, ram=RAM)
    begin(second, f'file:{path}', DIRECT)
    os.unlink(path)
    with open(path, 'wb') as f:
        f.write(b'something else')
    disk.release()
    for vm in (first, second):
        check_complete(t, vm, want)
        vm.command('cont')
        vm.ticks_on()
        vm.wait_guest('sweep')


@test('instant: killed at any moment, the image restores again', quick=True)
def test_killed(t):
    path = t.path('image')
    want = saved(t, path, guest=DIRTY)
    before = os.stat(path)
    for i in range(6 if t.config.quick else 30):
        vm = t.vm(incoming=True, ram=RAM, guest=DIRTY)
        instant(vm, DIRECT)
        vm.command('migrate-incoming', {'uri': f'file:{path}'})
        time.sleep(i * 0.003)
        try:
            vm.command('cont')
        except QMPError:
            pass                # too early for this command
        vm.kill()
    after = os.stat(path)
    assert (before.st_mtime_ns, before.st_size) == \
        (after.st_mtime_ns, after.st_size), 'the image was written to'
    t.restores(f'file:{path}', want, DIRECT, ram=RAM,
               guest=DIRTY).kill()


@test('instant: a reset while RAM is being loaded', quick=True)
def test_reset(t):
    disk, _, _, vm, _ = restore(t, HELD)
    vm.command('cont')
    vm.ticks_on(1)
    vm.command('system_reset')
    vm.wait_lines('ready', 1)
    vm.ticks_on()
    disk.release()
    check_complete(t, vm)
    vm.wait_guest('sweep')


@test('instant: bad images are refused as by an eager restore', quick=True)
def test_bad_images(t):
    path = t.path('image')
    saved(t, path)
    size = os.path.getsize(path)
    with open(path, 'rb') as f:
        good = f.read(2 << 20)
    cut = t.path('cut')
    for keep in (5, 200, 5000):
        with open(cut, 'wb') as f:
            f.write(good[:keep])
        vm = t.vm(incoming=True, ram=RAM)
        instant(vm, DIRECT)
        said = vm.try_load(f'file:{cut}')
        assert said and cut in said, said
        vm.kill()
    # If RAM is truncated, device state is missing, so no guest ever runs
    os.truncate(path, size // 2)
    vm = t.vm(incoming=True, ram=RAM)
    instant(vm, DIRECT)
    said = vm.try_load(f'file:{path}')
    assert said and path in said, said


def check_reason(t, path, want, reason, wrapper=(), args=(), ram=RAM):
    """Checks that RAM is loaded before the guest runs, for this reason."""
    vm = t.vm(incoming=True, ram=ram, args=args, wrapper=wrapper)
    begin(vm, f'file:{path}', DIRECT)
    info = vm.wait_migration()
    assert info['status'] == 'completed', info
    found = figures(info)
    assert not found['active'] and reason in found['reason'], found
    assert found['total'] == 0, found
    assert vm.ram_hash() == want, 'restored RAM is not what was saved'
    said = vm.hmp('info migrate')
    assert reason in said and 'instant restore faults' not in said, said
    return vm


def check_eager(*args, **kwargs):
    """Checks that also the guest runs then."""
    vm = check_reason(*args, **kwargs)
    vm.command('cont')
    vm.ticks_on()
    vm.kill()


@test('instant: where it cannot be, the restore is eager and says why',
      quick=True)
def test_eager(t):
    t.need_root()
    path = t.path('image')
    want = saved(t, path)
    private = t.path('private')
    with open(private, 'wb') as f:
        f.truncate(RAM << 20)
    check_eager(t, path, want, 'private mapping', args=(
        '-object', f'memory-backend-file,id=pc.ram,size={RAM}M,'
        f'mem-path={private},share=off', '-machine', 'memory-backend=pc.ram'))
    check_eager(t, path, want, 'userfaultfd does not work on this', args=(
        '-object', f'memory-backend-file,id=pc.ram,size={RAM}M,'
        f'mem-path={private},share=on', '-machine', 'memory-backend=pc.ram'))
    check_eager(t, path, want, 'locked', args=('-overcommit', 'mem-lock=on'))
    with open('/proc/sys/vm/unprivileged_userfaultfd') as f:
        if f.read() == '1\n':
            t.note('not tested: everyone may use userfaultfd here')
            return
    check_eager(t, path, want, 'userfaultfd is not available', wrapper=(
        'unshare', '-m', 'sh', '-c',
        '[ ! -e /dev/userfaultfd ] || '
        'mount --bind /dev/null /dev/userfaultfd; '
        'exec setpriv --bounding-set -sys_ptrace --inh-caps -sys_ptrace '
        '"$@"', 'sh'))


@test('instant: with virtio-mem the restore is eager', quick=True)
def test_virtio_mem(t):
    path = t.path('image')
    args = ('-m', f'{RAM},maxmem=1G', '-object',
            'memory-backend-ram,id=vm0,size=256M', '-device',
            'virtio-mem-pci,id=vmem0,memdev=vm0,requested-size=0')
    check_eager(t, path, saved(t, path, args=args),
                'a device like virtio-mem discards guest memory', args=args)


@test('instant: with failover between network devices the restore is eager',
      quick=True)
def test_failover(t):
    """If the guest supports it, QEMU then adds the primary device."""
    path = t.path('image')
    args = ('-device', 'pcie-root-port,id=root0', '-netdev',
            'hubport,id=net,hubid=0', '-device',
            'virtio-net-pci,bus=root0,id=standby,netdev=net,failover=on')
    check_eager(t, path, saved(t, path, args=args), 'failover=on', args=args)


@test('instant: into huge pages of 1 GiB the restore is eager')
def test_gigantic(t):
    t.need_root()
    path = t.path('image')
    ram = 1024
    args = ('-object', f'memory-backend-memfd,id=pc.ram,size={ram}M,'
            'hugetlb=on,hugetlbsize=1G', '-machine', 'memory-backend=pc.ram')
    with huge_pages(ram, size=1024) as free:
        if not free:
            raise Skip('the host has no page of 1 GiB to give')
        want = saved(t, path, ram=ram, guest={'pages': 4096})
        check_eager(t, path, want, 'too large to be loaded one by one',
                    args=args, ram=ram)


def backend(kind, *options):
    """The arguments that make this the guest's RAM."""
    return ('-object', ','.join((f'memory-backend-{kind}', 'id=pc.ram',
                                 f'size={RAM}M', *options)),
            '-machine', 'memory-backend=pc.ram')


def allocated(vm):
    """How many bytes the host has allocated for RAM that is a memfd."""
    for fd in os.listdir(f'/proc/{vm.pid}/fd'):
        path = f'/proc/{vm.pid}/fd/{fd}'
        if os.readlink(path).startswith('/memfd:'):
            return os.stat(path).st_blocks * 512
    raise AssertionError('RAM is no memfd')


@test('instant: memory that is preallocated stays allocated', quick=True)
def test_preallocated(t):
    path = t.path('image')
    want = saved(t, path)
    for args in (('-mem-prealloc',), backend('ram', 'prealloc=on')):
        with case(args):
            check_eager(t, path, want, 'preallocated', args=args)
    vm = check_reason(t, path, want, 'preallocated', args=backend(
        'memfd', 'share=on', 'prealloc=on'))
    assert allocated(vm) == RAM << 20, f'only {allocated(vm)} bytes are left'


@test('instant: huge pages that are preallocated stay allocated', quick=True)
def test_preallocated_huge(t):
    """Otherwise others may take them, and the guest dies of that later on."""
    t.need_root()
    path = t.path('image')
    want = saved(t, path)
    with huge_pages(RAM) as free:
        if not free:
            raise Skip('the host has no huge pages to give')
        check_eager(t, path, want, 'preallocated', args=backend(
            'memfd', 'hugetlb=on', 'hugetlbsize=2M', 'prealloc=on'))


@test('instant: other memory', quick=True)
def test_memory(t):
    path = t.path('image')
    want = saved(t, path)
    for kind, *options in (('memfd', 'share=on'),
                           ('file', 'mem-path=/dev/shm', 'share=on')):
        with case(kind):
            follows(t, f'file:{path}', DIRECT, want,
                    args=backend(kind, *options))


@test('instant: a file that cannot be loaded this way keeps its blocks',
      quick=True)
def test_file(t):
    """It may be an NVDIMM, whose content is needed if the restore fails."""
    ram = os.path.join(t.filesystem('ext4', 4 * RAM << 20), 'ram')
    with open(ram, 'wb') as f:
        os.posix_fallocate(f.fileno(), 0, RAM << 20)
    path = t.path('image')
    check_eager(t, path, saved(t, path), 'does not work on this kind',
                args=backend('file', f'mem-path={ram}', 'share=on'))
    assert os.stat(ram).st_blocks * 512 >= RAM << 20


@test('instant: shared memory gets no huge pages meanwhile', quick=True)
def test_no_huge_pages(t):
    """The kernel might fill missing pages with zeros to make one."""
    def flags():
        with open(f'/proc/{vm.pid}/smaps') as f:
            parts = f.read().split('VmFlags:')
        found = [after.split('\n')[0].split()
                 for before, after in zip(parts, parts[1:])
                 if '/memfd:' in before.split('\n', 1)[1]]
        assert found, 'RAM is no memfd'
        return found

    disk, _, want, vm, _ = restore(t, HELD, args=backend('memfd', 'share=on'))
    assert all('nh' in x for x in flags()), flags()
    disk.release()
    check_complete(t, vm, want)
    assert not any('nh' in x for x in flags()), flags()


@test('instant: not for a source, and not with shared RAM left out',
      quick=True)
def test_settings(t):
    src = t.source(ram=RAM)
    with expect_error('a source accepts postcopy-ram with mapped-ram',
                      'postcopy-ram'):
        instant(src, DIRECT)
    vm = t.vm(incoming=True, ram=RAM)
    instant(vm, DIRECT)
    with expect_error('x-ignore-shared goes with postcopy-ram',
                      'ignore-shared'):
        vm.set_capabilities('x-ignore-shared')


@test('instant: an image with dirty bitmaps of disks', quick=True)
def test_dirty_bitmaps(t):
    """Like postcopy, dirty-bitmaps of the source announces itself in the
    stream."""
    args = ('-blockdev', 'null-co,node-name=disk,size=1048576')
    for mode in Mode(0), DIRECT:
        path = t.path('image')
        src = t.source(ram=RAM, args=args)
        src.command('block-dirty-bitmap-add', {'node': 'disk', 'name': 'map'})
        src.set_capabilities('dirty-bitmaps')
        want = saved(t, path, mode, source=src)
        with case(mode):
            vm = t.vm(incoming=True, ram=RAM, args=args)
            vm.set_capabilities('dirty-bitmaps')
            begin(vm, f'file:{path}', mode)
            found = check_complete(t, vm, want)
            assert 'reason' not in found, found
            disk, = vm.command('query-named-block-nodes')
            assert [m['name'] for m in disk['dirty-bitmaps']] == ['map'], disk
            vm.command('cont')
            vm.ticks_on()
            vm.wait_guest('sweep')
            vm.kill()
        os.unlink(path)


@test('instant: settings of the guest afterwards', quick=True)
def test_settings_after(t):
    """The capabilities stay as they were set, and others can be set.  A save
    says what to turn off."""
    path = t.path('image')
    want = saved(t, path)
    vm = t.vm(incoming=True, ram=RAM)
    begin(vm, f'file:{path}', DIRECT)
    check_complete(t, vm, want)
    vm.command('cont')
    vm.set_capabilities('events', 'return-path')
    vm.set_capabilities('events', 'return-path', state=False)
    vm.command('migrate-set-parameters', {'multifd-channels': 3})
    info = vm.try_save(f'file:{t.path("other")}')
    assert info['status'] == 'failed', info
    assert 'ostcopy' in info['error-desc'], info
    vm.set_capabilities('postcopy-ram', state=False)
    with expect_error('it is no destination any more', 'postcopy-ram'):
        vm.set_capabilities('postcopy-ram')
    vm.save(f'file:{t.path("other")}')


@test('instant: the kernel reads RAM that is not there', quick=True)
def test_kernel(t):
    """To write a dump, QEMU passes guest RAM to the kernel, which reads it."""
    disk, _, want, vm, info = restore(t, HELD)
    assert info['status'] == 'postcopy-active', info
    dumps = []
    for name in ('missing', 'there'):
        vm.command('dump-guest-memory', {
            'paging': False, 'protocol': f'file:{t.path(name)}'})
        dumps.append(file_hash(t.path(name)))
        os.unlink(t.path(name))
        disk.release()
        found = check_complete(t, vm, want)
    assert dumps[0] == dumps[1], 'the dump of missing RAM is another'
    assert found['faults'] + found['zero-faults'], found


@test('instant: with each engine', quick=True)
def test_engines(t):
    def one(engine):
        path = t.path('image')
        want = saved(t, path)
        vm = t.vm(incoming=True, ram=RAM, emulator=with_engine(t, engine))
        begin(vm, f'file:{path}', DIRECT)
        check_complete(t, vm, want)
        check_engine(vm.migration(), engine)
        vm.command('cont')
        vm.ticks_on()
        vm.wait_guest('sweep')
        vm.kill()
        os.unlink(path)
    each_engine(t, one)
