# SPDX-License-Identifier: GPL-2.0-or-later
"""`./run demo`: a real guest is saved through two descriptors, and goes on."""

import hashlib
import os
import sys
import tempfile
import time

from . import fetch
from .apply import applied_tree
from .apt import install_needed
from .bases import Tree
from .build import EMULATOR, built
from .config import ROOT, cache, check_space, get_base
from .say import Failure, duration, note

FDSET = 7
MODE_TEXT = 'mapped-ram, 4 multifd channels, direct-io=on'


def _library():
    """The end-to-end tests' library, which knows how to run guests."""
    if ROOT not in sys.path:
        sys.path.insert(0, ROOT)
    from e2e.guest import build_initramfs
    from e2e.lib import qmp, vm
    errors = (vm.Crashed, vm.Exited, vm.Hung, qmp.QMPError, qmp.QMPClosed)
    return vm.VM, vm.Emulator, vm.Mode, build_initramfs, errors


def follows(last, lines):
    """Recompute what the guest says: each round's hash is that of its number
    and the hash before.  A guest that had begun anew, or with other memory,
    would say something else."""
    for line in lines:
        _, number, _, chain = last.split()
        number = int(number) + 1
        want = hashlib.sha256(f'{number} {chain}'.encode()).hexdigest()
        if line != f'count {number} chain {want}':
            raise Failure(f'the guest did not go on: after "{last}" it said '
                          f'"{line}"')
        last = line


class Demo:
    """The run in `directory`, with the image in `image`."""

    def __init__(self, emulator_path, firmware, libraries, directory, image):
        self.VM, emulator, self.Mode, build_initramfs, self.errors = \
            _library()
        self.directory = directory
        self.emulator = emulator('demo', emulator_path, firmware, libraries)
        initramfs = build_initramfs(fetch.busybox(),
                                    os.path.join(directory, 'initramfs.gz'))
        self.args = ['-kernel', fetch.kernel_image(), '-initrd', initramfs,
                     '-append', 'console=ttyS0 quiet panic=1 tsc=unstable '
                     'no_timer_check mitigations=off '
                     'random.trust_bootloader=on']
        self.image = image
        self.vm = None

    def say(self, text):
        print(text, flush=True)

    def start(self, name, incoming):
        self.vm = self.VM(self.emulator, self.directory, name, ram=256,
                          args=self.args, incoming=incoming)

    def counts(self, how_many=1):
        """The guest's last lines on its serial port."""
        lines = [x for x in self.vm.serial() if x.startswith('count ')]
        return lines[-how_many:]

    def number(self):
        return self.vm.last_number('count', 10)

    def add_pair(self, flags):
        """Two descriptors of the file to one fdset: one buffered, one with
        O_DIRECT, as libvirt passes them."""
        for extra, what in ((0, 'buffered'), (os.O_DIRECT, 'O_DIRECT')):
            fd = os.open(self.image, flags | extra, 0o600)
            try:
                self.vm.add_fds(FDSET, fd)
            finally:
                os.close(fd)
            self.say(f'    add-fd fdset-id={FDSET}  ({what})')

    def facts(self, info):
        """What query-migrate says, without the empty and the odd."""
        took = f", {info['total-time']} ms" if 'total-time' in info else ''
        self.say(f"    status: {info['status']}{took}")
        ram = info.get('ram', {})
        if ram:
            self.say(f"    ram: {ram['total'] >> 20} MiB, "
                     f"{ram['transferred'] >> 20} MiB moved, "
                     f"{ram['duplicate']} zero pages")
        for key, value in sorted(info.get('direct-io', {}).items()):
            self.say(f'    direct-io {key}: {value}')

    def save(self):
        self.say(f'Saving it, {MODE_TEXT}:')
        open(self.image, 'wb').close()
        self.add_pair(os.O_WRONLY)
        self.vm.setup(self.Mode(4, True))
        self.say(f'    migrate file:/dev/fdset/{FDSET}')
        self.vm.start_save(f'file:/dev/fdset/{FDSET}')
        info = self.vm.wait_migration()
        self.facts(info)
        if info['status'] != 'completed':
            raise Failure(f"the save {info['status']}: "
                          f"{info.get('error-desc')}")
        self.check_direct(info)

    def check_direct(self, info):
        """With our series, query-migrate tells whether RAM went directly."""
        told = info.get('direct-io')
        if told is not None and not told.get('active'):
            raise Failure('direct I/O was not active: '
                          f"{told.get('reason', 'no reason given')}")

    def restore(self):
        self.say('Restoring it in a new QEMU, from two descriptors again:')
        self.add_pair(os.O_RDONLY)
        said = self.vm.try_load(f'file:/dev/fdset/{FDSET}',
                                self.Mode(4, True))
        if said:
            raise Failure(f'the restore failed: {said}')
        info = self.vm.migration()
        self.facts(info)
        self.check_direct(info)

    def run(self):
        self.say(f'QEMU {self.emulator.version}: {self.emulator.path}')
        self.say('Booting Linux without KVM; it hashes data over and over:')
        self.start('first', False)
        self.vm.wait_guest('count', 3, timeout=600, base=10)
        for line in self.counts(2):
            self.say('    ' + line)
        self.save()
        last = self.counts()[0]
        before = self.number()
        self.say(f'    the guest stopped after round {before}')
        self.vm.kill()
        size = os.stat(self.image)
        self.say(f'    {self.image}: {size.st_size >> 20} MiB long, '
                 f'{size.st_blocks >> 11} MiB on disk')
        self.start('second', True)
        self.restore()
        self.vm.command('cont')
        self.vm.wait_guest('count', before + 3, timeout=300, base=10)
        lines = [x for x in self.vm.serial() if x.startswith('count ')]
        for line in lines[:3]:
            self.say('    ' + line)
        follows(last, lines[:3])
        self.say(f'The guest went on with round {before + 1}, where it was '
                 'saved, its chain of hashes is unbroken,\nand it still finds '
                 'its memory right.')

    def close(self):
        if self.vm:
            self.vm.kill()


def _emulator(args):
    """(path, directories with firmware, libraries) of what to show.  What is
    built or installed here finds its firmware without being told."""
    if args.emulator == 'stock':
        return (fetch.stock_emulator(),
                ':'.join(fetch.firmware_directories()),
                fetch.stock_libraries())
    if args.emulator:
        return args.emulator, '', ''
    tree = applied_tree(Tree(get_base(args.base or args.base_option),
                             args.source))
    with tree.locked():
        return built(tree, [EMULATOR]).emulator, '', ''


def demo(args):
    check_space()
    install_needed()
    start = time.monotonic()
    emulator = _emulator(args)
    # The image lies where direct I/O works, which /tmp need not; sockets lie
    # in /tmp, because their names must be short.
    with tempfile.TemporaryDirectory(dir=cache(), prefix='demo.') as where, \
            tempfile.TemporaryDirectory(prefix='demo.') as directory:
        show = Demo(*emulator, directory,
                    os.path.join(where, 'guest.img'))
        try:
            show.run()
        except (AssertionError, OSError, show.errors) as err:
            raise Failure(f'demo: {err}') from None
        finally:
            show.close()
    note(f'demo: {duration(time.monotonic() - start)}')
    return 0
