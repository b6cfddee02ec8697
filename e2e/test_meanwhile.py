# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest or the user does while the machine is saved or restored."""

import copy
import errno
import os
import socket
import threading
import time

from lab.qmp import QMPError

from . import ivshmem
from .checks import check_error, check_says, expect_error
from .faults import HeldRestore, broken, faulty, open_gate, stalls, wait_stall
from .harness import Skip, test
from .instant import ALL, FOUR, HELD, begin, check_complete, figures, \
    restore, resume, saved, wait_hung
from .last_stage import DIRECT, GUEST, RAM, cancel_while_frozen, check_disk, \
    freeze, go_on, hung, to_switchover
from .ports import SOFT_OFF, SUSPEND, power
from .snapshots import SIZE, add_disk, snapshot

# Port of ACPI of a q35 machine
MEMORY_HOTPLUG = 0xa00
BUSY = 'a migration process in progress'


def power_at_end(t, how, cancel=True, **kwargs):
    """Does that in the last stage of a save, which is then cancelled or
    completes."""
    fs, vm = hung(t, ('direct write', range(1, 3), 'hold'), **kwargs)
    power(vm, how)
    assert vm.command('query-status')['status'] == 'finish-migrate'
    if cancel:
        vm.command('migrate_cancel')
    fs.release()
    info = vm.wait_migration()
    assert info['status'] == ('cancelled' if cancel else 'completed'), info
    return vm


@test('meanwhile: the guest powers off in the last stage', quick=True)
def test_power_off(t):
    """A save that fails leaves the guest as it is by then."""
    vm = power_at_end(t, SOFT_OFF, args=('-no-shutdown',))
    vm.wait_runstate('shutdown')


@test('meanwhile: the guest suspends itself in the last stage', quick=True)
def test_suspend(t):
    """It does so when it runs again."""
    vm = power_at_end(t, SUSPEND)
    vm.wait_runstate('suspended')
    vm.kill()

    vm = power_at_end(t, SUSPEND, cancel=False)
    assert vm.command('query-status')['status'] == 'postmigrate'


@test('meanwhile: a guest that was stopped before the save failed',
      quick=True)
def test_stopped_before(t):
    """It is in the same state afterwards, unless that is one which only a
    running guest can enter."""
    fs = broken(t, ('sync', range(3, 1 << 30), errno.EIO))

    def status_after_failure():
        info = vm.try_save(f'file:{os.path.join(fs.mount, "image")}', DIRECT)
        check_error(info, 'image', os.strerror(errno.EIO))
        return vm.command('query-status')['status']

    address = t.path('gdb')
    vm = t.source(ram=RAM, guest=GUEST, args=(
        '-gdb', f'unix:{address},server=on,wait=off', '-no-shutdown'))
    with socket.socket(socket.AF_UNIX) as debugger:
        debugger.connect(address)
        debugger.sendall(b'+$s#73')
        vm.wait_runstate('debug')
        assert status_after_failure() == 'paused'
    vm.command('cont')
    vm.ticks_on()
    power(vm, SOFT_OFF)
    vm.wait_runstate('shutdown')
    assert status_after_failure() == 'shutdown'


@test('meanwhile: a debugger continues the guest in the last stage',
      quick=True)
def test_continue(t):
    """It stays stopped, as its disks are inactive, and is saved as it was."""
    address = t.path('gdb')
    fs, vm = hung(t, ('direct write', range(1, 3), 'hold'), args=(
        '-gdb', f'unix:{address},server=on,wait=off'))
    with socket.socket(socket.AF_UNIX) as debugger:
        debugger.connect(address)
        debugger.sendall(b'+$c#63')
        # QEMU acknowledges the command
        assert debugger.recv(1) == b'+'
        status = vm.command('query-status')['status']
        assert status == 'finish-migrate', status
        fs.release()
        info = vm.wait_migration()
        assert info['status'] == 'completed', info
        assert vm.command('query-status')['status'] == 'postmigrate'
    vm.command('cont')
    vm.ticks_on()


