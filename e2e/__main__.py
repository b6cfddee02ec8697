# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point: python3 -m e2e --help, from the root of the repository."""

import argparse
import importlib
import os
import pkgutil
import re
import shutil
import sys
import tempfile

from lab import fs
from lab.guest import build_checker
from lab.vm import Emulator, NotQEMU

from .harness import TESTS, Config, run_all, selected

for module in pkgutil.iter_modules([os.path.dirname(__file__)]):
    if module.name.startswith('test_'):
        importlib.import_module(f'{__package__}.{module.name}')


def parse():
    parser = argparse.ArgumentParser(
        prog='python3 -m e2e',
        description='End-to-end tests of saving virtual machines to files '
                    'and restoring them, against a QEMU that is already '
                    'built. Prints TAP; the last line counts.')
    parser.add_argument('--qemu', metavar='PATH',
                        help='the qemu-system-x86_64 under test')
    parser.add_argument('--qemu-lib', metavar='DIRS', default='',
                        help='LD_LIBRARY_PATH for it, if it needs one')
    parser.add_argument('--firmware', metavar='DIRS', default='',
                        help='directories with bios-256k.bin and, for the '
                             'Linux guest, linuxboot_dma.bin, separated by '
                             'colons')
    parser.add_argument('--other', metavar='PATH',
                        help='a qemu-system-x86_64 with the series on another '
                             'version of QEMU, to exchange images with')
    parser.add_argument('--stock', metavar='PATH',
                        help="a distribution's qemu-system-x86_64 with "
                             'mapped-ram, to exchange images with')
    parser.add_argument('--stock-lib', metavar='DIRS', default='',
                        help='LD_LIBRARY_PATH for it')
    parser.add_argument('--libvirt', metavar='DIR',
                        help="where libvirt's packages are unpacked: runs the "
                             'tests that need them, and only those')
    parser.add_argument('--machine', choices=('kvm', 'aarch64'),
                        help='the tests with guests on KVM or of another '
                             'target, and only those; --qemu is an emulator '
                             'that has it')
    parser.add_argument('--kernel', metavar='VMLINUZ',
                        help="a Linux kernel, for example Debian's")
    parser.add_argument('--busybox', metavar='PATH',
                        help='a statically linked busybox')
    parser.add_argument('--workdir', metavar='DIR',
                        help='for images and logs; needs about 2 GiB '
                             '(default: a temporary directory)')
    parser.add_argument('-k', metavar='PATTERN', dest='pattern',
                        help='run only the tests whose names match this '
                             'regular expression')
    parser.add_argument('--quick', action='store_true',
                        help='only the tests marked "quick", up to 5 minutes: '
                             'not those that find little for the time they '
                             'take, or show that stock QEMU fails')
    parser.add_argument('--all-modes', action='store_true',
                        help='exchange images in every mode of saving and '
                             'restoring; else each pair of modes only once')
    parser.add_argument('--keep', action='store_true',
                        help='keep the directories of failed tests')
    parser.add_argument('--jobs', metavar='N', type=int, default=1,
                        help='how many tests to run in parallel: most of them '
                             'mostly wait')
    parser.add_argument('--list', action='store_true',
                        help='list the tests and do nothing')
    args = parser.parse_args()
    if not args.list and not args.qemu:
        parser.error('--qemu is needed, the emulator to test')
    for option in ('qemu', 'other', 'stock', 'kernel', 'busybox'):
        path = getattr(args, option)
        if path and not os.path.exists(path):
            parser.error(f"--{option}: there is no '{path}'")
    # A socket's path has at most 107 bytes, with up to 43 of them below it
    if args.workdir and len(os.fsencode(os.path.abspath(args.workdir))) > 64:
        parser.error(f'--workdir: {os.path.abspath(args.workdir)} is too long '
                     'a path for sockets; name one of at most 64 bytes')
    if args.pattern:
        try:
            re.compile(args.pattern)
        except re.error as err:
            parser.error(f'-k: not a regular expression: {err}')
    return args


def main():
    args = parse()
    if args.libvirt:
        from .libvirt import test_virsh     # noqa: F401
        TESTS[:] = [x for x in TESTS if 'libvirt: ' in x[0]]
    if args.machine:
        from .machines import test_machines  # noqa: F401
        TESTS[:] = [x for x in TESTS if x[0].startswith(args.machine + ': ')]
    if args.list:
        for name, _, quick, _ in selected(args.pattern, args.quick):
            print(name + (' (quick)' if quick else ''))
        return 0
    for tool in ('as', 'ld'):
        if not shutil.which(tool):
            sys.exit(f"e2e: there is no '{tool}' here; install binutils")
    base = os.path.realpath(args.workdir or tempfile.gettempdir())
    os.makedirs(base, exist_ok=True)
    workdir = tempfile.mkdtemp(prefix='e2e.', dir=base)
    lock = fs.hold(workdir)
    try:
        accel = 'kvm' if args.machine == 'kvm' else 'tcg'
        ours = Emulator('ours', args.qemu, args.firmware, args.qemu_lib, accel)
        stock = args.stock and Emulator('stock', args.stock, args.firmware,
                                        args.stock_lib, accel)
        other = args.other and Emulator('other', args.other, args.firmware,
                                        accel=accel)
        config = Config(ours, other, stock, args.kernel, args.busybox,
                        build_checker(workdir), workdir, args.quick,
                        args.all_modes, max(1, args.jobs))
        config.machine = args.machine
        config.libvirt = args.libvirt and os.path.abspath(args.libvirt)
        print(f'# testing QEMU {ours.version}'
              + (f', other is {other.version}' if other else '')
              + (f', stock is {stock.version}' if stock else ''))
        failed = run_all(config, args.pattern, args.keep)
    except (NotQEMU, OSError) as err:
        sys.exit(f'e2e: {err}')
    finally:
        if args.keep and os.path.isdir(workdir):
            print(f'# kept: {workdir}')
        else:
            shutil.rmtree(workdir, ignore_errors=True)
        lock.close()
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
