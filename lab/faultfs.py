# SPDX-License-Identifier: GPL-2.0-or-later
"""A FUSE file system over a directory that injects I/O faults.

faultfd.c intercepts QEMU's system calls; with this file system the kernel
itself returns errors, short counts and late completions, to every engine and
in any order.  It implements only what saving to a file and restoring from it
need: files in one directory.

A fault is a tuple (operation, which, what):
    operation   'read', 'write', 'sync' or 'truncate' (any change of a file's
                size); 'direct read' and 'direct write' are those of
                descriptors with O_DIRECT, counted apart, and 'buffered read'
                and 'buffered write' all others; 'large read' and 'large write'
                those of half a MiB or more, 'small read' and 'small write' the
                others; each with 'later ' before it, those after
                FaultFS.arm_later()
    which       a range of numbers; requests of a kind count from 1
    what        an errno; 'short': write only the first half, in pages (a
                short read would be the end of the file, to FUSE); a float:
                answer after that many seconds; 'hold': answer when
                FaultFS.release() is called; 'hold, fail': the same, but before
                a request with 'fail held' answer with EIO, right after that
                request has come, which is answered a moment later

With `armed=False` requests are neither counted nor made to fail before
FaultFS.arm().
"""

import collections
import errno
import mmap
import os
import signal
import stat
import struct
import threading
import time

from . import fs, fuse
from .fuse import Op

ENTRY = struct.Struct('<4Q2I')
SETATTR = struct.Struct('<IIQQ')
STATFS = struct.Struct('<5Q4I6I')

LARGE = 1 << 19
SET_MODE, SET_SIZE = 1 << 0, 1 << 3
ROOT = 1
THREADS = 64                    # more than the requests that a test holds
# Layout of the memory that is shared with the server
HITS, ARMED, RELEASED, HELD, FAIL, TO_FAIL = range(6)
NOW, LATER = 1, 2                       # values of ARMED
MOMENT = 0.2                            # seconds


