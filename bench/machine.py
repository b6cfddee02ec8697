# SPDX-License-Identifier: GPL-2.0-or-later
"""Describes the machine, without anything that identifies it."""

import os
import platform
import re
import subprocess


def _read(path):
    try:
        with open(path) as f:
            return f.read().strip()
    except OSError:
        return ''


def cpu_model(cpuinfo):
    found = re.search(r'^model name\s*:\s*(.+)$', cpuinfo, re.M)
    return found.group(1) if found else platform.machine()


def mount_of(directory, mounts):
    """(device, kind) of the file system that `directory` is on, from
    /proc/mounts."""
    best = ('', '', '')
    for line in mounts.splitlines():
        device, where, kind = line.split()[:3]
        prefix = where.rstrip('/') + '/'
        if (directory + '/').startswith(prefix) and len(prefix) > len(best[0]):
            best = (prefix, device, kind)
    return best[1:]


def disk_kind(name):
    """The kind of disk for a name like sda1."""
    for prefix, kind in (('vd', 'virtio'), ('nvme', 'NVMe'), ('sd', 'SCSI'),
                         ('loop', 'loop'), ('md', 'RAID'), ('dm-', 'mapped')):
        if name.startswith(prefix):
            return kind
    return name or 'unknown'


def describe(directory):
    device, kind = mount_of(os.path.realpath(directory),
                            _read('/proc/mounts'))
    queue = f'/sys/class/block/{os.path.basename(device)}/queue/'
    fio = subprocess.run(['fio', '--version'], capture_output=True, text=True)
    return {
        'cpus': os.cpu_count(),
        'cpu': cpu_model(_read('/proc/cpuinfo')),
        'memory': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
        'kernel': re.match(r'[\d.]+', platform.release()).group(0),
        'filesystem': kind,
        'disk': {'kind': disk_kind(os.path.basename(device)),
                 'rotational': _read(queue + 'rotational') == '1',
                 'write_cache': _read(queue + 'write_cache'),
                 'scheduler': _read(queue + 'scheduler')},
        'huge_pages': _read('/sys/kernel/mm/transparent_hugepage/enabled'),
        'fio': fio.stdout.strip(),
    }


def sentence(machine):
    """The same as a sentence."""
    return (f"{machine['cpus']} CPUs ({machine['cpu']}), "
            f"{machine['memory'] / (1 << 30):.0f} GiB of memory, "
            f"{machine['filesystem']} on a {machine['disk']['kind']} disk, "
            f"Linux {machine['kernel']}, {machine['fio']}")