@test('meanwhile: a disk image is changed in the last stage', quick=True)
def test_disk_image(t):
    """Its node is inactive by then."""
    disk = t.path('disk')
    vm = t.vm(guest=False)
    add_disk(vm, disk, create=True)
    vm.command('blockdev-snapshot-internal-sync',
               {'device': 'disk', 'name': 'one'})
    vm.kill()
    fs, vm = hung(t, ('sync', range(1, 3), 'hold'), args=(
        '-blockdev', f'qcow2,node-name=disk,file.driver=file,'
        f'file.filename={disk},backing.driver=null-co',
        '-blockdev', f'null-co,node-name=other,size={SIZE}'))
    to_disk = {'device': 'other', 'target': 'disk', 'sync': 'full'}
    jobs = (('block-stream', {'device': 'disk'}),
            ('block-commit', {'device': 'disk'}),
            ('blockdev-mirror', to_disk), ('blockdev-backup', to_disk))
    commands = (
        ('blockdev-snapshot-delete-internal-sync',
         {'device': 'disk', 'name': 'one'}),
        ('change-backing-file', {'device': 'disk', 'image-node-name': 'disk',
                                 'backing-file': 'null-co://'}),
        ('block_resize', {'node-name': 'disk', 'size': 1 << 20}))
    for command, more in commands:
        with expect_error(f'{command} was accepted', 'inactive'):
            vm.command(command, more)
    for command, more in jobs:
        with expect_error(f'{command} was accepted', 'nactive'):
            vm.command(command, {'job-id': 'job', **more})
    fs.release()
    assert vm.wait_migration()['status'] == 'completed'
    vm.command('cont')
    vm.ticks_on()
    for command, more in commands:
        vm.command(command, more)


@test('meanwhile: a job copies a disk', quick=True)
def test_mirror(t):
    """Its target may not be written any more when disks are inactive.  The old
    image is kept, unless the user could have ended the job."""
    path = t.path('image')
    uri = f'file:{path}'
    # Whenever QEMU drains all disks, the job copies 16 MiB at once
    size = 1 << 40
    vm = t.source(ram=RAM, guest=GUEST, args=(
        '-blockdev', f'null-co,node-name=from,size={size}',
        '-blockdev', f'null-co,node-name=to,size={size}'))
    vm.save(uri, DIRECT)
    with open(path, 'rb') as f:
        old = f.read()
    vm.command('cont')
    vm.ticks_on()

    vm.command('blockdev-mirror', {
        'job-id': 'job', 'device': 'from', 'target': 'to', 'sync': 'full',
        'speed': 65536})
    with expect_error('it was accepted', "Block job 'job' still copies"):
        vm.start_save(uri)
    with open(path, 'rb') as f:
        assert f.read() == old

    for mode in (DIRECT, None):
        to_switchover(vm, uri, mode)
        go_on(vm)
        info = vm.wait_migration()
        check_error(info, "Block job 'job' still copies a disk")
        vm.wait_runstate('running')
        vm.ticks_on()
    assert vm.command('query-block-jobs'), 'the job has ended'

    to_switchover(vm, uri, DIRECT)
    vm.command('block-job-cancel', {'device': 'job', 'force': True})
    vm.wait_until(lambda: not vm.command('query-block-jobs'))
    go_on(vm)
    assert vm.wait_migration()['status'] == 'completed'


def mirror_job(vm):
    jobs = vm.command('query-block-jobs')
    return jobs[0] if jobs else None


@test('meanwhile: a job has copied a disk, and follows its changes',
      quick=True)
