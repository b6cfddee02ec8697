# SPDX-License-Identifier: GPL-2.0-or-later
"""Offsets in a mapped-ram image, for tests that damage it: uses the reader of
scripts/mapped-ram.py, and runs that script."""

import json
import os
import subprocess
import sys

SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))), 'scripts')
sys.path.append(SCRIPTS)

from mapped_ram_image import FIELDS, HEADER, Image      # noqa: E402


def total_at(path):
    """The offset of the total size of all RAM blocks in the image (u64, the
    low bits are flags)."""
    with Image(path) as image:
        return image.total_at


def blocks(path, offset=0):
    """All RAM blocks of an image that begins at `offset` of the file; all
    positions are relative to the file."""
    with Image(f'{path},offset={offset}') as image:
        return image.blocks


def tool(*args):
    """Runs scripts/mapped-ram.py.  Returns its exit code and the output of
    --json; a traceback is a failure."""
    done = subprocess.run(
        [sys.executable, os.path.join(SCRIPTS, 'mapped-ram.py'), *args,
         '--json'], capture_output=True, text=True)
    if 'Traceback' in done.stderr or not done.stdout:
        raise AssertionError(f'mapped-ram.py {" ".join(args)}: {done.stderr}')
    return done.returncode, json.loads(done.stdout)


__all__ = ['FIELDS', 'HEADER', 'Image', 'blocks', 'tool', 'total_at']
