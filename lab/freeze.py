# SPDX-License-Identifier: GPL-2.0-or-later
"""Stops a single thread of another process."""

import contextlib
import ctypes
import os

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000                       # also threads, not only processes


def _ptrace(request, tid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(request, tid, None, None):
        raise OSError(ctypes.get_errno(), f'ptrace {request:#x}')


@contextlib.contextmanager
def frozen(tid):
    """While this lasts, the thread does not run."""
    _ptrace(SEIZE, tid)
    _ptrace(INTERRUPT, tid)
    os.waitpid(tid, WALL)
    try:
        yield
    finally:
        _ptrace(DETACH, tid)