def test_ready_mirror(t):
    """It does not prevent a save, unless there are changes left to copy."""
    uri = f'file:{t.path("image")}'
    size = 64 << 20
    vm = t.source(ram=RAM, guest=GUEST, args=(
        '-blockdev', f'null-co,node-name=from,size={size}',
        '-blockdev', f'null-co,node-name=to,size={size}',
        '-device', 'virtio-blk-pci,drive=from,id=disk'))
    vm.command('blockdev-mirror', {'job-id': 'job', 'device': 'from',
                                   'target': 'to', 'sync': 'full'})
    vm.wait_until(lambda: mirror_job(vm)['ready'])
    for mode in (DIRECT, None):
        vm.save(uri, mode)
        vm.command('cont')
        vm.ticks_on()
    vm.command('stop')
    vm.save(uri, DIRECT)
    assert mirror_job(vm)['ready'], mirror_job(vm)
    vm.command('cont')

    # One that is paused is ready, too
    vm.command('block-job-pause', {'device': 'job'})
    vm.wait_until(lambda: mirror_job(vm)['status'] == 'standby')
    vm.save(uri, DIRECT)
    vm.command('cont')
    said = vm.hmp('qemu-io -d /machine/peripheral/disk/virtio-backend '
                  '"write 0 1M"')
    assert not said, said
    check_error(vm.try_save(uri, DIRECT),
                "Block job 'job' still copies a disk")
    vm.ticks_on()
    vm.command('block-job-cancel', {'device': 'job', 'force': True})
    vm.wait_until(lambda: not mirror_job(vm))
    vm.save(uri, DIRECT)


def status(vm):
    return vm.command('query-status')['status']


def scsi_disk(*node):
    return ('-device', 'virtio-scsi-pci', *node,
            '-device', 'scsi-hd,drive=d0,id=disk')


@test('meanwhile: a save is cancelled while dirty pages are collected',
      quick=True)
def test_cancel_in_sync(t):
    """TCG waits for each CPU then, without QEMU's lock.  The guest runs
    afterwards, and its disks are active."""
    vm = t.source(ram=RAM, guest=GUEST, args=scsi_disk(
        '-blockdev', 'null-co,node-name=d0,read-zeroes=on'))
    for mode in (None, DIRECT):
        info = cancel_while_frozen(vm, f'file:{t.path("image")}', mode)
        assert info['status'] == 'cancelled', info
        vm.ticks_on()
        check_disk(vm, 'disk')


@test('meanwhile: another process takes a disk in the last stage', quick=True)
def test_taken_disk(t):
    """The save fails, and the disk cannot be activated again: the guest must
    not run without it."""
    path = t.path('disk')
    with open(path, 'wb') as f:
        f.truncate(1 << 20)
    args = scsi_disk('-blockdev', 'raw,node-name=d0,file.driver=file,'
                     f'file.locking=on,file.filename={path}')
    fs = broken(t, ('sync', range(1, 20), 'hold, fail'), armed=False)
    vm = t.source(ram=RAM, guest=GUEST, args=args)
    to_switchover(vm, f'file:{os.path.join(fs.mount, "image")}', DIRECT)
    fs.arm()
    go_on(vm)
    vm.wait_until(lambda: fs.held_to_fail)
    other = t.vm(guest=False, ram=RAM, args=args)
    fs.fail_held()
    check_error(vm.wait_migration(), os.strerror(errno.EIO))
    vm.wait_until(lambda: status(vm) != 'finish-migrate')
    assert status(vm) == 'paused', status(vm)
    with expect_error('the guest was continued', 'lock'):
        vm.command('cont')
    other.kill()
    vm.command('cont')
    vm.ticks_on()
    check_disk(vm, 'disk')


@test('meanwhile: the mode is changed during a save', quick=True)
def test_mode(t):
    if not t.config.ours.at_least(8, 2):
        raise Skip(f'{t.config.ours.version} has no parameter "mode"')
    path = t.path('image')
    vm = t.source(ram=RAM, guest=GUEST)
    to_switchover(vm, f'file:{path}', DIRECT)
    with expect_error('it was changed', "'mode' cannot be changed"):
        vm.command('migrate-set-parameters', {'mode': 'cpr-reboot'})
    vm.command('migrate-set-parameters', {'mode': 'normal'})
    go_on(vm)
    assert vm.wait_migration()['status'] == 'completed'
    vm.command('migrate-set-parameters', {'mode': 'cpr-reboot'})


@test('meanwhile: a stream is cancelled while a CPU is slow to stop',
      quick=True)
