# SPDX-License-Identifier: GPL-2.0-or-later
"""The output of query-migrate while a save or a restore waits for the disk."""

import contextlib
import errno
import fcntl
import os
import re
import time

from lab.vm import FINAL, Mode

from .checks import check_error, expect_error
from .faults import HeldRestore, faulty, held_save, open_gate, stalls
from .harness import Skip, test
from .strace import need_strace, strace


def release(t, vm):
    """Releases held calls; returns the final state."""
    assert stalls(t) == ['stall'], 'it was not held all the time'
    open_gate(t)
    info = vm.wait_migration()
    assert info['status'] == 'completed', info
    assert 'phase' not in info['direct-io'], info
    return info


@test('status: a restore tells how far it is', quick=True)
def test_load_progress(t):
    held = HeldRestore(t, Mode(1, True))
    section = held.vm.migration()['direct-io']
    assert section['phase'] == 'ram', section
    assert 0 <= section['load-done'] < section['load-total'], section
    held.release()
    section = held.vm.migration()['direct-io']
    assert section['load-done'] == section['load-total'], section


@test('status: a save waits for stable storage', quick=True)
def test_sync_phase(t):
    vm = held_save(t, Mode(2, True), 'sync:1')
    info = vm.migration()
    assert info['status'] in ('active', 'device'), info
    assert info['direct-io']['phase'] == 'sync', info
    assert 'phase sync' in vm.hmp('info migrate')
    release(t, vm)


@test('status: a save waits for a write', quick=True)
def test_write_held(t):
    vm = held_save(t, Mode(1, True), 'write:d2')
    info = vm.migration()
    assert info['direct-io']['phase'] == 'ram', info
    assert info['ram']['remaining'] > 0, info
    release(t, vm)


@test('status: settings that are changed meanwhile', quick=True)
def test_changed(t):
    """They apply to the next migration only."""
    path = t.path('image')
    vm = held_save(t, Mode(2), 'write:b30')
    vm.command('migrate-set-parameters', {'direct-io': True})
    section = vm.migration()['direct-io']
    assert not section['active'], section
    assert section['reason'] == "parameter 'direct-io' is off", section
    section = release(t, vm)['direct-io']
    assert not section['active'] and not section['direct-bytes'], section
    t.restores(f'file:{path}', vm.ram_hash(), Mode(2)).kill()
    vm.command('cont')
    info = vm.try_save(f'file:{path}')
    assert info['status'] == 'completed', info
    section = info['direct-io']
    assert section['active'] and section['direct-bytes'], section


@test('status: direct-io is turned off meanwhile', quick=True)
def test_turned_off(t):
    vm = held_save(t, Mode(2, True), 'write:d2')
    vm.command('migrate-set-parameters', {'direct-io': False})
    section = vm.migration()['direct-io']
    assert section['active'] and 'reason' not in section, section
    section = release(t, vm)['direct-io']
    for _ in range(2):
        assert section['direct-bytes'], section
        assert section['active'] and 'reason' not in section, section
        vm.set_capabilities('multifd', 'mapped-ram', state=False)
        section = vm.migration()['direct-io']
    # The next migration has nothing to do with it
    vm.command('cont')
    info = vm.try_save(f'exec:cat > {t.path("stream")}')
    assert info['status'] == 'completed', info
    assert 'direct-io' not in info, info


@test('status: direct I/O to a file that is passed by fd:', quick=True)
def test_passed(t):
    """It is opened once more with O_DIRECT."""
    vm = t.source()
    fd = t.open(t.path('image'), os.O_RDWR | os.O_CREAT)
    vm.command('getfd', {'fdname': 'file'}, fds=[fd])
    section = vm.save('fd:file', Mode(2, True))['direct-io']
    assert section['active'] and 'reason' not in section, section
    assert section['direct-bytes'], section


SYSCTL = '/proc/sys/kernel/io_uring_disabled'


@contextlib.contextmanager
def io_uring_privileged():
    """Forbids io_uring to processes without the capability CAP_SYS_ADMIN, if
    it is not forbidden already."""
    with open_sysctl() as f:
        fcntl.flock(f, fcntl.LOCK_EX)       # another test run does the same
        before = f.read()
        try:
            if before == '0\n':
                set_sysctl('1')
            yield
        finally:
            if before == '0\n':
                set_sysctl(before)


def open_sysctl():
    try:
        return open(SYSCTL, 'r+')
    except OSError as err:
        if err.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise Skip(f'the sysctl cannot be set here: {err}') from None


def set_sysctl(value):
    with open(SYSCTL, 'w') as f:
        f.write(value)


@test('status: the sysctl that forbids io_uring', quick=True)
def test_sysctl(t):
    t.need_root()
    if not os.path.exists(SYSCTL):
        raise Skip('the kernel has no such sysctl: Linux 6.6 has')
    path = t.path('image')
    with io_uring_privileged():
        vm = t.source(wrapper=('setpriv', '--bounding-set', '-sys_admin',
                               '--inh-caps', '-sys_admin'))
        section = vm.save(f'file:{path}', Mode(2, True))['direct-io']
    assert section['engine'] == 'linux-aio', section
    assert 'io_uring: not permitted (by the sysctl ' \
        'kernel.io_uring_disabled' in section['engine-reason'], section
    t.restores(f'file:{path}', vm.ram_hash(), Mode(2, True)).kill()


@test('status: a lower limit of the bandwidth does not stop the save',
      quick=True)
def test_lower_limit(t):
    """What was written before is not owed: at this limit, 200 MB would take
    half an hour."""
    vm = t.source(ram=512, guest={'dirty': 256})
    vm.setup(Mode(4, True), downtime_limit=1, max_bandwidth=200 << 20)
    vm.start_save(f'file:{t.path("image")}')
    while vm.written() < 200 << 20:
        status = vm.migration()['status']
        assert status not in FINAL, f'the save {status} too early'
        time.sleep(0.01)
    vm.command('migrate-set-parameters', {'max-bandwidth': 100 << 10})
    time.sleep(3)
    before = vm.written()
    vm.wait_until(lambda: vm.written() != before)
    vm.command('migrate_cancel')
    assert vm.wait_migration()['status'] == 'cancelled'


@test('status: a new file in a directory that cannot be read', quick=True)
def test_unreadable(t):
    """Its entry is synced nevertheless, with the whole file system."""
    need_strace()
    directory, log = t.path('directory'), t.path('log')
    os.mkdir(directory, 0o300)
    drop = '-dac_override,-dac_read_search'
    vm = t.source(wrapper=('setpriv', '--bounding-set', drop,
                           '--inh-caps', drop))
    for mode, call in ((0o300, 'syncfs'), (0o700, 'fsync')):
        os.chmod(directory, mode)
        tracer = strace(vm, log, 'syncfs,fsync')
        vm.save(f'file:{directory}/image{mode}', Mode(2, True))
        tracer.stop()
        with open(log) as f:
            found = f.read()
        what = 'image' if call == 'syncfs' else 'directory>'
        assert re.search(rf'{call}\(\d+<[^>]*/{what}', found), found
        vm.command('cont')


@test('status: file-sync=off does not sync', quick=True)
def test_no_sync(t):
    """If every sync fails, only a save without syncs produces an image."""
    path = t.path('image')
    vm = t.source(emulator=faulty(t, 'image', f'sync:1+:{errno.EIO}'))
    info = vm.try_save(f'file:{path}', Mode(2, True))
    check_error(info, path, 'stable storage')
    vm.save(f'file:{path}', Mode(2, True), file_sync=False)
    t.restores(f'file:{path}', vm.ram_hash(), Mode(2, True))


@test('status: the engine, and why none better', quick=True)
def test_engine(t):
    path = t.path('image')
    engines = []
    reasons = []
    for hidden in ('', 'aio', 'sync'):
        vm = t.source(emulator=faulty(t, 'image', engine=hidden))
        section = vm.save(f'file:{path}', Mode(2, True))['direct-io']
        engines.append(section['engine'])
        reasons.append(section.get('engine-reason', ''))
        if hidden:
            vm.command('cont')
            vm.setup(Mode(2, True), x_direct_io_engine='io_uring')
            with expect_error('an engine that is not there was taken',
                              'x-direct-io-engine', path):
                vm.start_save(f'file:{path}')
            vm.ticks_on()
        vm.kill()
        os.unlink(path)
    assert engines[1:] == ['linux-aio', 'sync'], engines
    assert 'io_uring: ' in reasons[1], reasons
    assert 'linux-aio: ' in reasons[2], reasons
    if engines[0] == 'io_uring':
        assert not reasons[0], reasons
