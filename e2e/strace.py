# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces the system calls of an emulator."""

import contextlib
import os
import shutil
import subprocess
import time

from .harness import Skip


def need_strace():
    if not shutil.which('strace'):
        raise Skip("there is no 'strace' here")


def all_traced(pid):
    """Returns whether each thread of the process has a tracer."""
    tasks = f'/proc/{pid}/task'
    for tid in os.listdir(tasks):
        # A thread may have ended meanwhile
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), \
                open(f'{tasks}/{tid}/status') as f:
            if 'TracerPid:\t0\n' in f.read():
                return False
    return True


class strace:
    """strace attached to a running emulator."""

    def __init__(self, vm, log, calls):
        self._process = subprocess.Popen(
            ['strace', '-f', '-y', '-qq', '-s0', '-o', log, '-e',
             'trace=' + calls, '-p', str(vm.pid)],
            stderr=subprocess.PIPE, text=True)
        while not all_traced(vm.pid):
            vm.raise_if_dead()
            if self._process.poll() is not None:
                said = self._process.stderr.read().strip()
                raise Skip(f'strace cannot attach here: {said}')
            time.sleep(0.05)

    def stop(self):
        self._process.terminate()
        self._process.wait()