def test_slow_cpu(t):
    """The guest runs again, unless it was stopped, and its disks are active.
    TCG would wait for the CPU already when it collects dirty pages."""
    emulator = copy.copy(t.config.ours)
    emulator.accel = 'qtest'
    vm = t.vm(guest=False, ram=RAM, emulator=emulator, args=(
        '-blockdev', 'driver=null-co,node-name=d0,read-zeroes=on'))
    vm.setup(None)
    for stop in (False, True):
        with freeze(vm):
            vm.start_save(f'file:{t.path("image")}')
            vm.wait_runstate('finish-migrate')
            if stop:
                vm.command('stop')
            vm.command('migrate_cancel')
        assert vm.wait_migration()['status'] == 'cancelled'
        vm.wait_runstate('paused' if stop else 'running')
        said = vm.hmp('qemu-io d0 "write 0 512"')
        assert not said, said
        vm.command('query-status')


@test('meanwhile: a migration has failed, but still opens a connection',
      quick=True)
def test_pending_channel(t):
    """Its thread waits for the main loop, which must not wait for the thread.
    One channel of multifd fails while the other one is being connected."""
    path = t.path('stream')
    vm = t.source(ram=RAM, emulator=faulty(
        t, 'stream', 'connect:2:mute=1', 'connect:3:hold'))
    add_disk(vm, t.path('disk'), create=True)
    assert snapshot(vm, 'snapshot-save', 'one') is None
    vm.setup(None, multifd_channels=2)
    vm.set_capabilities('multifd')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        vm.start_save(f'unix:{path}')
        assert vm.wait_migration()['status'] == 'failed'
        # The second connection may fail before the third one is held
        vm.wait_until(lambda: sorted(stalls(t)) == ['done', 'stall', 'stall'])
        with expect_error('it was accepted', BUSY):
            vm.start_save(f'unix:{path}')
        vm.set_capabilities('multifd', state=False)
        for said in (snapshot(vm, 'snapshot-save', 'two'),
                     snapshot(vm, 'snapshot-load', 'one'),
                     vm.hmp('loadvm one')):
            assert said and BUSY in said, said
        vm.set_capabilities('multifd')
        vm.ticks_on()
        open_gate(t)
        vm.wait_until(lambda: retry(vm, path))
    # Nobody listens any more
    assert vm.wait_migration()['status'] == 'failed'
    vm.ticks_on()


def retry(vm, path):
    """Starts a migration, unless the previous one has not ended yet."""
    try:
        vm.start_save(f'unix:{path}')
    except QMPError as err:
        check_says(err.desc, BUSY)
        return False
    return True


@test('meanwhile: a DIMM is ejected, and its memory deleted', quick=True)
def test_eject(t):
    """The guest was asked before the save.  Workers may still read it."""
    memory, path = t.path('memory'), t.path('image')
    vm = t.source(ram=RAM, guest=GUEST, args=(
        '-m', 'slots=1,maxmem=1G',
        '-object', f'memory-backend-file,id=mem0,size=128M,mem-path={memory},'
        'share=on', '-device', 'pc-dimm,id=dimm0,memdev=mem0'),
        emulator=faulty(t, 'image', 'write:d1:hold'))
    vm.command('stop')
    vm.command('device_del', {'id': 'dimm0'})
    vm.setup(DIRECT)
    vm.start_save(f'file:{path}')
    wait_stall(t, vm)
    vm.hmp(f'o /w {MEMORY_HOTPLUG:#x} 0')
    vm.hmp(f'o /b {MEMORY_HOTPLUG + 0x14:#x} 8')
    while not vm.events('DEVICE_DELETED'):
        vm.raise_if_dead()
        vm.command('query-status')
        time.sleep(0.01)
    vm.command('object-del', {'id': 'mem0'})
    # Wait until unused memory has been freed, which takes a few steps
    for _ in range(5):
        assert vm.hmp('device_add pci-testdev'), 'a device was added'
    assert is_mapped(vm, memory), 'the memory of a RAM block was freed'
    open_gate(t)
    info = vm.wait_migration()
    assert info['status'] == 'completed', info
    vm.wait_until(lambda: not is_mapped(vm, memory))


