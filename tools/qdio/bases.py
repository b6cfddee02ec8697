# SPDX-License-Identifier: GPL-2.0-or-later
"""The bases' sources: fetched, unpacked, and imported into a git tree.

A tree is in the cache as trees/BASE/src, with the build next to it.  Thus its
path relative to the build is the same everywhere, and ccache finds objects
compiled in another checkout or an earlier tree.  Its branch `base` is
the pristine source; its branch `series` has the applied series, of which
trees/BASE/applied is a copy in the repository's layout."""

import contextlib
import glob
import os
import shutil
import subprocess
import tempfile

from .apt import Apt, fetch_family
from .config import cache, check_space, locked, log_path, short_hash, \
    usable_cache
from .git import Git
from .host import this_host
from .say import Fault, step


class Tree:
    """The unpacked source of one base."""

    def __init__(self, base, source=None):
        self.base = base
        self.source = os.path.realpath(source) if source else None
        name = base.name
        if self.source:
            name += '-' + short_hash(self.source)
        self.directory = os.path.join(cache(), 'trees', name)
        self.name = name
        self.src = os.path.join(self.directory, 'src')
        self.build = os.path.join(self.directory, 'build')
        self.record = os.path.join(self.directory, 'applied')

    def base_commit(self):
        return Git(self.src).commit_id('refs/heads/base')

    def exists(self):
        return os.path.isdir(os.path.join(self.src, '.git')) and \
            self.base_commit() is not None

    @contextlib.contextmanager
    def locked(self):
        """Lock the tree, so that only one `./run` at a time works on it."""
        usable_cache()
        os.makedirs(self.directory, exist_ok=True)
        with locked(os.path.join(self.directory, 'lock'), self.directory):
            yield

    def ensure(self, update=False):
        """Fetch and import the source, unless that is done already."""
        if self.exists() and not update and not self.source:
            return
        check_space()
        os.makedirs(self.directory, exist_ok=True)
        if self.source:
            self._import_own()
        else:
            with tempfile.TemporaryDirectory(dir=self.directory) as top:
                self._import(*self._fetch(top))

    def source_package(self):
        """The .dsc of the Debian source package from which the tree was
        made."""
        if self.source:
            path = _packed(self.source)
            if not path.endswith('.dsc'):
                raise Fault(f'--source {self.source}: is no Debian source '
                            'package; name its .dsc file')
            return path
        line = Git(self.src)('log', '-1', '--format=%b', 'base').split()
        path = os.path.join(self._sources(), f'{line[0]}_{line[1]}.dsc')
        if not os.path.exists(path):
            raise Fault(f'there is no {path} any more; "./run base '
                        f'{self.base.name} --update" fetches what Debian has '
                        'now')
        return path

    def _sources(self):
        return os.path.join(cache(), 'sources', self.base.name)

    def _import_own(self):
        with tempfile.TemporaryDirectory(dir=self.directory) as top:
            where = unpack_source(self.source, top, self.name)
            if where == self.source:
                where = _copy_tree(where, os.path.join(top, 'src'))
            self._import(where, self.source)

    def _download(self, sources):
        """The .dsc of the base's package, fetched into `sources`."""
        base = self.base
        what = f'fetch {base.package} of {base.suite}'
        suites = base.suite.split()
        if set(suites) <= set(this_host().sources):
            Apt().fetch(what, 'source', '-q', '--download-only',
                        '--only-source', f'{base.package}/{base.suite}',
                        cwd=sources)
            found = glob.glob(os.path.join(sources, f'{base.package}_*.dsc'))
            newest = max(found, key=os.path.getmtime, default=None)
        else:
            newest = fetch_family(suites, base.package, base.family, sources)
        if not newest:
            raise Fault(f'no {base.package} {base.family} source package '
                        f'arrived in {sources}; look at '
                        f'{log_path("apt-source")}')
        return newest

    def _fetch(self, top):
        """Debian's source package, with Debian's patches."""
        base = self.base
        sources = self._sources()
        os.makedirs(sources, exist_ok=True)
        newest = self._download(sources)
        where = unpack_package(newest, os.path.join(top, 'src'), self.name)
        version = os.path.basename(newest)[len(base.package) + 1:-4]
        return where, f'{base.package} {version} of {base.suite}'

    def _import(self, where, name):
        """Commit a directory as the branch `base`.  The work tree is only
        updated, so unchanged files keep their times."""
        version = version_of(where, name)
        if not self.base.is_version(version):
            raise Fault(f'{name} has QEMU {version}, but the base is '
                        f'{self.base.family}; name a source of '
                        f'{self.base.family}, or another --base')
        os.makedirs(self.src, exist_ok=True)
        plain = Git(self.src)
        if not os.path.isdir(os.path.join(self.src, '.git')):
            plain('init', '--quiet', '--initial-branch', 'series')
            plain('config', 'user.name', 'Direct I/O maintainers')
            plain('config', 'user.email', 'maintainers@direct-io.invalid')
        old = self.base_commit()
        with tempfile.TemporaryDirectory() as top:
            git = Git(where, os.path.join(top, 'index'),
                      ['--git-dir', os.path.join(self.src, '.git'),
                       '--work-tree', where])
            git('add', '-Af', '.')
            tree = git('write-tree')
        if old and plain('rev-parse', 'base^{tree}') == tree:
            return
        new = plain('commit-tree', tree, '-m', f'QEMU {version}\n\n{name}')
        plain('update-ref', 'refs/heads/base', new)
        if old is None:
            plain('checkout', '--quiet', '--force', '--detach', new)
            plain('update-ref', 'refs/qdio/applied', new)


