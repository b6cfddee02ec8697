# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulators whose I/O goes wrong on purpose, by the LD_PRELOAD library
faultfd.c; there is what faults can be named."""

import copy
import os
import subprocess

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'faultfd.c')


def build_library(target):
    """Compiles it; needs gcc."""
    subprocess.run(['gcc', '-shared', '-fPIC', '-O1', '-o', target, SOURCE,
                    '-ldl'], check=True)


def with_faults(emulator, library, file, faults, log, gate, hidden=''):
    """The emulator, in which I/O on files whose names end with `file` goes
    wrong; `hidden` are the engines that seem not to exist."""
    changed = copy.copy(emulator)
    changed.env = dict(emulator.env, LD_PRELOAD=library,
                       FAULT_FILE='/' + file, FAULT=','.join(faults),
                       FAULT_HIDE=hidden, FAULT_LOG=log, FAULT_GATE=gate)
    return changed
