# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of the host."""

import contextlib
import errno
import fcntl
import os


# More pages of 2 MiB, for unit tests that take some at the same time
SPARE = 32


@contextlib.contextmanager
def huge_pages(mib, size=2):
    """Temporarily adds this many MiB of huge pages of `size` MiB; yields
    whether the host had them to give."""
    where = f'/sys/kernel/mm/hugepages/hugepages-{size << 10}kB'
    if not os.path.isdir(where):
        yield False
        return
    want = mib // size
    try:
        given = _add(where, want + SPARE * (size == 2))
    except OSError as err:
        if err.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        yield False
        return
    try:
        yield given >= want
    finally:
        _add(where, -given)


def _add(where, more):
    """Returns by how many the number of pages has changed."""
    with open(os.path.join(where, 'nr_hugepages'), 'r+') as f:
        # Another process may do the same
        fcntl.flock(f, fcntl.LOCK_EX)
        before = int(f.read())
        f.seek(0)
        f.write(str(max(before + more, 0)))
        f.flush()
        f.seek(0)
        return int(f.read()) - before
