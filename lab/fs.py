# SPDX-License-Identifier: GPL-2.0-or-later
"""File systems and block devices to save to; all need root."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import time


class Missing(OSError):
    """This host has no such file system, or no loop devices."""


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f'{" ".join(argv)}: {done.stderr.strip()}')
    return done.stdout.strip()


def hold(directory):
    """Marks a new directory as in use until the returned file is closed, and
    no process has inherited it.  If all are killed, the next `./run test`
    removes the directory: see tools/qdio/leftovers.py."""
    path = os.path.join(directory, '.in-use')
    lock = open(path + '.new', 'w')
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(path + '.new', path)
    return lock


def private_mounts():
    """From now on, only this process and its children see what it mounts.  The
    mounts vanish when the last of these processes exits."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000):                        # CLONE_NEWNS
        number = ctypes.get_errno()
        raise OSError(number, f'unshare: {os.strerror(number)}')
    run('mount', '--make-rprivate', '/')


def unmount(directory):
    for _ in range(50):
        if not subprocess.run(['umount', directory],
                              capture_output=True).returncode:
            return
        time.sleep(0.1)
    run('umount', '-l', directory)


def _attach(path, options):
    try:
        return run('losetup', '--find', '--show', *options, path)
    except OSError:
        try:
            os.close(os.open(run('losetup', '--find'), os.O_RDWR))
        except OSError as err:
            raise Missing(f'no loop devices here: {err}') from None
        raise


def _make(kind, device, options):
    program = f'mkfs.{kind}'
    if not shutil.which(program):
        raise Missing(f"there is no '{program}' here")
    run(program, '-q', *options, device)


def _mount(kind, directory, *options):
    try:
        run('mount', '-t', kind, *options, directory)
    except OSError as err:
        # In a user namespace
        if 'permission denied' in str(err):
            raise Missing(f'{kind} may not be mounted here') from None
        with open('/proc/filesystems') as f:
            if kind not in f.read().split():
                raise Missing(f'this kernel has no {kind}') from None
        raise


def detach_below(directory):
    """Detaches the loop devices whose files are in a directory, if this host
    can tell."""
    if not shutil.which('losetup'):
        return
    out = subprocess.run(['losetup', '-l', '-n', '-O', 'NAME,BACK-FILE'],
                         capture_output=True, text=True).stdout
    for line in out.splitlines():
        device, _, backing = line.partition(' ')
        if backing.strip().startswith(directory + os.sep):
            subprocess.run(['losetup', '-d', device], capture_output=True)


@contextlib.contextmanager
def loop(path, sector_size=512, direct=False):
    """A loop device over the file `path`; `direct`: bypassing that file's page
    cache."""
    device = _attach(path, ['--sector-size', str(sector_size),
                            *(['--direct-io=on'] if direct else [])])
    try:
        yield device
    finally:
        run('losetup', '-d', device)


@contextlib.contextmanager
def mounted(kind, directory, size, backing=None, sector_size=512,
            options='', mkfs=()):
    """The file system `kind`, of `size` bytes, mounted on the new directory
    `directory`, which is removed afterwards.  File systems that need a device
    get a loop device over the sparse file `backing`, which is created if it
    does not exist."""
    os.makedirs(directory)
    with contextlib.ExitStack() as stack:
        stack.callback(os.rmdir, directory)
        if kind in ('tmpfs', 'ramfs'):
            what = ['-o', ','.join(filter(None, [f'size={size}', options])),
                    'none']
        else:
            backing = backing or directory + '.img'
            with open(backing, 'ab') as f:
                f.truncate(size)
            device = stack.enter_context(loop(backing, sector_size))
            _make(kind, device, mkfs)
            what = [*(['-o', options] if options else []), device]
        _mount(kind, directory, *what)
        stack.callback(unmount, directory)
        yield directory


def takes_direct(directory):
    """Whether files in this directory can be opened with O_DIRECT."""
    path = os.path.join(directory, 'direct-probe')
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600))
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return True


def free_bytes(directory):
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize
