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
FIRMWARE_AT = 'share/qemu'              # below the prefix


def environment(compiler='gcc'):
    """Debian's own tools first, and a ccache whose entries do not depend on
    where a tree lies: paths below the cache's parent count as relative, and
    the directory of the compilation does not count."""
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
    """The build of one tree, in `directory`, next to the sources as ../src;
    `name` is for its logs, `label` for people; `options` are added to the
    base's own."""

    def __init__(self, base, directory, name, options=(), compiler='gcc',
                 label=None):
        self.base = base
        self.compiler = compiler
        self.label = label or base.name
        self.directory = directory
        self.name = name
        self.options = [*base.configure, *options]

    @property
    def emulator(self):
        return os.path.join(self.directory, EMULATOR)

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
        """What `meson introspect --WHAT` knows of the configured build."""
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


def built(tree, targets):
    """The build of an applied tree, with `targets` up to date, able to start
    guests without options for firmware."""
    return built_from(of_tree(tree), targets)


def built_from(build, targets):
    """The same for any build of a tree."""
    build.ninja(targets)
    _link_firmware(build)
    return build


def pristine(tree):
    """The emulator of the base as it came, without the series, built with the
    same options: what to compare ours with."""
    directory = clone_beside(tree, 'pristine')
    Git(os.path.join(directory, 'src'))('checkout', '--quiet', '--force',
                                        '--detach', tree.base_commit())
    build = Build(tree.base, os.path.join(directory, 'build'),
                  tree.name + '-pristine')
    build.ninja([EMULATOR], 'build the pristine')
    _link_firmware(build)
    return build


def _own_firmware(build):
    """Where the source keeps firmware; None if it has none."""
    path = os.path.join(build.directory, '..', 'src', 'pc-bios')
    return path if os.path.exists(os.path.join(path, 'bios-256k.bin')) \
        else None


def firmware_files(build):
    """(path, name) of the firmware that guests start with: what the source
    brought, or else, as Debian's source has none, that of its packages."""
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
    """Link firmware to where an emulator that runs from its build directory
    looks, unless meson did so with the source's own."""
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
