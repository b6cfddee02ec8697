# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of the host."""

import contextlib


@contextlib.contextmanager
def huge_pages(mib):
    """Temporarily reserves this many additional MiB of huge pages."""
    path = '/proc/sys/vm/nr_hugepages'
    with open(path) as f:
        before = f.read()
    try:
        with open(path, 'w') as f:
            f.write(str(int(before) + mib // 2))
        yield
    finally:
        with open(path, 'w') as f:
            f.write(before)
