# SPDX-License-Identifier: GPL-2.0-or-later
"""Code shared by the tests of internal snapshots."""

import time

from lab.content import MIB

SIZE = 256 * MIB


def run_job(vm, command, job, **arguments):
    """Runs a job; returns its error, or None."""
    vm.command(command, {'job-id': job, **arguments})
    while True:
        found = [j for j in vm.command('query-jobs') if j['id'] == job][0]
        if found['status'] == 'concluded':
            vm.command('job-dismiss', {'id': job})
            return found.get('error')
        time.sleep(0.01)


def add_disk(vm, path, create=False):
    """Adds a qcow2 disk for the machine's snapshots."""
    if create:
        open(path, 'wb').close()
    vm.command('blockdev-add', {'driver': 'file', 'node-name': 'file',
                                'filename': path})
    if create:
        assert run_job(vm, 'blockdev-create', 'create', options={
            'driver': 'qcow2', 'file': 'file', 'size': SIZE}) is None
    vm.command('blockdev-add', {'driver': 'qcow2', 'node-name': 'disk',
                                'file': 'file'})


def snapshot(vm, command, tag):
    return run_job(vm, command, 'snapshot', tag=tag, vmstate='disk',
                   devices=['disk'])
