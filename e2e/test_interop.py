# SPDX-License-Identifier: GPL-2.0-or-later
"""Images are exchanged between all emulators, saved and restored in all
modes."""

import os
import time

from lab import image
from lab.vm import MACHINE, Mode

from .checks import case, check_chain
from .harness import Skip, test

MODES = [Mode(0), Mode(1), Mode(4), Mode(1, True), Mode(4, True)]


FEW = [Mode(0), Mode(4, True)]
WHO = ('ours', 'other', 'stock')
LIVE = {'dirty': 64, 'pause': 20000}


def emulator(t, name):
    found = getattr(t.config, name)
    if not found:
        raise Skip(f'no other QEMU: give --{name}')
    return found


def loaders_of(t, saver):
    """Returns the emulators that restore images of `saver`: all available
    ones, except that stock does not restore its own images."""
    return [name for name in WHO if getattr(t.config, name) and
            not saver == name == 'stock']


def exchange(t, saver, loaders, live, machine=MACHINE):
    """Saves once in each mode, and restores each image with each of `loaders`.

    With --all-modes, each loader uses every mode.  Otherwise it uses only one,
    chosen so that with two or more emulators each save mode is combined with
    each restore mode, and each emulator saves and restores in every mode."""
    guest = LIVE if live else {}
    modes = FEW if t.config.quick else MODES
    shift = WHO.index(saver) + 3 * live
    for i, mode in enumerate(modes):
        src = t.source(emulator=emulator(t, saver), guest=guest,
                       machine=machine)
        if not live:
            src.command('stop')
        uri = f'file:{t.path("image")}'
        src.save(uri, mode)
        want = src.ram_hash()
        src.kill()
        for k, loader in enumerate(loaders):
            one = modes[(i + k + shift) % len(modes)]
            for load_mode in modes if t.config.all_modes else [one]:
                with case(f'saved {mode}', f'restored by {loader} '
                          f'{load_mode}'):
                    t.restores(uri, want, load_mode, guest=guest,
                               emulator=emulator(t, loader),
                               machine=machine).kill()
        os.unlink(t.path('image'))


def register_exchanges():
    for saver in WHO:
        for live in (False, True):
            how = 'live' if live else 'paused'

            def function(t, saver=saver, live=live):
                emulator(t, saver)
                exchange(t, saver, loaders_of(t, saver), live)
            test(f'interop: {saver} to each, {how}', quick=True,
                 timeout=900)(function)


register_exchanges()


@test('interop: the newest machine type', timeout=400)
def test_newest_machine(t):
    """Exchanges images between emulators of the same version, if it has a
    later machine type than all other tests use."""
    found = {}
    for name in WHO:
        if getattr(t.config, name):
            family = '.'.join(
                getattr(t.config, name).version.split('.')[:2])
            found.setdefault(f'pc-q35-{family}', []).append(name)
    found.pop(MACHINE, None)
    pairs = {machine: names for machine, names in found.items()
             if len(names) > 1}
    if not pairs:
        raise Skip(f'no two emulators of one version later than {MACHINE}')
    for machine, names in pairs.items():
        for saver in names:
            loaders = [n for n in names if n != saver or n != 'stock']
            exchange(t, saver, loaders, saver == names[0], machine)


@test('guest: notices a wrong page, a stale one and a lost one', quick=True)
def test_guest_notices(t):
    """Shows that the self-checking guest can fail; otherwise the lack of
    errors would prove nothing."""
    path = t.path('image')
    # A guest that does not rewrite memory before checking it
    src = t.source()
    src.save(f'file:{path}', Mode(2))
    src.kill()
    ram = next(b for b in image.blocks(path) if b.name == b'pc.ram')
    page = 0x300                    # in the part that has no zero pages
    where = ram.pages_offset + page * 4096
    bit = ram.bitmap_offset + page // 8
    with open(path, 'rb') as f:
        f.seek(where)
        good = f.read(4096)
        f.seek(bit)
        bits = f.read(1)[0]
    changes = {
        'one wrong byte': (where + 100, bytes([good[100] ^ 1])),
        "another page's contents": (where, good[4:] + good[:4]),
        'zeros instead of data': (bit, bytes([bits & ~1])),
    }
    for name, (at, data) in changes.items():
        with open(path, 'r+b') as f:
            f.seek(at)
            before = f.read(len(data))
            f.seek(at)
            f.write(data)
            f.flush()
            dst = t.vm(incoming=True)
            dst.load(f'file:{path}', Mode(2))
            dst.command('cont')
            try:
                dst.wait_guest('sweep', 2)
            except AssertionError as err:
                assert f'BAD page {page:08x}' in str(err), str(err)
            else:
                raise AssertionError(f'{name} is not noticed')
            dst.kill()
            f.seek(at)
            f.write(before)


