# SPDX-License-Identifier: GPL-2.0-or-later
"""The host system: tools/hosts/ID-VERSION.conf lists its packages and their
sources.  On any other system, or with --no-install, this module checks that
everything needed for builds is present."""

import glob
import os
import re
import shutil
import subprocess

from .config import ROOT, base_names, read_conf
from .say import Fault

NO_INSTALL = 'QDIO_NO_INSTALL'          # also for child processes


class Host:
    """A release of a distribution, from tools/hosts/NAME.conf:

    release    its code name in apt's sources
    extra      further suites for packages, such as backports
    sources    the suites whose source packages are in the private sources;
               those of other suites are looked up separately
    demo       the base for the demo and the quick tests
    packages   what the steps need, as PACKAGE or PACKAGE/SUITE
    at_least   PACKAGE=VERSION of those with a minimum version
    stock      QEMU as built by the distribution, with mapped-ram
    firmware   the firmware that our own builds need
    kernel     the package that depends on the newest kernel
    busybox    a static busybox
    libvirt    its daemon and virsh
    system     packages that must never be unpacked next to the system's own"""

    KEYS = ('release', 'extra', 'sources', 'demo', 'packages', 'at_least',
            'stock', 'firmware', 'kernel', 'busybox', 'libvirt', 'system')

    def __init__(self, name):
        values = read_conf(ROOT, f'tools/hosts/{name}.conf', self.KEYS)
        self.name = name
        self.release = values['release']
        self.demo = values['demo']
        for key in ('extra', 'sources', 'packages', 'stock', 'firmware',
                    'libvirt', 'system'):
            setattr(self, key, values[key].split())
        self.kernel = values['kernel']
        self.busybox = values['busybox']
        self.at_least = dict(x.split('=') for x in values['at_least'].split())
        # The release and its updates, from which packages may be installed
        self.suites = (self.release, self.release + '-updates',
                       self.release + '-security')

    @property
    def label(self):
        system, _, version = self.name.partition('-')
        return f'{system.capitalize()} {version}'


def host_names():
    found = glob.glob(os.path.join(ROOT, 'tools', 'hosts', '*-*.conf'))
    return sorted(os.path.basename(p)[:-len('.conf')] for p in found)


def system_name():
    """(ID, VERSION_ID) of the running system."""
    if os.environ.get('QDIO_OS_RELEASE'):           # set by tests
        system, _, version = os.environ['QDIO_OS_RELEASE'].partition(' ')
        return system, version
    values = {}
    try:
        with open('/etc/os-release', encoding='utf-8') as f:
            for line in f:
                key, _, value = line.strip().partition('=')
                values[key] = value.strip('"')
    except OSError:
        pass
    return values.get('ID', 'unknown'), values.get('VERSION_ID', '')


def find_host():
    """The Host that this runs on, or None."""
    name = '-'.join(system_name())
    return Host(name) if name in host_names() else None


def this_host():
    """The Host that this runs on; raises a Fault on other systems."""
    host = find_host()
    if host is None:
        known = ' and '.join(Host(n).label for n in host_names())
        raise Fault(f"this is {' '.join(system_name()).strip()}, but './run' "
                    f'takes packages from {known} only; run it there, in a '
                    'container for example, or with --no-install, which '
                    'builds a --source with what is here')
    return host


def demo_base():
    """The default base: the one of the system's own QEMU."""
    host = find_host()
    names = base_names()
    return host.demo if host and host.demo in names else names[0]


def no_install():
    return bool(os.environ.get(NO_INSTALL))


# Check for requirements if nothing may be installed

def _search_path():
    """Where builds look for programs; see build.environment()."""
    return '/usr/bin:/usr/sbin:/bin:/sbin'


def _succeeds(argv, text=None):
    try:
        return subprocess.run(argv, input=text, text=True, timeout=60,
                              capture_output=True,
                              env=dict(os.environ, PATH=_search_path())
                              ).returncode == 0
    except OSError:
        return False


def needed():
    """{kind: names} of what builds need."""
    values = read_conf(ROOT, 'tools/hosts/needed.conf',
                       ('programs', 'modules', 'headers', 'python'))
    return {kind: names.split() for kind, names in values.items()}


def missing():
    """{kind: names} of everything that builds need but is missing."""
    tests = {
        'programs': lambda x: shutil.which(x, path=_search_path()),
        'modules': lambda x: _succeeds(['pkg-config', '--exists', x]),
        'headers': lambda x: _succeeds(['cc', '-E', '-x', 'c', '-'],
                                       f'#include <{x}>\n'),
        'python': lambda x: _succeeds(['python3', '-c', f'import {x}'])}
    found = {kind: [x for x in names if not tests[kind](x)]
             for kind, names in needed().items()}
    return {kind: names for kind, names in found.items() if names}


KINDS = {'programs': 'programs', 'modules': 'pkg-config modules',
         'headers': 'C headers', 'python': 'Python modules'}


def check_needed():
    """Raise one Fault that lists everything that is missing."""
    lacking = missing()
    if lacking:
        text = '; '.join(f"{KINDS[kind]} {', '.join(names)}"
                         for kind, names in lacking.items())
        raise Fault(f'this system lacks {text}; install them, then try again')


def plain(package):
    """The package's name, without a suite."""
    return re.sub('/.*', '', package)
