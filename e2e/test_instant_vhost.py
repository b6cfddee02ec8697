# SPDX-License-Identifier: GPL-2.0-or-later
"""Instant restore and vhost-user: a process that maps the guest's RAM does not
see what is still to be loaded."""

import time

from lab.qmp import QMPError

from .checks import check_says, expect_error
from .harness import Skip, test
from .instant import DIRECT, HELD, RAM, begin, check_complete, figures, \
    restore, saved
from .vhost_user import Backend

NETDEV = {'type': 'vhost-user', 'id': 'net', 'chardev': 'vhost'}


def backend(t):
    served = Backend(t.path('vhost'))
    t.stack.callback(served.close)
    return served


def add_chardev(vm, served):
    vm.command('chardev-add', {'id': 'vhost', 'backend': {
        'type': 'socket', 'data': {'server': False, 'addr': {
            'type': 'unix', 'data': {'path': served.path}}}}})


@test('instant: no vhost-user process is connected meanwhile', quick=True)
def test_netdev_add(t):
    served = backend(t)
    disk, path, want, vm, _ = restore(t, HELD)
    add_chardev(vm, served)
    with expect_error('a network backend was added', 'still being loaded',
                      path):
        vm.command('netdev_add', NETDEV)
    said = vm.hmp('netdev_add vhost-user,id=net,chardev=vhost')
    assert 'still being loaded' in said and path in said, said
    assert vm.migration()['status'] == 'postcopy-active'
    assert not served.asked, 'the process was connected'
    disk.release()
    check_complete(t, vm, want)
    vm.command('netdev_add', NETDEV)
    assert served.asked
    vm.command('cont')
    vm.ticks_on()
    vm.wait_guest('sweep')


def check_no_netdev(t, kind, **options):
    """Checks that no such network backend is added while RAM is loaded."""
    disk, path, want, vm, _ = restore(t, HELD, wrapper=('setsid',))
    try:
        vm.command('netdev_add', {'type': kind, 'id': 'net', **options})
    except QMPError as err:
        said = err.desc
    else:
        raise AssertionError('it was added')
    if f"'{kind}'" in said:
        raise Skip(f'not in this build: {said}')
    check_says(said, 'still being loaded', path)
    disk.release()
    check_complete(t, vm, want)


@test('instant: no vhost-vdpa device is opened meanwhile', quick=True)
def test_vdpa(t):
    """Newer QEMU maps all RAM for it at once, and pins it."""
    check_no_netdev(t, 'vhost-vdpa', vhostdev='/dev/null')


@test('instant: no passt process is started with vhost-user meanwhile',
      quick=True)
def test_passt(t):
    """QEMU ends its own process group, of which it is the only member here, if
    it fails before it has started one."""
    check_no_netdev(t, 'passt', **{'vhost-user': True})


@test('instant: with a vhost-user device the restore is eager, also if its '
      'process is to connect later', quick=True)
def test_device(t):
    served = backend(t)
    path = t.path('image')
    want = saved(t, path)
    again = 'reconnect-ms=100' if t.config.ours.at_least(9, 2) else \
        'reconnect=1'
    args = ('-chardev', f'socket,id=vhost,path={served.path},{again}',
            '-device', 'vhost-user-blk-pci,chardev=vhost')
    for connected in True, False:
        vm = t.vm(incoming=True, ram=RAM, args=args)
        if not connected:
            served.close()
            while 'disconnected' not in [
                    c['filename'] for c in vm.command('query-chardev')
                    if c['label'] == 'vhost'][0]:
                time.sleep(0.01)
        info = begin(vm, f'file:{path}', DIRECT)
        assert info['status'] == 'completed', info
        found = figures(info)
        assert 'vhost-user device' in found['reason'], found
        assert vm.ram_hash() == want, 'restored RAM is not what was saved'
        # 7.2 itself forgets the process of a device that the guest has not
        # started
        if not connected and t.config.ours.at_least(8):
            asked = served.asked
            served.listen()
            vm.wait_until(lambda: served.asked != asked)
        vm.command('cont')
        vm.ticks_on()
        vm.wait_guest('sweep')
        vm.kill()
