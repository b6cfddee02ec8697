# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory for saves, and the images that are restored from it."""

import contextlib
import os
import shutil
import tempfile

from lab import fs

from .slowdisk import SlowDisk

MIB = 1 << 20


class Place:
    """A directory on the file system under test.

    images      where to keep images for a later run, or None to keep them
                in a directory of this run"""

    def __init__(self, parent, images=None):
        self.directory = tempfile.mkdtemp(prefix='bench.', dir=parent)
        self._images = images or self.directory
        # Paths of sockets must be short
        self.sockets = tempfile.mkdtemp(prefix='bench.')

    def close(self):
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.directory, name)

    def image(self, content, kind, make):
        """The image of a kind ('mapped', 'stream') with a content; make(path)
        writes it when there is none yet."""
        os.makedirs(self._images, exist_ok=True)
        path = self._image(content, kind)
        if not os.path.exists(path):
            make(path + '.new')
            os.rename(path + '.new', path)
        return path

    def has_image(self, content, kind='mapped'):
        """Whether image() would have nothing to write."""
        return os.path.exists(self._image(content, kind))

    def _image(self, content, kind):
        return os.path.join(self._images, f'{content.name}.{kind}')

    def forget_images(self, ram):
        """Makes room: images of larger guests are not kept for long."""
        for name in os.listdir(self.directory):
            if f'-{ram}.' in name:
                os.unlink(self.path(name))

    @contextlib.contextmanager
    def fresh(self, name='fresh'):
        """The path of a file that does not exist yet, and is removed
        afterwards."""
        path = self.path(name)
        try:
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    @contextlib.contextmanager
    def on_slow_disk(self, size, **model):
        """A Place on a separate file system on an emulated disk."""
        with contextlib.ExitStack() as stack:
            disk = stack.enter_context(
                SlowDisk(self.path('disk'), size, **model))
            loop = stack.enter_context(fs.loop(disk.path, direct=True))
            where = self.path('slow')
            os.makedirs(where, exist_ok=True)
            fs.run('mount', loop, where)
            stack.callback(fs.unmount, where)
            place = Place(where)
            stack.callback(place.close)
            disk.begin()
            yield place, disk
