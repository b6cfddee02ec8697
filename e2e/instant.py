# SPDX-License-Identifier: GPL-2.0-or-later
"""Code shared by the tests of instant restore."""

import collections
import contextlib
import ctypes
import fcntl
import os
import time

from lab.vm import Mode

from .faults import broken
from .harness import Skip

RAM = 64
DIRECT = Mode(2, True)
ALL = range(1, 1 << 30)
LATER = range(16, 1 << 30)      # skips the reads before the guest runs
HELD = ('large read', ALL, 'hold')
# Four background threads, on any number of CPUs, with one read each
FOUR = {'mode': Mode(4, True), 'params': {'x_direct_io_depth': 1}}

USERFAULTFD_NEW = 0xaa00        # USERFAULTFD_IOC_NEW, of Linux 6.1
SYSTEM_CALL = {'x86_64': 323, 'aarch64': 282}


def new_userfaultfd():
    """Returns a new descriptor, from the device or from the system call; the
    call needs a privilege.  Raises OSError if there is none."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    with contextlib.suppress(OSError), \
            open('/dev/userfaultfd', 'r+b', buffering=0) as device:
        return fcntl.ioctl(device, USERFAULTFD_NEW, flags)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(SYSTEM_CALL[os.uname().machine], flags)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def need_userfaultfd():
    try:
        os.close(new_userfaultfd())
    except OSError as err:
        raise Skip(f'no userfaultfd here: {err}') from None


def instant(vm, mode, **params):
    """Configures a destination for an instant restore."""
    vm.setup(mode, **params)
    vm.set_capabilities('postcopy-ram')


def begin(vm, uri, mode, **params):
    """Starts a restore and waits until the guest may run."""
    need_userfaultfd()
    instant(vm, mode, **params)
    vm.command('migrate-incoming', {'uri': uri})
    return wait_status(vm, 'postcopy-active', 'completed')


def wait_status(vm, *wanted):
    while True:
        info = vm.migration()
        status = info.get('status')
        if status in wanted:
            return info
        if status == 'failed':
            raise AssertionError(f'the restore failed: '
                                 f'{info.get("error-desc")}')
        time.sleep(0.005)


def wait_hung(vm, count):
    """Waits until all background threads of a restore with FOUR hang; from
    then on, small reads are for faults.  `count()` is how many large reads are
    held: the kernel makes two requests of a read of 2 MiB."""
    vm.wait_until(lambda: count() >= 8)


def wait_error(vm):
    """Waits until a failed read is reported; returns the message."""
    while True:
        said = vm.migration().get('error-desc')
        if said:
            return said
        vm.raise_if_dead()
        time.sleep(0.005)


def resume(vm):
    """Continues a guest that has stopped for an error, or has been reset since;
    returns whether."""
    stopped = vm.command('query-status')['status'] in ('io-error', 'prelaunch')
    if stopped:
        vm.command('cont')
    return stopped


Restore = collections.namedtuple('Restore', 'disk path want vm info')


def restore(t, *faults, mode=DIRECT, ram=RAM, source=None, params=None,
            **kwargs):
    """Begins to restore from a file system that injects `faults` after the
    save.  With direct I/O, a `large read` is one of the background load."""
    disk = broken(t, *faults, armed=False)
    path = os.path.join(disk.mount, 'image')
    want = saved(t, path, mode, ram, source, **kwargs)
    disk.arm()
    vm = t.vm(incoming=True, ram=ram, **kwargs)
    return Restore(disk, path, want, vm,
                   begin(vm, f'file:{path}', mode, **(params or {})))


def figures(info):
    return info['direct-io']['instant']


def saved(t, path, mode=DIRECT, ram=RAM, source=None, **kwargs):
    """Like t.saved(), for the guest and the mode of these tests."""
    return t.saved(path, mode, source, ram=ram, **kwargs)


def check_complete(t, vm, want=None):
    """Checks that all RAM is loaded, that the figures add up, and that RAM has
    its saved content."""
    info = vm.wait_migration()
    assert info['status'] == 'completed', info
    found = figures(info)
    assert not found['active'], found
    assert found['total'] > 0, found
    assert found['fault-bytes'] + found['background-bytes'] == \
        found['total'], found
    assert found['moved-bytes'] <= found['background-bytes'], found
    direct = info['direct-io']
    assert direct['load-done'] == direct['load-total'], direct
    if want:
        assert vm.ram_hash() == want, 'restored RAM is not what was saved'
    return found


def follows(t, uri, mode, want, descriptors=(), **kwargs):
    """Checks that RAM is loaded while the guest runs, and is correct."""
    vm = t.vm(incoming=True, ram=RAM, **kwargs)
    vm.add_fds(3, *descriptors)
    begin(vm, uri, mode)
    found = check_complete(t, vm, want)
    assert 'reason' not in found, found
    vm.command('cont')
    vm.ticks_on()
    vm.wait_guest('sweep')
    vm.kill()
