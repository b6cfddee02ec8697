# SPDX-License-Identifier: GPL-2.0-or-later
"""What an emulator can do."""

from lab.qmp import QMPError
from lab.vm import VM

from .sides import ENGINE

ENGINES = ('io_uring', 'linux-aio', 'sync')


def probe(emulator, directory):
    """Queries an emulator, and sets its attributes `has_mapped_ram`,
    `detects_in_channels` (whether the place of zero page detection can be
    selected), and `engines` (those that can be selected)."""
    vm = VM(emulator, directory, 'probe', ram=32, args=('-S',))
    try:
        known = [c['capability']
                 for c in vm.command('query-migrate-capabilities')]
        emulator.has_mapped_ram = 'mapped-ram' in known
        emulator.engines = []
        params = vm.command('query-migrate-parameters')
        emulator.detects_in_channels = 'zero-page-detection' in params
        if ENGINE in params:
            for engine in ENGINES:
                try:
                    vm.command('migrate-set-parameters', {ENGINE: engine})
                    emulator.engines.append(engine)
                except QMPError:
                    pass                # not in this build
    finally:
        vm.kill()
    return emulator