class Server:
    """The server side; it runs in a separate process."""

    def __init__(self, fd, directory, faults, writeback, shared):
        self.fd = fd
        self.directory = directory
        self.faults = faults
        # The protocol has short writes in files opened with FOPEN_DIRECT_IO
        # only; and with ASYNC_DIO the kernel turns them into EIO.
        short = any(what == 'short' for _, _, what in faults)
        self.opened = fuse.opened(fuse.DIRECT_IO if short else 0)
        self.flags = fuse.ASYNC_READ | fuse.BIG_WRITES | fuse.MAX_PAGES | \
            (0 if short else fuse.ASYNC_DIO) | \
            (fuse.WRITEBACK_CACHE if writeback else 0)
        self.shared = shared
        self.lock = threading.Lock()
        self.seen = collections.Counter()
        self.names = {}                 # node to name
        self.files = {}                 # node to descriptor

    def serve(self):
        """Serves requests until the file system is unmounted."""
        threads = [threading.Thread(target=self._serve)
                   for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _serve(self):
        while True:
            try:
                request = fuse.receive(self.fd)
            except InterruptedError:
                continue
            except OSError as err:
                if err.errno in (errno.ENOENT, errno.EAGAIN):
                    continue            # the request was aborted meanwhile
                return
            method = self.METHODS.get(request.op)
            try:
                if not method:
                    raise OSError(errno.ENOSYS, '')
                answer, error = method(self, request.node, request.body), 0
            except OSError as err:
                answer, error = b'', err.errno
            if request.op in fuse.SILENT:
                continue
            try:
                fuse.answer(self.fd, request.unique, answer, error)
            except OSError:
                pass                    # the request is no longer pending

    # Faults

    def _fault(self, operation, size=0, flags=0):
        """Counts a request and applies the fault for it, if any.  Returns how
        many bytes to serve."""
        how = 'direct ' if flags & os.O_DIRECT else 'buffered '
        kinds = [operation, how + operation]
        kinds.append(('large ' if size >= LARGE else 'small ') + operation)
        if not self.shared[ARMED]:
            return size
        if self.shared[ARMED] == LATER:
            kinds += ['later ' + kind for kind in kinds]
        with self.lock:
            self.seen.update(kinds)
            due = [what for kind, which, what in self.faults
                   if kind in kinds and self.seen[kind] in which]
            self.shared[HITS] = min(self.shared[HITS] + len(due), 255)
        for what in due:
            if isinstance(what, float):
                time.sleep(what)
            elif what == 'hold':
                self._hold()
            elif what == 'hold, fail':
                if self.shared[FAIL]:
                    self._hold()
                else:
                    self._hold(FAIL, TO_FAIL)
                    raise OSError(errno.EIO, '')
            elif what == 'fail held':
                self.shared[FAIL] = True
                time.sleep(MOMENT)
            elif what == 'short':
                size = max(size // 2 & ~4095, min(size, 4096))
            else:
                raise OSError(what, '')
        return size

    def _hold(self, until=RELEASED, counter=HELD):
        with self.lock:
            self.shared[counter] += 1
        while not self.shared[until]:
            time.sleep(0.001)
        with self.lock:
            self.shared[counter] -= 1

    # Requests of the kernel

    def _path(self, node):
        return os.path.join(self.directory, self.names[node]) \
            if node != ROOT else self.directory

    def _attr(self, node):
        s = os.stat(self._path(node))
        return fuse.ATTR.pack(
            node, s.st_size, s.st_blocks, int(s.st_atime), int(s.st_mtime),
            int(s.st_ctime), 0, 0, 0, s.st_mode, s.st_nlink, s.st_uid,
            s.st_gid, 0, 4096, 0)

    def _entry(self, name):
        number = os.stat(os.path.join(self.directory, name)).st_ino + ROOT + 1
        self.names[number] = name
        return ENTRY.pack(number, 0, 0, 0, 0, 0) + self._attr(number)

    def _open(self, node):
        with self.lock:
            if node not in self.files:
                self.files[node] = os.open(self._path(node), os.O_RDWR)
        return self.opened

    def init(self, _, body):
        _, minor, ahead, _ = struct.unpack_from('<4I', body)
        return fuse.init(self.flags, min(minor, 31), ahead)

    def lookup(self, _, body):
        return self._entry(os.fsdecode(body.rstrip(b'\0')))

    def getattr(self, node, _):
        return fuse.attributes(self._attr(node))

    def setattr(self, node, body):
        valid, _, _, size = SETATTR.unpack_from(body)
        if valid & SET_SIZE:
            self._fault('truncate')
            os.truncate(self._path(node), size)
        if valid & SET_MODE:
            os.chmod(self._path(node), struct.unpack_from('<I', body, 68)[0])
        return self.getattr(node, None)

    def open(self, node, _):
        return self._open(node)

    def create(self, _, body):
        _, mode = struct.unpack_from('<II', body)
        name = os.fsdecode(body[16:].rstrip(b'\0'))
        os.close(os.open(os.path.join(self.directory, name),
                         os.O_RDWR | os.O_CREAT, stat.S_IMODE(mode)))
        entry = self._entry(name)
        return entry + self._open(struct.unpack_from('<Q', entry)[0])

    def read(self, node, body):
        io = fuse.io(body)
        size = self._fault('read', io.size, io.flags)
        return os.pread(self.files[node], size, io.offset)

    def write(self, node, body):
        io = fuse.io(body)
        size = self._fault('write', io.size, io.flags)
        return fuse.written(os.pwrite(self.files[node], io.data[:size],
                                      io.offset))

    def sync(self, node, _):
        self._fault('sync')
        return b''

    def unlink(self, _, body):
        os.unlink(os.path.join(self.directory,
                               os.fsdecode(body.rstrip(b'\0'))))
        return b''

    def statfs(self, *_):
        s = os.statvfs(self.directory)
        return STATFS.pack(s.f_blocks, s.f_bfree, s.f_bavail, s.f_files,
                           s.f_ffree, s.f_bsize, 255, s.f_frsize, *[0] * 7)

    def opened_directory(self, *_):
        return fuse.opened()

    def done(self, *_):
        return b''

    METHODS = {Op.LOOKUP: lookup, Op.FORGET: done, Op.GETATTR: getattr,
               Op.SETATTR: setattr, Op.UNLINK: unlink, Op.OPEN: open,
               Op.READ: read, Op.WRITE: write, Op.STATFS: statfs,
               Op.RELEASE: done, Op.FSYNC: sync, Op.FLUSH: done,
               Op.INIT: init, Op.OPENDIR: opened_directory, Op.READDIR: done,
               Op.RELEASEDIR: done, Op.FSYNCDIR: done, Op.ACCESS: done,
               Op.CREATE: create, Op.INTERRUPT: done, Op.DESTROY: done,
               Op.BATCH_FORGET: done}


class FaultFS:
    """Mounted on the new directory `mount`, over the directory `directory`;
    `writeback` lets the kernel cache written data until it is synced.  Raises
    fuse.NoFuse if FUSE is not available."""

    def __init__(self, mount, directory, faults, writeback=False, armed=True):
        self.mount = mount
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._shared[ARMED] = NOW if armed else 0
        fd = fuse.connect()
        try:
            os.mkdir(mount)
            fuse.mount(fd, 'faultfs', mount, stat.S_IFDIR, ',allow_other')
        except OSError:
            os.close(fd)
            raise
        self._pid = os.fork()
        if self._pid == 0:
            try:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                Server(fd, directory, faults, writeback, self._shared).serve()
            finally:
                os._exit(0)
        os.close(fd)

    @property
    def hits(self):
        """The number of requests with faults, up to 255."""
        return self._shared[HITS]

    @property
    def held(self):
        """The number of requests that are currently held."""
        return self._shared[HELD]

    @property
    def held_to_fail(self):
        """The number of requests that fail_held() would make fail."""
        return self._shared[TO_FAIL]

    def fail_held(self):
        """Lets the requests with 'hold, fail' fail."""
        self._shared[FAIL] = True

    def arm(self):
        """From now on requests are counted and faults are injected."""
        self._shared[ARMED] = NOW

    def arm_later(self):
        """From now on requests also count as later ones."""
        self._shared[ARMED] = LATER

    def disarm(self):
        """From now on no faults are injected."""
        self._shared[ARMED] = False

    def release(self):
        """Answers all held requests, and stops holding requests."""
        self._shared[RELEASED] = self._shared[FAIL] = True

    def close(self):
        self.release()
        try:
            fs.unmount(self.mount)
        finally:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
