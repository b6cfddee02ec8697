# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulators with I/O faults that are injected by the LD_PRELOAD library
faultfd.c, which documents the faults."""

import copy
import os
import subprocess

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'faultfd.c')


def build_library(target):
    """Compiles it; needs gcc."""
    subprocess.run(['gcc', '-shared', '-fPIC', '-O1', '-o', target, SOURCE,
                    '-ldl'], check=True)


def with_faults(emulator, library, file, faults, log, gate, hidden=''):
    """The emulator, with faults in the I/O on files whose names end with
    `file`; the engines in `hidden` appear not to exist."""
    changed = copy.copy(emulator)
    changed.env = dict(emulator.env, LD_PRELOAD=library,
                       FAULT_FILE='/' + file, FAULT=','.join(faults),
                       FAULT_HIDE=hidden, FAULT_LOG=log, FAULT_GATE=gate)
    return changed
