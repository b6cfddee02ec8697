# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP client: commands, events, descriptors, time limits."""

import array
import json
import socket
import time


class QMPError(Exception):
    """QEMU returned an error."""

    def __init__(self, command, error):
        super().__init__(f"{command}: {error.get('desc')}")
        self.desc = error.get('desc', '')


class QMPClosed(Exception):
    """QEMU closed the connection, most likely because it died."""


class QMP:
    def __init__(self, path, timeout=30, alive=lambda: None):
        """Waits for the socket `path` and connects to it; `alive` raises an
        exception if the socket will never appear."""
        self.events = []
        self._buffer = b''
        deadline = time.monotonic() + timeout
        self._sock = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._sock.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                alive()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._await_message('QMP', deadline)
        self.command('qmp_capabilities')

    def close(self):
        self._sock.close()

    def _read(self, deadline):
        while b'\n' not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError('QMP does not answer')
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(65536)
            except socket.timeout:
                raise TimeoutError('QMP does not answer') from None
            except ConnectionError as err:
                raise QMPClosed('QMP connection lost') from err
            if not data:
                raise QMPClosed('QMP connection closed')
            self._buffer += data
        line, self._buffer = self._buffer.split(b'\n', 1)
        return json.loads(line)

    def _await_message(self, kind, deadline):
        """Returns the next message that has a member `kind` or an error, and
        keeps the events before it.  QEMU may send an event even ahead of its
        greeting, if the guest starts while the client connects."""
        while True:
            message = self._read(deadline)
            if kind in message or 'error' in message:
                return message
            if 'event' in message:
                self.events.append(message)

    def last_events(self):
        """The remaining events that QEMU sent before it died."""
        try:
            while True:
                answer = self._read(time.monotonic() + 5)
                if 'event' in answer:
                    self.events.append(answer)
        except QMPClosed:
            return self.events

    def command(self, name, arguments=None, fds=(), timeout=60):
        self.send(name, arguments, fds)
        return self.answer(name, timeout)

    def send(self, name, arguments=None, fds=()):
        """Sends a command without waiting for its answer."""
        message = {'execute': name}
        if arguments:
            message['arguments'] = arguments
        data = json.dumps(message).encode()
        try:
            if fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS,
                          array.array('i', fds))
                self._sock.sendmsg([data], [rights])
            else:
                self._sock.sendall(data)
        except ConnectionError as err:
            raise QMPClosed('QMP connection lost') from err

    def answer(self, name, timeout=60):
        """Waits for the answer to the command that was sent last."""
        answer = self._await_message('return', time.monotonic() + timeout)
        if 'error' in answer:
            raise QMPError(name, answer['error'])
        return answer['return']
