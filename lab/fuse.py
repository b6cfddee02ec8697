# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol of /dev/fuse, from the kernel's include/uapi/linux/fuse.h: what
our file systems need of it."""

import collections
import ctypes
import enum
import errno
import os
import struct

ATTR = struct.Struct('<6Q10I')
MAX_IO = 1 << 20                # bytes in a read or write
# Flags of init()
ASYNC_READ, BIG_WRITES, ASYNC_DIO = 1 << 0, 1 << 5, 1 << 15
WRITEBACK_CACHE, MAX_PAGES = 1 << 16, 1 << 22
# A flag of opened()
DIRECT_IO = 1 << 0

_IN = struct.Struct('<IIQQIIII')        # len opcode unique nodeid ...
_OUT = struct.Struct('<IiQ')            # len error unique
_INIT_OUT = struct.Struct('<4I2H2I2HI28x')
_IO = struct.Struct('<QQIIQII')         # fh offset size . . flags .

Request = collections.namedtuple('Request', 'op unique node body')
IO = collections.namedtuple('IO', 'offset size flags data')


class Op(enum.IntEnum):
    """What the kernel requests."""
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    UNLINK = 10
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


# Requests that get no answer
SILENT = (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT)


class NoFuse(Exception):
    """This host has no FUSE, or does not permit to use it."""


def connect():
    """Opens a connection to the kernel; returns its descriptor."""
    try:
        return os.open('/dev/fuse', os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EPERM,
                         errno.EACCES):
            raise NoFuse(str(err)) from None
        raise


def mount(fd, name, target, kind, options=''):
    """Mounts the connection on `target`, which is of the same kind as the root
    of the file system: stat.S_IFDIR or stat.S_IFREG."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f'fd={fd},rootmode={kind:o},user_id=0,group_id=0{options}'
    if libc.mount(os.fsencode(name), os.fsencode(target), b'fuse', 0,
                  os.fsencode(options)):
        number = ctypes.get_errno()
        raise OSError(number, f'mount of a FUSE file system: '
                              f'{os.strerror(number)}')


def receive(fd):
    """Waits for a request.  Raises OSError when unmounted."""
    data = os.read(fd, MAX_IO + 4096)
    _, op, unique, node, *_ = _IN.unpack_from(data)
    return Request(op, unique, node, data[_IN.size:])


def answer(fd, unique, data=b'', error=0):
    os.write(fd, _OUT.pack(_OUT.size + len(data), -error, unique) + data)


# Bodies of requests, and of answers

def io(body):
    """The body of a read or a write."""
    _, offset, size, _, _, flags, _ = _IO.unpack_from(body)
    return IO(offset, size, flags, memoryview(body)[_IO.size:_IO.size + size])


def init(flags, minor=31, ahead=1 << 17):
    """`ahead` is how many bytes are read ahead."""
    return _INIT_OUT.pack(7, minor, ahead, flags, 64, 48, MAX_IO, 1,
                          MAX_IO // 4096, 0, 0)


def opened(flags=0):
    return struct.pack('<QII', 0, flags, 0)


def written(size):
    return struct.pack('<II', size, 0)


def attributes(attr, seconds=0):
    """`attr` is an ATTR, valid for that many seconds."""
    return struct.pack('<QII', seconds, 0, 0) + attr
