# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether io_uring may be used here."""

import ctypes
import os


def io_uring_error():
    """Why the kernel gives this process no io_uring, or ''."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(120)
    fd = libc.syscall(425, 1, params)           # io_uring_setup
    if fd < 0:
        return os.strerror(ctypes.get_errno())
    os.close(fd)
    return ''
