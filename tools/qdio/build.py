# SPDX-License-Identifier: GPL-2.0-or-later
"""Configure and build an applied tree."""

import os

from .config import cache, log_path, short_hash
from .say import Failure, step

EMULATOR = 'qemu-system-x86_64'


def environment():
    """Debian's own tools first, and a ccache whose entries do not depend on
    where a tree lies: paths below the cache's parent count as relative, and
    the directory of the compilation does not count."""
    env = dict(os.environ)
    for name in ('CFLAGS', 'LDFLAGS', 'CPPFLAGS', 'MAKEFLAGS', 'PYTHONPATH',
                 'VIRTUAL_ENV', 'PKG_CONFIG_PATH'):
        env.pop(name, None)
    env.update(PATH='/usr/bin:/usr/sbin:/bin:/sbin', CC='ccache gcc',
               LC_ALL='C.UTF-8', CCACHE_NOHASHDIR='1',
               CCACHE_BASEDIR=os.path.dirname(cache()))
    return env


class Build:
    """The build of one tree, in `directory`, next to the sources as ../src;
    `name` is for its logs."""

    def __init__(self, base, directory, name):
        self.base = base
        self.directory = directory
        self.name = name

    @property
    def emulator(self):
        return os.path.join(self.directory, EMULATOR)

    def configure(self):
        """Run configure, unless it was run with the same options."""
        options = self.base.configure
        stamp = os.path.join(self.directory, '.configured')
        wanted = short_hash('\0'.join(options))
        try:
            with open(stamp, encoding='utf-8') as f:
                if f.read() == wanted:
                    return
        except OSError:
            pass
        os.makedirs(self.directory, exist_ok=True)
        step(f'configure QEMU {self.base.name}',
             ['../src/configure', *options], log_path('configure-' + self.name),
             cwd=self.directory, env=environment())
        with open(stamp, 'w', encoding='utf-8') as f:
            f.write(wanted)

    def ninja(self, targets, what='build'):
        self.configure()
        step(f'{what} QEMU {self.base.name}', ['ninja', *targets],
             log_path('build-' + self.name), cwd=self.directory,
             env=environment())

    def where(self):
        if not os.path.exists(self.emulator):
            raise Failure(f'QEMU {self.base.name} is not built yet; run '
                          f'"./run build --base {self.base.name}"')
        return self.emulator


def of_tree(tree):
    return Build(tree.base, tree.build, tree.name)
