# SPDX-License-Identifier: GPL-2.0-or-later
"""Instant restore: stopping the machine while pages cannot be read.

To stop the machine, QEMU waits for its CPUs and for the requests of its disks,
and QMP does not answer meanwhile.  None of them may be waiting for a page that
cannot be read."""

import errno
import os
import time

from .faults import broken
from .harness import test
from .instant import ALL, FOUR, HELD, check_complete, figures, restore, \
    resume, wait_error, wait_hung
from .ports import SUSPEND, out, power

# Where tests have the page for a disk's data, and its descriptor
TARGET, DESCRIPTOR = 32 << 20, 48 << 20
LAST = 1 << 31                  # of the descriptor
# The IDE controller's slot, where its registers for DMA are, and the registers
# of its two buses
SLOT, BMDMA = 0x10, 0xc000
BUS, OTHER_BUS = 0x1f0, 0x170
READ, READ_DMA = 0x20, 0xc8
# A disk on the other bus whose reads fail
FAILING = ('-blockdev', 'driver=blkdebug,node-name=d1,image.driver=null-co,'
           'inject-error.0.event=none,inject-error.0.iotype=read',
           '-device', 'ide-hd,drive=d1,bus=legacy.1,rerror=stop')


def start_read(vm, bus, command, sectors=8):
    for register, value in ((6, 0xe0), (2, sectors), (3, 0), (4, 0), (5, 0)):
        out(vm, 'b', bus + register, value)
    if command == READ_DMA:
        out(vm, 'w', BMDMA + 4, DESCRIPTOR)
        out(vm, 'b', BMDMA, 8)
    out(vm, 'b', bus + 7, command)
    if command == READ_DMA:
        out(vm, 'b', BMDMA, 9)


def read_by_dma(vm):
    """Has an IDE disk read 4 KiB into the page TARGET."""
    for register, value in ((0x20, BMDMA), (0x04, 5)):
        out(vm, 'w', 0xcf8, 1 << 31 | SLOT << 11 | register)
        out(vm, 'w', 0xcfc, value)
    start_read(vm, BUS, READ_DMA)


def stands_still(vm):
    return any('stopping the guest' in line for line in vm.errors())


def check_answers(vm):
    for _ in range(20):
        vm.command('query-status')
        time.sleep(0.01)


class StuckDMA:
    """A restore of a guest with a disk, into whose buffer it is about to read.
    The buffer's page is not loaded, and reading it will fail.  `faults` are
    those of the disk's own file."""

    def __init__(self, t, *faults, held=HELD, args=()):
        self.data = os.urandom(8)
        with open(t.path('disk'), 'wb') as f:
            f.write(self.data * 512)
        self.own = broken(t, *faults, armed=False)
        drive = os.path.join(self.own.mount, 'disk')
        args = ['-device', f'piix3-ide,id=legacy,addr={SLOT:#x}',
                '-drive', f'if=none,id=d0,format=raw,file={drive}',
                '-device', 'ide-hd,drive=d0,bus=legacy.0', *args]
        for addr, word in ((TARGET, 1),
                           (DESCRIPTOR, TARGET | (LAST | 4096) << 32)):
            args += ['-device',
                     f'loader,addr={addr:#x},data={word:#x},data-len=8']
        self.image, _, _, self.vm, _ = restore(
            t, held, ('later small read', ALL, errno.EIO),
            guest={'pages': 6144}, args=tuple(args), **FOUR)
        # The background threads load neither of the two pages
        wait_hung(self.vm,
                  lambda: self.image.held + self.image.held_to_fail)
        self.vm.hmp(f'xp /2wx {DESCRIPTOR:#x}')
        self.vm.command('cont')
        # From now on the guest has all pages that it needs
        self.vm.wait_guest('sweep', 2)
        self.image.arm_later()

    def check_goes_on(self, t):
        """The image can be read again: the guest continues, and the disk's
        data arrives."""
        vm = self.vm
        self.image.disarm()
        ticks = vm.count_lines('tick')
        while vm.count_lines('tick') < ticks + 3:
            # It may stop again when the page is there and the error not yet
            # gone
            resume(vm)
            time.sleep(0.01)
        word = int.from_bytes(self.data, 'little')
        while f'{word:#018x}' not in (said := vm.hmp(f'xp /1gx {TARGET:#x}')):
            assert '0x0000000000000001' in said, said
        vm.wait_until(lambda: 'error-desc' not in vm.migration())
        self.image.release()
        check_complete(t, vm)
        vm.wait_guest('sweep')


