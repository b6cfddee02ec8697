# SPDX-License-Identifier: GPL-2.0-or-later
"""Access to the I/O ports of a PC, as its guest would have it."""

PM_BASE = 0x600
SOFT_OFF, SUSPEND = 0x2000, 0x2400


def out(vm, size, port, value):
    """Writes to a port; size is 'b', 'h' or 'w'."""
    said = vm.hmp(f'o /{size} {port:#x} {value:#x}')
    assert not said, said


def power(vm, how):
    """Writes `how` to the register for sleep states."""
    for port, size, value in (
            (0xcf8, 'w', 0x8000f840), (0xcfc, 'w', PM_BASE | 1),
            (0xcf8, 'w', 0x8000f844), (0xcfc, 'b', 0x80),
            (PM_BASE + 4, 'h', how)):
        out(vm, size, port, value)
