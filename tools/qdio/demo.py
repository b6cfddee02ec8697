# SPDX-License-Identifier: GPL-2.0-or-later
"""`./run demo`: save and restore a real guest, buffered and direct.

One guest runs, is saved, is restored in a new QEMU, continues, and is saved
and restored once more: first through one buffered descriptor, then through a
buffered and a direct one, as libvirt passes them."""

import hashlib
import json
import os
import tempfile
import time

from . import fetch
from .apply import applied_tree
from .apt import install_needed
from .bases import Tree
from .build import EMULATOR, built
from .config import cache, check_space, get_base, lab
from .progress import Bar, table
from .say import Failure, duration, note

FDSET = 7
CHANNELS = 4
RAM = 1024                      # MiB
FILL = 640                      # MiB of the guest's RAM that hold data
FINAL = ('completed', 'failed', 'cancelled')
# Polled too often to be printed
POLLED = ('query-migrate',)


def _library():
    """Import the code that runs guests, which the tests and the benchmark
    share."""
    build_initramfs = lab('guest').build_initramfs
    meter, qmp, vm = map(lab, ('meter', 'qmp', 'vm'))
    errors = (vm.Crashed, vm.Exited, vm.Hung, vm.NotQEMU, qmp.QMPError,
              qmp.QMPClosed, TimeoutError)
    return vm.VM, vm.Emulator, vm.Mode, build_initramfs, meter, errors


def follows(last, lines):
    """Recompute the guest's chain of hashes.  A guest that restarted, or whose
    memory differs, prints different hashes."""
    for line in lines:
        _, number, _, chain = last.split()
        number = int(number) + 1
        want = hashlib.sha256(f'{number} {chain}'.encode()).hexdigest()
        if line != f'count {number} chain {want}':
            raise Failure(f'the guest did not go on: after "{last}" it '
                          f'printed "{line}"')
        last = line


def counts(text):
    """The complete lines "count N chain HASH" in the guest's output."""
    return [line for line in text[:text.rfind('\n') + 1].splitlines()
            if line.startswith('count ')]