@test('meanwhile: a DIMM is ejected while the save begins', quick=True)
def test_eject_early(t):
    """The image does not have it."""
    fs = broken(t, ('truncate', range(1, 2), 'hold'))
    path = os.path.join(fs.mount, 'image')
    with open(t.path('image'), 'wb') as f:
        f.truncate(1 << 30)
    slots = '-m', 'slots=1,maxmem=1G'
    vm = t.source(ram=RAM, guest=GUEST, args=(
        *slots, '-object', 'memory-backend-ram,id=mem0,size=128M',
        '-device', 'pc-dimm,id=dimm0,memdev=mem0'))
    vm.command('stop')
    vm.command('device_del', {'id': 'dimm0'})
    vm.setup(DIRECT)
    vm.start_save(f'file:{path}')
    vm.wait_until(lambda: fs.held)
    vm.hmp(f'o /w {MEMORY_HOTPLUG:#x} 0')
    vm.hmp(f'o /b {MEMORY_HOTPLUG + 0x14:#x} 8')
    vm.wait_until(lambda: not vm.command('query-memory-devices'))
    fs.release()
    info = vm.wait_migration()
    assert info['status'] == 'completed', info
    want = vm.ram_hash()
    vm.kill()
    t.restores(f'file:{path}', want, DIRECT, ram=RAM, args=slots)


def is_mapped(vm, path):
    with open(f'/proc/{vm.pid}/maps') as f:
        return path in f.read()


@test('meanwhile: no snapshot is loaded during an eager restore', quick=True)
def test_loadvm(t):
    held = HeldRestore(t, DIRECT)
    said = held.vm.hmp('loadvm x')
    assert f"being restored from '{t.path('image')}'" in said, said
    held.release()


@test('meanwhile: a reset during an instant restore, before the disk fails',
      quick=True)
def test_reset(t):
    """A CPU waits for a page for so long that the reset waits for the CPU;
    then the page turns out to be unreadable, so the CPU waits for `cont`, and
    so must the reset."""
    disk, _, _, vm, _ = restore(
        t, HELD, ('later small read', ALL, 'hold, fail'), **FOUR)
    wait_hung(vm, lambda: disk.held)
    disk.arm_later()
    vm.command('cont')
    vm.wait_until(lambda: disk.held_to_fail)
    reset = threading.Thread(target=vm.command, args=('system_reset',),
                             daemon=True)
    reset.start()
    time.sleep(0.5)     # if this is too short, the reset has not begun to wait
    disk.fail_held()
    reset.join()
    vm.wait_runstate('io-error')
    assert not vm.events('RESET'), \
        'a CPU was reset in the middle of an instruction'
    disk.disarm()
    disk.release()
    # If the page is retried before `cont`, the guest is reset first
    while vm.count_lines('ready') == 0:
        resume(vm)
        time.sleep(0.05)
    check_complete(t, vm)
    vm.ticks_on()
    vm.wait_guest('sweep')


def check_ivshmem(t, source, destination):
    """Checks that the restore is eager with these arguments."""
    path = t.path('image')
    want = saved(t, path, args=source)
    vm = t.vm(incoming=True, ram=RAM, args=destination)
    info = begin(vm, f'file:{path}', DIRECT)
    assert 'an ivshmem device' in figures(info)['reason'], info
    assert vm.wait_migration()['status'] == 'completed'
    assert vm.ram_hash() == want


@test('meanwhile: memory that others map is not loaded later', quick=True)
def test_ivshmem(t):
    def shared(name):
        return ('-object', 'memory-backend-file,id=shm,size=2M,share=on,'
                f'mem-path={t.path(name)}',
                '-device', 'ivshmem-plain,memdev=shm,master=on')

    check_ivshmem(t, shared('first'), shared('second'))


@test('meanwhile: memory that an ivshmem server has passed', quick=True)
def test_ivshmem_server(t):
    """What its other clients see of it is replaced only when all of it is
    there."""
    def shared(name):
        server = ivshmem.Server(t.path(name), 2 << 20)
        t.stack.callback(server.close)
        return server.memory, (
            '-chardev', f'socket,id=server,path={server.path}',
            '-device', 'ivshmem-doorbell,chardev=server,master=on')

    before, source = shared('first')
    after, destination = shared('second')
    before[:] = b'saved'.ljust(len(before), b'!')
    after[:] = b'other'.ljust(len(after), b'?')
    check_ivshmem(t, source, destination)
    assert after[:] == before[:], 'its content was not restored'
