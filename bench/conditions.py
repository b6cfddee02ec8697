# SPDX-License-Identifier: GPL-2.0-or-later
"""The condition of this machine's memory when something is measured.

On a physical host, all memory is there.  On a virtual machine the outer host
may have taken back what was free; the scenario `reclaimed` measures that.  For
all other measurements a lab.reserve.Reserve, one for the whole bench, uses
the memory beforehand."""

import contextlib
import time

from lab import reserve
from lab.content import MIB
from lab.meter import Machine, Meter, drop_caches

# After so long, the outer host has taken free memory back
RECLAIM_SECONDS = 6
RECLAIMED = 'reclaimed'         # the kind of memory; see sides.MEMORY

_reserve = None


@contextlib.contextmanager
def reserving():
    """Has a Reserve until the end."""
    global _reserve
    with reserve.Reserve() as _reserve:
        try:
            yield
        finally:
            _reserve = None


def wanted(ram):
    """How many MiB to hold for a guest of `ram` MiB: QEMU and the kernel also
    need some for page tables, buffers and files."""
    return ram * 115 // 100 + 256


def held():
    """Bytes that can be had back."""
    return _reserve.held() * MIB if _reserve else 0


def prepare(ram, memory='touched'):
    """Before the start of a guest, or of whatever else uses `ram` MiB of
    memory of this kind."""
    if memory == RECLAIMED:
        if _reserve:
            _reserve.hold(0)
        drop_caches()
        time.sleep(RECLAIM_SECONDS)
    elif _reserve:
        # Touched memory is used at the start
        _reserve.hold(wanted(ram), ram if memory == 'touched' else 0)


def give_all(ram):
    """Makes sure that as much memory is free as `ram` MiB need."""
    if _reserve:
        _reserve.hold(wanted(ram))
        _reserve.hold(0)


def ready(ram, memory='touched'):
    """Directly before something is measured."""
    drop_caches()
    if _reserve and memory != RECLAIMED:
        _reserve.hold(wanted(ram))
        _reserve.let_go()


def apart():
    """CPU seconds of the Reserve."""
    return _reserve.cpu() if _reserve else 0


def meter(pid):
    return Meter(pid, apart)


def machine():
    return Machine(apart)
