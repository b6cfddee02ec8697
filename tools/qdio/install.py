# SPDX-License-Identifier: GPL-2.0-or-later
"""Install a built emulator: `./run install`.

Only the emulator and the files that meson would install with it are installed.
QEMU finds its data relative to its executable, so the build does not need a
different --prefix.  The firmware is that of the build itself, because Debian's
source has none."""

import os
import shutil

from .build import EMULATOR, FIRMWARE_AT, built, firmware_files
from .say import Failure, Fault

BUILT_FOR = '/usr/local'        # configure's own default for --prefix


def writable(prefix, destdir=''):
    """The directory to install to, checked before anything is built. `destdir`
    is prepended to all paths, as with "make install"."""
    if not os.path.isabs(prefix):
        raise Fault(f"--prefix {prefix}: name a directory from '/' on")
    where = os.path.abspath(os.path.join(destdir, prefix.lstrip('/'))
                            if destdir else prefix)
    try:
        os.makedirs(where, exist_ok=True)
    except OSError as err:
        raise Fault(f'cannot make {where}: {err.strerror}; name another '
                    '--prefix, or be root') from None
    if not os.access(where, os.W_OK):
        raise Fault(f'{where} cannot be written; name another --prefix, or '
                    'be root')
    return where


def install(tree, where):
    """Build, and install to the directory `where`; returns the emulator's
    path there."""
    build = built(tree, [EMULATOR])
    listed = build.introspect('installed')
    build.ninja(sorted(os.path.relpath(path, build.directory)
                       for path in listed
                       if path.startswith(build.directory + os.sep)))
    for path, target in listed.items():
        _copy(path, os.path.join(where, _below(target)))
    for path, name in firmware_files(build):
        _copy(path, os.path.join(where, FIRMWARE_AT, name))
    return os.path.join(where, 'bin', EMULATOR)


def _below(target):
    """The path of an installed file below the prefix."""
    if not target.startswith(BUILT_FOR + '/'):
        raise Failure(f'{target} would be installed outside of {BUILT_FOR}; '
                      "take --prefix out of the base's configure options")
    return target[len(BUILT_FOR) + 1:]


def _copy(path, target):
    """Copy a file or a directory.  A running program keeps its old file."""
    if os.path.isdir(path):
        shutil.copytree(path, target, dirs_exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    new = target + '.new'
    shutil.copy2(path, new)
    os.replace(new, target)
