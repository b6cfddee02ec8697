# SPDX-License-Identifier: GPL-2.0-or-later
"""Remove directories that a killed run has left, with gigabytes in them.

Whoever uses such a directory holds a lock on the file .in-use in it, which is
locked before it gets this name: see also lab/fs.py and tools/with-filesystems.
Directories without that file are left alone."""

import contextlib
import fcntl
import glob
import os
import re
import subprocess
import tempfile

from .config import cache, lab
from .say import note

LOCK = '.in-use'


def hold(directory):
    """Mark a new directory as in use until the returned file is closed."""
    path = os.path.join(directory, LOCK)
    lock = open(path + '.new', 'w')
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(path + '.new', path)
    return lock


def _directories():
    """Those that a killed run may have left.  Nobody else can replace a
    directory of ours, not even in /tmp."""
    for pattern in (os.path.join(glob.escape(cache()), 'e2e', 'e2e.*'),
                    os.path.join(glob.escape(cache()), 'fresh', '*-*.*'),
                    os.path.join(glob.escape(tempfile.gettempdir()),
                                 'with-filesystems.*')):
        for path in sorted(glob.glob(pattern)):
            if not os.path.islink(path) and os.path.isdir(path) and \
                    os.stat(path).st_uid == os.geteuid():
                yield os.path.realpath(path)


def remove():
    """Remove all that nobody uses."""
    for directory in _directories():
        with contextlib.suppress(OSError), \
                open(os.path.join(directory, LOCK)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(directory)


def _remove(directory):
    for mount in _mounts(directory):
        subprocess.run(['umount', mount], capture_output=True)
    for mount in _mounts(directory)[:1]:
        note(f'cannot remove {directory}, which a killed run left: {mount} is '
             'mounted; unmount it')
        return
    lab('fs').detach_below(directory)
    subprocess.run(['rm', '-rf', '--one-file-system', directory],
                   capture_output=True)
    note(f'removed what a killed run left: {directory}')


def _mounts(directory):
    """What is mounted below a directory, the innermost first."""
    with open('/proc/self/mountinfo', encoding='utf-8') as f:
        found = [re.sub(r'\\([0-7]{3})', lambda x: chr(int(x[1], 8)),
                        line.split()[4]) for line in f.read().splitlines()]
    return [path for path in reversed(found)
            if (path + os.sep).startswith(directory + os.sep)]

