# SPDX-License-Identifier: GPL-2.0-or-later
"""The QMP client: what QEMU may send between the answers."""

import json
import os
import socket
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..', '..'))
from lab.qmp import QMP, QMPError                      # noqa: E402

GREETING = {'QMP': {'version': {}, 'capabilities': []}}
RESUME = {'event': 'RESUME'}
STOP = {'event': 'STOP'}


class QMPTest(unittest.TestCase):
    def connect(self, first, *answers):
        """Returns a client of a server that sends the messages `first` before
        any command, and one list of `answers` for each command."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = os.path.join(directory.name, 'qmp')
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(path)
        listener.listen()

        def serve():
            connection = listener.accept()[0]
            with connection:
                for messages in [first, *answers]:
                    for message in messages:
                        line = json.dumps(message) + '\n'
                        connection.sendall(line.encode())
                    connection.recv(4096)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        qmp = QMP(path)
        self.addCleanup(server.join)
        self.addCleanup(qmp.close)
        return qmp

    def test_events_ahead_of_the_greeting_and_the_answer(self):
        qmp = self.connect([RESUME, GREETING], [{'return': {}}],
                           [STOP, {'return': 5}])
        self.assertEqual(qmp.command('query'), 5)
        self.assertEqual(qmp.events, [RESUME, STOP])

    def test_an_error_is_raised(self):
        qmp = self.connect([GREETING], [{'return': {}}],
                           [{'error': {'class': 'Generic', 'desc': 'no'}}])
        with self.assertRaisesRegex(QMPError, 'query: no'):
            qmp.command('query')


if __name__ == '__main__':
    unittest.main()
