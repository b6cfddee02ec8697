# SPDX-License-Identifier: GPL-2.0-or-later
"""An ivshmem server that lets one QEMU map memory which the test keeps; see
QEMU's docs/specs/ivshmem-spec.rst."""

import mmap
import os
import socket
import struct
import threading

VERSION, ID, MEMORY = 0, 0, -1


class Server:
    """Listens on a socket, and tells each that connects about the memory and
    one interrupt of its own.  `memory` is what the others see of it."""

    def __init__(self, path, size):
        self.path = path
        self._memory_fd = os.memfd_create('ivshmem')
        os.truncate(self._memory_fd, size)
        self.memory = mmap.mmap(self._memory_fd, size)
        self._event_fd = os.eventfd(0)
        self._connections = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        # A thread in accept() does not notice close() alone
        self._listener.shutdown(socket.SHUT_RDWR)
        for opened in (self._listener, *self._connections):
            opened.close()
        for fd in (self._memory_fd, self._event_fd):
            os.close(fd)

    def _accept(self):
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return                  # close()
            # QEMU takes the end of the connection for the end of the server
            self._connections.append(connection)
            for number, fds in ((VERSION, []), (ID, []),
                                (MEMORY, [self._memory_fd]),
                                (ID, [self._event_fd])):
                socket.send_fds(connection, [struct.pack('<q', number)], fds)