def clone_beside(tree, suffix):
    """A second work tree of the same repository, as trees/BASE-SUFFIX/src, in
    which other commits can be built.  Returns the directory with src in it."""
    directory = os.path.join(cache(), 'trees', f'{tree.name}-{suffix}')
    src = os.path.join(directory, 'src')
    if not os.path.isdir(os.path.join(src, '.git')):
        os.makedirs(directory, exist_ok=True)
        Git(tree.src)('clone', '--quiet', '--shared', '--no-checkout',
                      tree.src, src)
    return directory


def version_of(where, name):
    """The version of the source in `where`; messages call it `name`."""
    try:
        with open(os.path.join(where, 'VERSION'), encoding='utf-8') as f:
            return f.read().strip()
    except OSError:
        raise Fault(f'{name}: there is no VERSION in it, so it is no source '
                    'of QEMU; name another one') from None


def _packed(path):
    """Resolve a user's --source: a source tree, or a file to unpack.  A
    directory may hold a source package or a tarball."""
    if not os.path.isdir(path) or os.path.exists(os.path.join(path,
                                                              'VERSION')):
        return path
    found = glob.glob(os.path.join(path, '*.dsc')) or \
        [p for p in glob.glob(os.path.join(path, '*.tar.*'))
         if not p.endswith(('.sig', '.asc'))]
    if len(found) != 1:
        raise Fault(f'--source {path}: is not a source tree of QEMU, a '
                    'tarball, a .dsc, or a directory with one of these; '
                    f'there is no VERSION in it and {len(found)} tarballs')
    return found[0]


def unpack_source(source, top, name):
    """The source tree for a user's --source, unpacked in `top`, unless it is a
    directory; `name` is for logs."""
    path = _packed(source)
    if os.path.isdir(path):
        return path
    if path.endswith('.dsc'):
        return unpack_package(path, os.path.join(top, 'src'), name)
    done = subprocess.run(['tar', '-xf', path, '-C', top],
                          capture_output=True, text=True)
    if done.returncode:
        raise Fault(f'cannot unpack {path}: '
                    f'{done.stderr.strip().splitlines()[-1]}')
    inner = [e.path for e in os.scandir(top) if e.is_dir()]
    return inner[0] if len(inner) == 1 else top


def unpack_package(dsc, where, name):
    """Unpack a source package with its patches applied; returns `where`."""
    step(f'unpack {os.path.basename(dsc)}',
         ['dpkg-source', '--no-check', '-x', dsc, where],
         log_path(f'unpack-{name}'))
    # dpkg-source's own metadata is not part of the source
    shutil.rmtree(os.path.join(where, '.pc'), ignore_errors=True)
    return where


def _copy_tree(path, where):
    """Copy a source tree: for a git checkout the tracked files, including
    submodules; for another directory everything except builds."""
    if os.path.exists(os.path.join(path, '.git')):
        names = Git(path).lines('ls-files', '-z', '--recurse-submodules')
        for name in names:
            full = os.path.join(path, name)
            if os.path.lexists(full) and not os.path.isdir(full):
                os.makedirs(os.path.dirname(os.path.join(where, name)),
                            exist_ok=True)
                shutil.copy2(full, os.path.join(where, name),
                             follow_symlinks=False)
    else:
        shutil.copytree(path, where, symlinks=True,
                        ignore=shutil.ignore_patterns('.git', '.pc',
                                                      'build*.ninja'))
    return where