@test('instant: QMP answers while a disk waits for a page that cannot be read',
      quick=True)
def test_stuck_dma(t):
    """A thread of the block layer waits for the page."""
    stuck = StuckDMA(t, args=('-rtc', 'clock=vm'))
    vm = stuck.vm
    read_by_dma(vm)
    vm.wait_until(lambda: stands_still(vm))
    check_answers(vm)
    assert 'Input/output error' in wait_error(vm)
    # A watchdog would expire
    before = vm.command('qom-get', {'path': '/machine',
                                    'property': 'rtc-time'})
    time.sleep(1.5)
    assert before == vm.command('qom-get', {'path': '/machine',
                                            'property': 'rtc-time'})
    vm.command('cont')
    stuck.check_goes_on(t)


@test('instant: QMP answers when a disk is about to use a page that cannot be '
      'read', quick=True)
def test_late_dma(t):
    """The disk answers after the guest should have stopped for a page that
    cannot be read; then a thread of the block layer touches one, too."""
    stuck = StuckDMA(t, ('later read', ALL, 'hold'),
                     held=('large read', ALL, 'hold, fail'))
    vm = stuck.vm
    stuck.own.arm_later()
    read_by_dma(vm)
    vm.wait_until(lambda: stuck.own.held)
    stuck.image.fail_held()
    vm.wait_until(lambda: stands_still(vm))
    check_answers(vm)
    stuck.own.release()
    check_answers(vm)
    stuck.check_goes_on(t)


@test('instant: QMP answers when another disk stops the guest', quick=True)
def test_other_disk(t):
    stuck = StuckDMA(t, args=FAILING)
    vm = stuck.vm
    read_by_dma(vm)
    vm.wait_until(lambda: stands_still(vm))
    start_read(vm, OTHER_BUS, READ, 1)
    # Events arrive with answers
    vm.wait_until(lambda: vm.command('query-status') and
                  vm.events('BLOCK_IO_ERROR'))
    check_answers(vm)
    stuck.image.disarm()
    vm.wait_runstate('io-error')
    stuck.image.release()
    check_complete(t, vm)
    vm.command('query-status')


@test('instant: a guest that is suspended when its RAM cannot be read',
      quick=True)
def test_suspended(t):
    """When it wakes up, the background load goes on."""
    disk, _, _, vm, _ = restore(t, ('large read', ALL, 'hold, fail'), **FOUR)
    wait_hung(vm, lambda: disk.held_to_fail)
    vm.command('cont')
    vm.ticks_on()
    power(vm, SUSPEND)
    vm.wait_runstate('suspended')
    disk.fail_held()
    wait_error(vm)
    before = figures(vm.migration())['background-bytes']
    disk.disarm()
    vm.command('system_wakeup')
    while vm.migration()['status'] != 'completed':
        # The last read may have failed only now
        resume(vm)
        time.sleep(0.01)
    assert check_complete(t, vm)['background-bytes'] > before


def check_stops(t, disk, vm):
    """The guest stops, and QMP answers, although CPUs cannot go on."""
    vm.wait_runstate('io-error')
    vm.command('cont')
    vm.command('stop')
    vm.command('system_reset')
    check_answers(vm)
    disk.disarm()
    disk.release()
    vm.command('cont')
    check_complete(t, vm)


def hung(t):
    """Restores a guest whose CPU waits for a page whose read does not end."""
    disk, _, _, vm, _ = restore(t, HELD, ('later small read', ALL, 'hold'),
                                **FOUR)
    wait_hung(vm, lambda: disk.held)
    before = disk.held
    disk.arm_later()
    vm.command('cont')
    vm.wait_until(lambda: disk.held > before)
    return disk, vm