def sync_and_drop(path):
    """Write back the dirty pages of a file and drop it from the page cache, so
    that a restore reads from the disk."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def moved(info):
    """(phase, bytes done, total bytes) from query-migrate.  The destination of
    a QEMU without the series reports no bytes."""
    ram = info.get('ram', {})
    direct = info.get('direct-io', {})
    phase = direct.get('phase') or info.get('status', 'none')
    total = ram.get('total', 0)
    if phase == 'setup':                # counters are from the last migration
        return phase, 0, total
    if direct.get('load-total'):
        return phase, direct.get('load-done', 0), direct['load-total']
    left = ram.get('remaining', total)
    return phase, max(total - left, 0), total


class Figures:
    """The cost of one save or restore."""

    def __init__(self, seconds, cpu, size, cached):
        self.seconds = seconds
        self.cpu = cpu
        self.size = size                # MiB of data
        self.cached = cached            # MiB

    def cells(self):
        return [f'{self.seconds:.2f}',
                f'{self.size / self.seconds:.0f}' if self.seconds else '-',
                f'{self.cpu:.2f}',
                f'{self.cached}']


class Demo:
    """One run in `directory`, with the image in `image`."""

    def __init__(self, emulator_path, firmware, libraries, directory, image,
                 verbose=False):
        self.VM, emulator, self.Mode, build_initramfs, self.meter, _ = \
            _library()
        self.directory = directory
        self.verbose = verbose
        self.emulator = emulator('demo', emulator_path, firmware, libraries)
        initramfs = build_initramfs(fetch.busybox(),
                                    os.path.join(directory, 'initramfs.gz'))
        self.args = ['-kernel', fetch.kernel_image(), '-initrd', initramfs,
                     '-append', 'console=ttyS0 quiet panic=1 tsc=unstable '
                     'no_timer_check mitigations=off '
                     f'random.trust_bootloader=on fill={FILL}']
        self.image = image
        self.vm = None
        self.torn = ''          # the guest's incomplete last line when saved

    def say(self, text):
        print(text, flush=True)

    # The virtual machine

    def start(self, name, incoming):
        self.vm = self.VM(self.emulator, self.directory, name, ram=RAM,
                          args=self.args, incoming=incoming)
        if self.verbose:
            self.vm.qmp.command = self._loud(self.vm.qmp.command)

    def _loud(self, command):
        """The QMP command function, which also prints commands and replies."""
        def run(name, arguments=None, fds=(), timeout=60):
            answer = command(name, arguments, fds, timeout)
            if name not in POLLED:
                sent = {'execute': name}
                if arguments:
                    sent['arguments'] = arguments
                self.say(f'-> {json.dumps(sent)}')
                self.say(f'<- {json.dumps({"return": answer})}')
            return answer
        return run

    def printed(self):
        with open(self.vm.serial_path, errors='replace',
                  encoding='utf-8') as f:
            return self.torn + f.read()

    def add_descriptors(self, flags, direct):
        """Pass the file's descriptors to an fdset: one buffered and, for
        direct I/O, one with O_DIRECT."""
        for extra in (0, os.O_DIRECT) if direct else (0,):
            fd = os.open(self.image, flags | extra, 0o600)
            try:
                self.vm.add_fds(FDSET, fd)
            finally:
                os.close(fd)

    def migrate(self, command, title, size=None):
        """Save or restore with progress.  `size` is the MiB of data, if known.
        Returns the figures, without the page cache."""
        bar = Bar(title)
        cpu = self.meter.cpu_seconds(self.vm.pid)
        start = time.monotonic()
        self.vm.command(command, {'uri': f'file:/dev/fdset/{FDSET}'})
        while True:
            info = self.vm.migration()
            status = info.get('status')
            if status in FINAL:
                break
            phase, done, total = moved(info)
            bar.show(phase, done, total or (size or 0) << 20)
            time.sleep(0.02)
        if status != 'completed':
            bar.close('failed')
            raise Failure(f'{title}: {status}: '
                          f"{info.get('error-desc', 'QEMU gives no reason')}")
        # Our QEMU has synced when it reports "completed"; stock has not
        self.sync()
        seconds = time.monotonic() - start
        cpu = self.meter.cpu_seconds(self.vm.pid) - cpu
        bar.close(f'completed in {seconds:.2f} s')
        self.check_direct(info, title)
        return Figures(seconds, cpu, size or 0, 0)

    def sync(self):
        fd = os.open(self.image, os.O_RDWR)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def check_direct(self, info, title):
        """With the series, query-migrate shows whether RAM bypassed the page
        cache."""
        told = info.get('direct-io')
        if told is not None and title.startswith('direct') and \
                not told.get('active'):
            raise Failure('direct I/O was not active: '
                          f"{told.get('reason', 'QEMU gives no reason')}")

    # The two halves

    def save(self, mode):
        open(self.image, 'wb').close()
        self.add_descriptors(os.O_WRONLY, mode.direct)
        self.vm.setup(mode)
        figures = self.migrate('migrate', f'{_how(mode)} save')
        figures.cached = self.meter.cached(self.image) >> 20
        figures.size = os.stat(self.image).st_blocks >> 11
        return figures

    def restore(self, mode, size):
        sync_and_drop(self.image)
        self.add_descriptors(os.O_RDONLY, mode.direct)
        self.vm.setup(mode)
        figures = self.migrate('migrate-incoming', f'{_how(mode)} restore',
                               size)
        figures.cached = self.meter.cached(self.image) >> 20
        return figures

    def wait_rounds(self, more):
        """Wait until the guest has printed `more` rounds in this QEMU."""
        want = len(counts(self.printed())) + more
        deadline = time.monotonic() + 3000
        while len(counts(self.printed())) < want:
            self.vm.check_guest()
            self.vm.raise_if_dead()
            if time.monotonic() > deadline:
                raise Failure('the guest prints nothing any more')
            time.sleep(0.05)
        self.vm.check_guest()

    def there_and_back(self, mode, name):
        """Save the running guest, restore it in a new QEMU, and check that it
        continues.  Returns (save, restore) and the round in which it was
        saved."""
        self.vm.command('stop')
        saved = self.save(mode)
        text = self.printed()
        last = counts(text)[-1]
        self.vm.kill()
        self.torn = text[text.rfind('\n') + 1:]
        self.start(name, True)
        restored = self.restore(mode, saved.size)
        self.vm.command('cont')
        self.wait_rounds(2)
        follows(last, counts(self.printed()))
        return saved, restored, int(last.split()[1])

    def run(self):
        self.say(f'QEMU {self.emulator.version}: {self.emulator.path}')
        self.say(f'Booting Linux with {RAM} MiB of RAM, without KVM; it fills '
                 f'{FILL} MiB and hashes them ...')
        self.start('first', False)
        self.wait_rounds(2)
        rows = []
        for number, direct in enumerate((False, True)):
            mode = self.Mode(CHANNELS, direct)
            saved, restored, last = self.there_and_back(mode, f'new{number}')
            rows.append((_how(mode), saved, restored))
            self.say(f'The guest went on with round {last + 1}, where it was '
                     'saved, and its chain of hashes is unbroken.')
        self.say('')
        for line in table(
                ['', 'seconds', 'MiB/s', 'CPU seconds', 'MiB left in cache'],
                [[f'{how} {what}', *figures.cells()]
                 for position, what in ((1, 'save'), (2, 'restore'))
                 for how, figures in ((row[0], row[position])
                                      for row in rows)]):
            self.say(line)
        self.say('\nBoth with mapped-ram and '
                 f'{CHANNELS} multifd channels; {rows[1][1].size} MiB of data.'
                 ' "./run bench" measures properly.')

    def close(self):
        if self.vm:
            self.vm.kill()


def _how(mode):
    return 'direct' if mode.direct else 'buffered'


def _emulator(args):
    """(path, firmware directories, libraries) of the emulator to demonstrate.
    One that was built or installed here finds its firmware without options."""
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
    # The image is in the cache, because direct I/O may not work in /tmp.
    # Sockets are in /tmp, because their paths must be short.
    with tempfile.TemporaryDirectory(dir=cache(), prefix='demo.') as where, \
            tempfile.TemporaryDirectory(prefix='demo.') as directory:
        errors = _library()[-1]
        show = None
        try:
            show = Demo(*emulator, directory,
                        os.path.join(where, 'guest.img'), args.verbose)
            show.run()
        except BrokenPipeError:
            # Nobody reads what the demo prints; a lost QMP connection is one
            # of `errors`
            raise
        except (AssertionError, OSError, *errors) as err:
            raise Failure('demo: ' + ' '.join(str(err).split())) from None
        finally:
            if show:
                show.close()
    note(f'demo: {duration(time.monotonic() - start)}')
    return 0
