# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces the system calls of an emulator."""

import os
import shutil
import subprocess
import time

from .harness import Skip


def need_strace():
    if not shutil.which('strace'):
        raise Skip("there is no 'strace' here")


class strace:
    """strace attached to a running emulator."""

    def __init__(self, vm, log, calls):
        self._process = subprocess.Popen(
            ['strace', '-f', '-y', '-qq', '-s0', '-o', log, '-e',
             'trace=' + calls, '-p', str(vm.pid)],
            stderr=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            tasks = f'/proc/{vm.pid}/task'
            if all(open(f'{tasks}/{tid}/status').read().find(
                    'TracerPid:\t0') < 0 for tid in os.listdir(tasks)):
                return
            time.sleep(0.05)
        self.stop()
        raise Skip('strace cannot attach here')

    def stop(self):
        self._process.terminate()
        self._process.wait()
