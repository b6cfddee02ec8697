# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point: python3 -m bench --help, from the root of the repository."""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile

from e2e.lib.vm import Emulator

from .sides import Fio, Guest


def parse():
    parser = argparse.ArgumentParser(
        prog='python3 -m bench',
        description='Measures saves and restores of a guest with random RAM. '
                    'All sides take turns in each round, so that what else '
                    'the machine does hits them alike.  Needs root, fio, and '
                    'memory for twice the guest.')
    parser.add_argument('--qemu', required=True, help='ours')
    parser.add_argument('--firmware', default='', help='directories, as -L')
    parser.add_argument('--stock', help='stock QEMU to compare with')
    parser.add_argument('--stock-lib', default='',
                        help='LD_LIBRARY_PATH for it')
    parser.add_argument('--dir', default=os.getcwd(), metavar='DIR',
                        help='where to save: this measures its disk')
    parser.add_argument('--ram', type=int, default=4096,
                        help='MiB (%(default)s)')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--channels', default='1,4',
                        help='comma-separated (%(default)s)')
    parser.add_argument('--buffered', action='store_true',
                        help='measure buffered saves as well')
    parser.add_argument('--quick', action='store_true',
                        help='1 GiB, 2 rounds: about two minutes')
    parser.add_argument('--json', metavar='FILE', help='write all figures')
    args = parser.parse_args()
    if args.quick:
        args.ram, args.rounds = 1024, 2
    if os.geteuid():
        parser.error('must be root, to drop the page cache')
    if not shutil.which('fio'):
        parser.error('fio is missing: install the package fio')
    return args


def make_sides(args):
    emulators = [Emulator('ours', args.qemu, args.firmware)]
    if args.stock:
        emulators.append(Emulator('stock', args.stock, args.firmware,
                                  args.stock_lib))
    for emulator in emulators:
        emulator.name += ' ' + emulator.version
    sides = [Fio(args.ram)]
    for channels in map(int, args.channels.split(',')):
        for direct in (True, False) if args.buffered else (True,):
            sides += [Guest(e, channels, direct, args.ram) for e in emulators]
    return sides


def measure(args, directory):
    sides = make_sides(args)
    data = os.path.join(directory, 'data')
    image = os.path.join(directory, 'image')
    with open('/dev/urandom', 'rb') as random, open(data, 'wb') as f:
        for _ in range(args.ram):
            f.write(random.read(1 << 20))
    next(s for s in sides if isinstance(s, Guest)).make_image(
        directory, data, image)
    os.unlink(data)
    results = {side.name: [] for side in sides}
    for number in range(args.rounds):
        # Not always the same neighbours
        order = sides[number % len(sides):] + sides[:number % len(sides)]
        for side in order:
            results[side.name].append(side.run(directory, image))
            print(f'# round {number + 1}/{args.rounds}: {side.name}',
                  file=sys.stderr)
    return results


def spread(runs, what, figure, scale=1):
    values = [run[what][figure] / scale for run in runs]
    return (f'{statistics.median(values):7.2f} '
            f'({min(values):.2f}-{max(values):.2f})')


def median(runs, what, figure):
    return statistics.median(run[what][figure] for run in runs)


def report(results, ram):
    print(f'{ram} MiB of random RAM; median (minimum-maximum)\n')
    for what in ('save', 'restore'):
        print(f'{what:34}{"seconds":>22}{"CPU seconds":>22}'
              f'{"page cache MiB":>24}{"of fio":>8}')
        limit = median(results[Fio.name], what, 'seconds')
        for name, runs in results.items():
            seconds = median(runs, what, 'seconds')
            print(f'  {name:32}{spread(runs, what, "seconds"):>22}'
                  f'{spread(runs, what, "cpu"):>22}'
                  f'{spread(runs, what, "cache", 1 << 20):>24}'
                  f'{limit / seconds:8.2f}')
        print()


def main():
    args = parse()
    directory = tempfile.mkdtemp(prefix='bench.', dir=args.dir)
    try:
        results = measure(args, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    report(results, args.ram)
    if args.json:
        with open(args.json, 'w') as f:
            json.dump({'ram_mib': args.ram, 'results': results}, f, indent=1)
    return 0


if __name__ == '__main__':
    sys.exit(main())