@test('interop: image at an offset, both ways', quick=True)
def test_offset(t):
    for saver, loader in (('ours', 'stock'), ('stock', 'ours'),
                          ('ours', 'ours')):
        src = t.source(emulator=emulator(t, saver), guest={'dirty': 16})
        uri = f'file:{t.path("image")},offset=0x180200'
        with open(t.path('image'), 'wb') as f:
            f.write(b'header' * 1000)
        src.save(uri, Mode(2, True))
        want = src.ram_hash()
        src.kill()
        with open(t.path('image'), 'rb') as f:
            assert f.read(6000) == b'header' * 1000, \
                'what lies before offset= was overwritten'
        t.restores(uri, want, Mode(2, True), emulator=emulator(t, loader),
                   guest={'dirty': 16}).kill()
        os.unlink(t.path('image'))


def fd_pair(t, path, access):
    """Opens a buffered and a direct descriptor, as libvirt does."""
    flags = access | (os.O_CREAT if access == os.O_WRONLY else 0)
    return t.open(path, flags), t.open(path, access | os.O_DIRECT)


@test('interop: fdset with two descriptors, both ways', quick=True,
      timeout=180)
def test_fdset(t):
    for saver, loader in (('ours', 'stock'), ('stock', 'ours'),
                          ('ours', 'ours')):
        for swap, offset in ((False, ''), (True, ',offset=4096')):
            path = t.path('image')
            uri = f'file:/dev/fdset/7{offset}'
            src = t.source(emulator=emulator(t, saver), guest={'dirty': 16})
            fds = fd_pair(t, path, os.O_WRONLY)
            src.add_fds(7, *(reversed(fds) if swap else fds))
            src.save(uri, Mode(4, True))
            want = src.ram_hash()
            src.kill()
            dst = t.vm(incoming=True, emulator=emulator(t, loader),
                       guest={'dirty': 16})
            fds = fd_pair(t, path, os.O_RDONLY)
            dst.add_fds(7, *(reversed(fds) if swap else fds))
            dst.load(uri, Mode(4, True))
            assert dst.ram_hash() == want, 'restored RAM differs'
            dst.command('cont')
            dst.wait_guest('sweep')
            dst.kill()
            os.unlink(path)


@test('interop: a guest saved and restored again and again', timeout=240)
def test_generations(t):
    """Each save after the first is of a guest that was itself restored from
    the previous image."""
    guest = LIVE
    vm = t.source(guest=guest)
    for generation in range(4):
        mode = MODES[generation % len(MODES)]
        uri = f'file:{t.path(f"image{generation}")}'
        vm.save(uri, mode)
        want = vm.ram_hash()
        vm.kill()
        vm = t.restores(uri, want, Mode(4, generation % 2 == 0), guest=guest)
        os.unlink(t.path(f'image{generation}'))


@test('interop: the source goes on after a completed save', quick=True)
def test_source_goes_on(t):
    src = t.source(guest={'dirty': 16})
    for i in range(3):
        src.save(f'file:{t.path("image")}', Mode(2, True))
        want = src.ram_hash()
        src.command('cont')
        src.ticks_on()
        src.wait_guest('sweep')
        t.restores(f'file:{t.path("image")}', want, Mode(),
                   guest={'dirty': 16}).kill()


@test('interop: Linux is saved while busy and computes on', quick=True,
      timeout=400)
def test_linux(t):
    if not (t.config.kernel and t.config.busybox):
        raise Skip('no Linux guest: give --kernel and --busybox')
    from lab.guest import build_initramfs
    initramfs = build_initramfs(t.config.busybox, t.path('initramfs.gz'))
    args = ['-kernel', t.config.kernel, '-initrd', initramfs, '-append',
            'console=ttyS0 quiet panic=1 tsc=unstable no_timer_check '
            'mitigations=off random.trust_bootloader=on']
    vm = t.vm(guest=False, ram=256, args=args)
    start = time.monotonic()
    vm.wait_guest('count', 2, timeout=240)
    t.note(f'booted and computing after {time.monotonic() - start:.0f} s')
    uri = f'file:{t.path("linux")}'
    stages = [('ours', Mode(4, True)), ('ours', Mode(1))]
    if t.config.stock:
        stages += [('stock', Mode(2, True)), ('ours', Mode(1, True))]
    for who, mode in stages:
        before = vm.last_number('count', 10)
        vm.save(uri, mode)
        want = vm.ram_hash()
        check_chain(vm)
        vm.kill()
        vm = t.vm(guest=False, ram=256, args=args, incoming=True,
                  emulator=getattr(t.config, who))
        vm.load(uri, mode)
        assert vm.ram_hash() == want, 'restored RAM differs'
        vm.command('cont')
        vm.wait_guest('count', 3, timeout=120)
        check_chain(vm)
        assert vm.last_number('count', 10) > before, 'the guest began anew'
