# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows the cost of `virsh save` and `virsh restore` with stock QEMU and with
ours: python3 -m e2e.libvirt --help, from the root of the repository."""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time

from lab.content import Content
from lab.meter import cached, cpu_seconds, drop_caches, spread
from lab.vm import Emulator

from .daemon import Domain, Libvirt

PHASES = ('save', 'restore')
COLUMNS = (('seconds', 'seconds'), ('CPU seconds', 'cpu'),
           ('MiB in page cache', 'cached'))


def parse():
    parser = argparse.ArgumentParser(
        prog='python3 -m e2e.libvirt',
        description='Saves and restores a guest with random RAM by virsh save '
                    'and virsh restore --bypass-cache.  All sides take turns, '
                    'in another order in each round.  Needs root.')
    for name, text in (('qemu', 'ours'), ('stock', 'the one to compare with'),
                       ('libvirt', "where libvirt's packages are unpacked")):
        parser.add_argument('--' + name, required=True, help=text)
    parser.add_argument('--stock-lib', default='',
                        help='LD_LIBRARY_PATH for stock')
    parser.add_argument('--firmware', default='', help='directories, as -L')
    parser.add_argument('--ram', type=int, default=1024,
                        help='MiB (%(default)s)')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--dir', default=os.getcwd(),
                        help='directory to save to, whose disk is measured')
    return parser.parse_args()


class Side:
    """virsh with one emulator and one number of channels."""

    def __init__(self, libvirt, emulator, channels, ram):
        self.libvirt = libvirt
        self.channels = channels
        self.options = ['--bypass-cache']
        if channels > 1:
            self.options += ['--parallel-channels', str(channels)]
        self.name = (f'{emulator.name} {emulator.version}, {channels} '
                     f'channel{"s" if channels > 1 else ""}')
        self.content = Content('random', ram)
        self.domain = Domain(libvirt, emulator, f'{emulator.name}{channels}',
                             ram=ram, prealloc=True)
        self.runs = []

    def run(self, image):
        domain = self.domain
        domain.virsh('start', '--paused')
        self.content.fill(domain.pid)
        drop_caches()
        save, restore = {}, {}
        # QEMU exits after the save, and its CPU usage is known only then
        before = self.libvirt.reaped_cpu() + cpu_seconds(domain.pid)
        start = time.monotonic()
        domain.virsh('save', image, *self.options, '--paused')
        with open(image, 'rb') as f:
            os.fdatasync(f.fileno())        # ours has already synced
        save['seconds'] = time.monotonic() - start
        domain.wait_gone()
        save['cpu'] = self.libvirt.reaped_cpu() - before
        save['cached'] = cached(image) / (1 << 20)
        drop_caches()
        start = time.monotonic()
        self.libvirt.virsh('restore', image, *self.options)
        restore['seconds'] = time.monotonic() - start
        restore['cpu'] = cpu_seconds(domain.pid)
        restore['cached'] = cached(image) / (1 << 20)
        self.content.check(domain.pid)
        domain.virsh('destroy')
        os.unlink(image)
        self.runs.append({'save': save, 'restore': restore})


    def spread(self, phase, figure):
        return spread([run[phase][figure] for run in self.runs])


def ratio(stock, ours, phase, figure):
    stock = stock.spread(phase, figure).median
    return f'{ours.spread(phase, figure).median / stock:.2f}' if stock \
        else '-'


def table(sides, ram, rounds):
    print(f'\nvirsh save and restore --bypass-cache, {ram} MiB of random RAM, '
          f'{rounds} rounds;\nmedian (minimum-maximum)')
    width = max(len(side.name) for side in sides)
    for phase in PHASES:
        print(f'\n{phase:{width}}' + ''.join(f'{title:>24}'
                                            for title, _ in COLUMNS))
        for side in sides:
            cells = (side.spread(phase, figure) for _, figure in COLUMNS)
            print(f'{side.name:{width}}' + ''.join(
                f'{f"{c.median:.2f} ({c.least:.2f}-{c.most:.2f})":>24}'
                for c in cells))
        for stock, ours in zip(sides[::2], sides[1::2]):
            name = f'ours / stock, {ours.channels}'
            print(f'{name:{width}}' + ''.join(
                f'{ratio(stock, ours, phase, figure):>24}'
                for _, figure in COLUMNS[:2]))


def main():
    args = parse()
    emulators = [Emulator('stock', args.stock, args.firmware, args.stock_lib),
                 Emulator('ours', args.qemu, args.firmware)]
    directory = tempfile.mkdtemp(prefix='libvirt.', dir=args.dir)
    try:
        libvirt = Libvirt(args.libvirt, os.path.join(directory, 'daemon'))
        try:
            sides = [Side(libvirt, emulator, channels, args.ram)
                     for channels in (1, 4) for emulator in emulators]
            for number in range(args.rounds):
                # Vary the order: if a run has returned memory to the outer
                # host, the next run bears the cost of reclaiming it
                for side in random.sample(sides, len(sides)):
                    side.run(os.path.join(directory, 'image'))
                    print(f'# round {number + 1}/{args.rounds}: {side.name}',
                          file=sys.stderr)
        finally:
            libvirt.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    table(sides, args.ram, args.rounds)
    return 0


if __name__ == '__main__':
    sys.exit(main())
