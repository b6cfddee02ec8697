# SPDX-License-Identifier: GPL-2.0-or-later
"""Configure and build an applied tree."""

import json
import os
import subprocess

from . import fetch
from .bases import clone_beside
from .config import cache, log_path, short_hash
from .git import Git
from .say import Failure, step

EMULATOR = 'qemu-system-x86_64'
KVM = '/dev/kvm'
FIRMWARE_AT = 'share/qemu'              # below the prefix


def environment(compiler='gcc'):
    """The environment for builds: Debian's own tools come first, and ccache
    entries do not depend on the location of a tree, because paths below the
    cache's parent are relative and the compilation directory is ignored."""
    env = dict(os.environ)
    for name in ('CFLAGS', 'LDFLAGS', 'CPPFLAGS', 'MAKEFLAGS', 'PYTHONPATH',
                 'VIRTUAL_ENV', 'PKG_CONFIG_PATH'):
        env.pop(name, None)
    env.update(PATH='/usr/bin:/usr/sbin:/bin:/sbin',
               CC=f'ccache {compiler}', LC_ALL='C.UTF-8',
               CCACHE_NOHASHDIR='1',
               CCACHE_BASEDIR=os.path.dirname(cache()))
    return env


class Build:
    """The build of one tree, in `directory`, with the sources in ../src;
    `name` is for its logs, `label` for messages; `options` are added to the
    base's own."""

    def __init__(self, base, directory, name, options=(), compiler='gcc',
                 label=None):
        self.base = base
        self.compiler = compiler
        self.label = label or base.name
        self.directory = directory
        self.name = name
        self.options = [*base.configure, *options]
        self.program = EMULATOR

    @property
    def emulator(self):
        return os.path.join(self.directory, self.program)

    def configure(self):
        """Run configure, unless it was run with the same options."""
        stamp = os.path.join(self.directory, '.configured')
        wanted = short_hash('\0'.join(self.options))
        try:
            with open(stamp, encoding='utf-8') as f:
                if f.read() == wanted:
                    return
        except OSError:
            pass
        os.makedirs(self.directory, exist_ok=True)
        step(f'configure QEMU {self.label}',
             ['../src/configure', *self.options],
             log_path('configure-' + self.name), cwd=self.directory,
             env=environment(self.compiler))
        with open(stamp, 'w', encoding='utf-8') as f:
            f.write(wanted)

    def ninja(self, targets, what='build'):
        self.configure()
        step(f'{what} QEMU {self.label}', ['ninja', *targets],
             log_path('build-' + self.name), cwd=self.directory,
             env=environment())

    def introspect(self, what):
        """The output of `meson introspect --WHAT` for the configured build."""
        out = subprocess.run(['meson', 'introspect', '--' + what,
                              self.directory], capture_output=True, check=True,
                             env=environment()).stdout
        return json.loads(out)

    def where(self):
        if not os.path.exists(self.emulator):
            raise Failure(f'QEMU {self.base.name} is not built yet; run '
                          f'"./run build --base {self.base.name}"')
        return self.emulator


def of_tree(tree):
    return Build(tree.base, tree.build, tree.name)


# Emulators of other machines, and what configure needs for them
MACHINES = {
    'kvm': (EMULATOR, ['--enable-kvm', '--disable-tcg']),
    'aarch64': ('qemu-system-aarch64', ['--target-list=aarch64-softmmu']),
}


def for_machine(tree, machine):
    """The build of an applied tree for one of MACHINES."""
    build = Build(tree.base, f'{tree.build}-{machine}',
                  f'{tree.name}-{machine}', MACHINES[machine][1],
                  label=f'{tree.base.name} for {machine}')
    build.program = MACHINES[machine][0]
    return build


def built(tree, targets):
    """The build of an applied tree, with `targets` up to date.  It can start
    guests without firmware options."""
    return built_from(of_tree(tree), targets)


def built_from(build, targets):
    """The same for any build of a tree."""
    build.ninja(targets)
    _link_firmware(build)
    return build


def pristine(tree):
    """The emulator of the unmodified base, without the series, built with the
    same options, for comparison with ours."""
    directory = clone_beside(tree, 'pristine')
    Git(os.path.join(directory, 'src'))('checkout', '--quiet', '--force',
                                        '--detach', tree.base_commit())
    build = Build(tree.base, os.path.join(directory, 'build'),
                  tree.name + '-pristine')
    build.ninja([EMULATOR], 'build the pristine')
    _link_firmware(build)
    return build


def _own_firmware(build):
    """The source's firmware directory; None if it has none."""
    path = os.path.join(build.directory, '..', 'src', 'pc-bios')
    return path if os.path.exists(os.path.join(path, 'bios-256k.bin')) \
        else None


def firmware_files(build):
    """(path, name) of each firmware file that guests need: the source's own
    or, because Debian's source has none, that of Debian's packages."""
    own = _own_firmware(build)
    if own:
        return sorted((e.path, e.name) for e in os.scandir(own)
                      if e.is_file() and e.name not in ('README',
                                                        'meson.build'))
    found = {}
    for directory in fetch.firmware_directories():
        for name in os.listdir(directory):
            found.setdefault(name, os.path.join(directory, name))
    return sorted((path, name) for name, path in found.items())


def _link_firmware(build):
    """Link firmware to where an emulator in its build directory looks for it,
    unless meson has linked the source's own."""
    where = os.path.join(build.directory, 'qemu-bundle', 'usr', 'local',
                         FIRMWARE_AT)
    if _own_firmware(build) or \
            os.path.exists(os.path.join(where, 'bios-256k.bin')):
        return
    os.makedirs(where, exist_ok=True)
    for path, name in firmware_files(build):
        link = os.path.join(where, name)
        if not os.path.lexists(link):
            os.symlink(path, link)
