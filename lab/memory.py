# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of the host."""

import contextlib
import fcntl
import os


@contextlib.contextmanager
def huge_pages(mib, size=2):
    """Temporarily reserves this many additional MiB of huge pages of `size`
    MiB; yields whether that many are free."""
    where = f'/sys/kernel/mm/hugepages/hugepages-{size << 10}kB'
    if not os.path.isdir(where):
        yield False
        return
    more = mib // size
    _add(where, more)
    try:
        with open(os.path.join(where, 'free_hugepages')) as f:
            free = int(f.read())
        yield free >= more
    finally:
        _add(where, -more)


def _add(where, more):
    with open(os.path.join(where, 'nr_hugepages'), 'r+') as f:
        # Another process may do the same
        fcntl.flock(f, fcntl.LOCK_EX)
        before = int(f.read())
        f.seek(0)
        f.write(str(max(before + more, 0)))
        f.flush()