@test('instant: QMP answers while a CPU waits for a page whose read hangs',
      quick=True)
def test_hung(t):
    """That is no error, so the guest does not stop by itself."""
    disk, vm = hung(t)
    for _ in range(3):
        vm.command('stop')
        assert vm.command('query-status')['status'] == 'paused'
        vm.command('cont')
    vm.command('system_reset')
    check_answers(vm)
    assert not vm.events('RESET'), \
        'a CPU was reset in the middle of an instruction'
    disk.disarm()
    disk.release()
    vm.wait_lines('ready', 1)
    check_complete(t, vm)
    vm.ticks_on()
    vm.wait_guest('sweep')


@test('instant: quit while a CPU waits for a page whose read hangs',
      quick=True)
def test_hung_quit(t):
    disk, vm = hung(t)
    vm.command('quit')
    disk.release()
    assert vm.wait_exit() == 0


def second_count(vm):
    """The word that the second CPU increments."""
    return vm.hmp('xp /1hx 0xe01')


@test('instant: QMP answers while one CPU waits for a page that cannot be '
      'read, and another one for that CPU', quick=True)
def test_exclusive(t):
    """TCG lets some instructions wait until no other CPU is in one."""
    disk, _, _, vm, _ = restore(
        t, HELD, ('later small read', ALL, errno.EIO), args=('-smp', '2'),
        guest={'pause': 1 << 20, 'second': 1}, **FOUR)
    wait_hung(vm, lambda: disk.held)
    vm.command('cont')
    vm.ticks_on(2)
    before = second_count(vm)
    vm.wait_until(lambda: second_count(vm) != before)
    disk.arm_later()
    check_stops(t, disk, vm)
    # The reset has waited for the CPU
    while not vm.count_lines('ready'):
        resume(vm)
        time.sleep(0.05)


SCRATCH = 0x3ff                     # register of COM1 that the CPUs wait for
# Without their operands: inb, cmpb, jb; movw, movw; lock incw, jmp
INCREMENT = (b'\xec\x3c\x02\x72\xfb' b'\xb8\x00\x80\x8e\xd8'
             b'\xf0\xff\x06\x01\x0e\xeb\xf9')
SPIN = b'\xeb\xfe'                  # jmp to itself


def other_cpus(t, code):
    """Restores a guest of three CPUs, the second and third of which will run
    `code`.  The pages that the first one uses are loaded, the code is not: it
    lies within what is read in large pieces."""
    path, other = t.path('code'), t.path('other')
    with open(path, 'wb') as f:
        f.write(os.urandom(0x80000) + code.ljust(0x10000, b'\xf4'))
    with open(other, 'wb') as f:
        f.write(os.urandom(16 << 20))
    disk, _, _, vm, _ = restore(
        t, HELD, ('later small read', ALL, errno.EIO), args=(
            '-smp', '3',
            '-device', f'loader,file={path},addr=0x10000,force-raw=on',
            '-device', f'loader,file={other},addr={32 << 20},force-raw=on'),
        guest={'second': 2, 'check': 8, 'pages': 64}, **FOUR)
    # As in wait_hung(), but what has the code is read in one request
    vm.wait_until(lambda: disk.held >= 7)
    vm.command('cont')
    vm.wait_guest('sweep', 2)
    return disk, vm


@test('instant: QMP answers while a CPU that has stopped all others waits for '
      'a page that cannot be read', quick=True)
def test_in_exclusive(t):
    disk, vm = other_cpus(t, INCREMENT)
    out(vm, 'b', SCRATCH, 1)
    vm.ticks_on()
    disk.arm_later()
    out(vm, 'b', SCRATCH, 2)
    check_stops(t, disk, vm)


@test('instant: QMP answers while two CPUs wait for code that cannot be read',
      quick=True)
def test_same_code(t):
    """TCG translates code of a page with a lock, for which others spin."""
    disk, vm = other_cpus(t, SPIN)
    disk.arm_later()
    out(vm, 'b', SCRATCH, 1)
    check_stops(t, disk, vm)
