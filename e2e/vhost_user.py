# SPDX-License-Identifier: GPL-2.0-or-later
"""A vhost-user backend that answers what QEMU asks when it connects, and does
no I/O; see QEMU's docs/interop/vhost-user.rst."""

import contextlib
import os
import socket
import struct
import threading

HEADER = struct.Struct('<III')          # request, flags, size
REPLY = 1 | 1 << 2                      # version 1, a reply
GET_FEATURES, GET_PROTOCOL_FEATURES, GET_CONFIG = 1, 15, 24
LOG_ALL, HAS_PROTOCOL_FEATURES, VERSION_1 = 1 << 26, 1 << 30, 1 << 32
LOG_SHMFD, CONFIG = 1 << 1, 1 << 9


class Backend:
    """Listens on a socket, and answers in a thread for each connection.
    `asked` counts the connections on which QEMU has sent something."""

    def __init__(self, path):
        self.path = path
        self.asked = 0
        self._lock = threading.Lock()
        self._connections = set()
        self._listener = None
        self.listen()

    def listen(self):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,),
                         daemon=True).start()

    def close(self):
        """Ends all connections; nothing can connect until listen()."""
        if self._listener is None:
            return
        os.unlink(self.path)
        # A thread in accept() does not notice close() alone
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = None
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener):
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return                  # close()
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,),
                             daemon=True).start()

    def _serve(self, connection):
        first = True
        with connection, contextlib.suppress(OSError):
            while header := _read(connection, HEADER.size):
                request, _, size = HEADER.unpack(header)
                payload = _read(connection, size)
                if first:
                    self.asked += 1
                    first = False
                answer = _answer(request, payload)
                if answer is not None:
                    connection.sendall(
                        HEADER.pack(request, REPLY, len(answer)) + answer)
        with self._lock:
            self._connections.discard(connection)


def _read(connection, size):
    """Returns that many bytes, or b'' at the end.  Descriptors that come with
    them are closed by the kernel."""
    data = b''
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            return b''
        data += more
    return data


def _answer(request, payload):
    """Returns the payload of the answer, or None if none is expected."""
    if request == GET_FEATURES:
        return struct.pack('<Q', LOG_ALL | HAS_PROTOCOL_FEATURES | VERSION_1)
    if request == GET_PROTOCOL_FEATURES:
        return struct.pack('<Q', LOG_SHMFD | CONFIG)
    if request == GET_CONFIG:
        return payload                  # all zeros
    return None
