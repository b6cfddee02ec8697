# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests that are saved and restored."""

import glob
import gzip
import lzma
import os
import struct
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
MAGIC = b'QDIOGST1'


def build_checker(directory):
    """Assembles the self-checking guest and returns its firmware image."""
    obj = os.path.join(directory, 'checker.o')
    rom = os.path.join(directory, 'checker.rom')
    subprocess.run(['as', '--32', '-o', obj, os.path.join(HERE, 'checker.S')],
                   check=True)
    subprocess.run(['ld', '-m', 'elf_i386', '-Ttext=0xf0000',
                    '--oformat', 'binary', '-o', rom, obj], check=True)
    return rom


def build_aarch64(directory):
    """The same for the machine virt of aarch64, which is simpler."""
    obj, elf, rom = (os.path.join(directory, 'aarch64' + end)
                     for end in ('.o', '.elf', '.rom'))
    for tool, *args in (
            ('as', '-o', obj, os.path.join(HERE, 'aarch64.S')),
            ('ld', '-Ttext=0', '-o', elf, obj),
            ('objcopy', '-O', 'binary', '-j', '.text', elf, rom)):
        subprocess.run(['aarch64-linux-gnu-' + tool, *args], check=True)
    return rom


def configure_checker(rom, target, dirty=0, check=256, pause=0,
                      pages=0x7fffffff, second=0):
    """Writes a guest to the file `target`.  In each round the guest rewrites
    `dirty` pages, checks `check` pages, and idles for `pause` loops.  It uses
    at most `pages` pages.  With second=1 a second CPU runs instructions for
    which TCG stops all others; with 2, all others wait for COM1's scratch
    register to be at least 1, and then run what is at 0x90000, in real mode
    and with %dx still being that register."""
    with open(rom, 'rb') as f:
        image = bytearray(f.read())
    where = image.index(MAGIC) + len(MAGIC)
    struct.pack_into('<IIIII', image, where, dirty, check, pause, pages,
                     second)
    with open(target, 'wb') as f:
        f.write(image)
    return target


def _cpio_entry(name, mode, data=b'', rdev=(0, 0), ino=[0]):
    ino[0] += 1
    fields = [ino[0], mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1],
              len(name) + 1, 0]
    entry = b'070701' + b''.join(b'%08X' % field for field in fields)
    entry += name.encode() + b'\0'
    entry += b'\0' * (-len(entry) % 4)
    entry += data
    return entry + b'\0' * (-len(data) % 4)


# The modules that a Linux guest needs for devices of virtio, in load order
VIRTIO = ('virtio_ring', 'virtio', 'virtio_pci_legacy_dev',
          'virtio_pci_modern_dev', 'virtio_pci')
DISK = (*VIRTIO, 'virtio_blk')
BALLOON = (*VIRTIO, 'virtio_balloon')


def find_modules(kernel, names):
    """The modules from a kernel's package, {name: bytes}.  Those that are
    built into the kernel are omitted."""
    version = os.path.basename(kernel).removeprefix('vmlinuz-')
    root = os.path.dirname(os.path.dirname(os.path.abspath(kernel)))
    found = {}
    for name in names:
        # Debian's packages had a separate /lib until /usr was merged
        for path in glob.glob(f'{root}/usr/lib/modules/{version}/**/{name}.ko*',
                              recursive=True) or \
                glob.glob(f'{root}/lib/modules/{version}/**/{name}.ko*',
                          recursive=True):
            opened = lzma.open if path.endswith('.xz') else open
            with opened(path, 'rb') as f:
                found[name] = f.read()
    return found


def build_initramfs(busybox, target, modules=None):
    """Packs busybox, our init and modules for a real Linux guest."""
    with open(busybox, 'rb') as f:
        binary = f.read()
    with open(os.path.join(HERE, 'init'), 'rb') as f:
        init = f.read()
    archive = b''.join([
        _cpio_entry('bin', 0o040755),
        _cpio_entry('dev', 0o040755),
        _cpio_entry('proc', 0o040755),
        _cpio_entry('work', 0o040755),
        _cpio_entry('dev/console', 0o020600, rdev=(5, 1)),
        _cpio_entry('bin/busybox', 0o100755, binary),
        _cpio_entry('init', 0o100755, init),
        _cpio_entry('lib', 0o040755),
        *(_cpio_entry(f'lib/{i}-{name}.ko', 0o100644, data)
          for i, (name, data) in enumerate((modules or {}).items())),
        _cpio_entry('TRAILER!!!', 0),
    ])
    with gzip.open(target, 'wb', compresslevel=1) as f:
        f.write(archive)
    return target
