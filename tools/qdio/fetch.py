# SPDX-License-Identifier: GPL-2.0-or-later
"""Binary packages that are unpacked into the cache but never installed:
`./run fetch`.

stock     QEMU as built by the distribution, to exchange images with
kernel    a real guest: the distribution's kernel and a static busybox
libvirt   its daemon and virsh
firmware  the firmware that our own builds need"""

import glob
import os
import re
import shutil
import subprocess
import tempfile

from .apt import Apt
from .config import cache, check_space, locked, log_path
from .host import this_host
from .say import Failure

# Dependencies of libvirt's packages that the programs we start do not need
NOT_FOR_LIBVIRT = ('ipxe-', 'libnss-', 'libpam-', 'libsystemd', 'libudev',
                   'logrotate', 'qemu-', 'seabios', 'systemd')


def _unpacked(name, get, only=(), without=()):
    """The directory `name` of the cache, into which the packages downloaded by
    `get(apt, directory)` are unpacked.  `only` limits what is unpacked, and
    packages whose names start with one of `without` are skipped."""
    where = os.path.join(cache(), name)
    stamp = os.path.join(where, '.complete')
    if os.path.exists(stamp):
        return where
    check_space()
    with locked(where + '.lock', where):
        if not os.path.exists(stamp):
            with tempfile.TemporaryDirectory(dir=cache()) as top:
                # apt's sandbox user must be able to write there
                os.chmod(top, 0o755)
                new = _unpack(top, get, only, without)
                shutil.rmtree(where, ignore_errors=True)
                os.rename(new, where)
    return where


def _unpack(top, get, only, without):
    """Download and unpack in `top`.  Returns the unpacked directory, which has
    the list of packages in .complete."""
    debs, new = os.path.join(top, 'debs'), os.path.join(top, 'unpacked')
    os.mkdir(debs)
    os.mkdir(new)
    never = this_host().system
    get(Apt(), debs)
    found = sorted(glob.glob(os.path.join(debs, '*.deb')))
    for deb in found:
        package = os.path.basename(deb).partition('_')[0]
        if package not in never and not package.startswith(without):
            _extract(deb, new, only)
    with open(os.path.join(new, '.complete'), 'w', encoding='utf-8') as f:
        f.writelines(os.path.basename(d) + '\n' for d in found)
    return new


# What tar says if a package lacks some of the files that are wanted
_LACKING = (': Not found in archive',
            'Exiting with failure status due to previous errors')


def _extract(deb, where, only):
    with subprocess.Popen(['dpkg-deb', '--fsys-tarfile', deb],
                          stdout=subprocess.PIPE) as tarfile:
        argv = ['tar', '-x', '--no-same-owner', '-f', '-', '-C', where]
        if only:
            argv += ['--wildcards', *only]
        done = subprocess.run(argv, stdin=tarfile.stdout, capture_output=True,
                              env=dict(os.environ, LC_ALL='C'))
    said = [line for line in done.stderr.decode(errors='replace').splitlines()
            if not line.endswith(_LACKING)]
    if tarfile.returncode or done.returncode not in (0, 2) or \
            (done.returncode and said):
        raise Failure(f'cannot unpack {os.path.basename(deb)}: '
                      + (' | '.join(said) or f'exit code {done.returncode}'))


def _download(apt, directory, names, what):
    apt.fetch(f'download {what}', 'download', '-q',
              *names, cwd=directory)


def _dependencies(apt, directory, packages, what):
    """Download what `packages` need and the system lacks: apt resolves the
    dependencies but only downloads them."""
    os.makedirs(os.path.join(directory, 'partial'), exist_ok=True)
    apt.fetch(f'download what {what} depends on',
              'install', '-y', '-q', '--download-only',
              '--no-install-recommends', '-o', 'Debug::NoLocking=1',
              '-o', f'Dir::Cache::archives={directory}', *packages)


def stock():
    """Unpack the distribution's QEMU, which has mapped-ram.  Returns the
    root."""
    def get(apt, directory):
        # Always unpacked, even if installed on the system
        _dependencies(apt, directory, this_host().stock, 'stock QEMU')
        _download(apt, directory, this_host().stock, 'stock QEMU')

    return _unpacked('stock', get)


def stock_emulator():
    return os.path.join(stock(), 'usr', 'bin', 'qemu-system-x86_64')


def stock_libraries():
    """LD_LIBRARY_PATH for the stock emulator."""
    root = stock()
    return ':'.join(os.path.join(root, d, 'x86_64-linux-gnu')
                    for d in ('usr/lib', 'lib'))


def firmware():
    """The root of the firmware packages."""
    def get(apt, directory):
        _download(apt, directory, this_host().firmware, 'firmware')

    return _unpacked('firmware', get)


def firmware_directories():
    """The directories to pass to QEMU with -L; which of them exist depends on
    the release."""
    root = firmware()
    found = [os.path.join(root, d) for d in
             ('usr/share/seabios', 'usr/share/qemu', 'usr/lib/ipxe/qemu')]
    return [d for d in found if os.path.isdir(d)]


def kernel():
    """The root of the distribution's kernel with modules for a virtio disk,
    and of busybox."""
    def get(apt, directory):
        host = this_host()
        found = re.findall(r'Depends: (linux-image-\S+)',
                           apt.packages('depends', host.kernel))
        if not found:
            raise Failure(f'{host.kernel} depends on no kernel; look at '
                          f'{log_path("apt-update")}')
        _download(apt, directory, [found[0], host.busybox],
                  'a kernel and busybox')

    return _unpacked('guest', get, (
        './boot/vmlinuz-*', './bin/busybox', './usr/bin/busybox',
        '*/kernel/drivers/virtio/virtio*', '*/drivers/block/virtio_blk.ko*'))


def kernel_image():
    return sorted(glob.glob(os.path.join(kernel(), 'boot', 'vmlinuz-*')))[-1]


def busybox():
    """The path of busybox.  Since Debian 13, /bin is a link to /usr/bin, and
    packages contain /usr/bin/busybox."""
    found = [os.path.join(kernel(), d, 'busybox') for d in ('usr/bin', 'bin')]
    return next(filter(os.path.exists, found), found[-1])


def libvirt():
    """The root of libvirt's packages."""
    def get(apt, directory):
        _dependencies(apt, directory, this_host().libvirt, 'libvirt')
        _download(apt, directory, this_host().libvirt, 'libvirt')

    return _unpacked('libvirt', get, without=NOT_FOR_LIBVIRT)
