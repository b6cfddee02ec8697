# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages, with a private configuration of apt.

The system's sources are not changed.  The private ones use the same archive
and keyring, plus the suites and source entries that we need, so this file
contains no archive address."""

import os
import re
import shutil
import subprocess
import threading
import time

from .config import cache, log_path
from .host import check_needed, no_install, plain, this_host
from .say import Fault, Failure, note, step

# Seconds after which the archive is tried once more
PAUSE = 20
KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'


def _archives():
    """{suite: (address, keyring)} of the Debian archive that the system uses,
    for the release and its updates, from which packages may be installed."""
    host = this_host()
    try:
        out = subprocess.run(
            ['apt-get', 'indextargets', '--format',
             '$(CREATED_BY)|$(REPO_URI)|$(CODENAME)|$(SIGNED_BY)'],
            capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        out = ''
    found = {}
    for line in out.splitlines():
        kind, uri, codename, signed = line.split('|', 3)
        if kind == 'Packages' and codename in host.suites:
            found.setdefault(codename, (uri, _keyring(uri, signed)))
    # apt itself knows its sources only after an "apt-get update"
    for uri, suites, signed in _stanzas():
        for suite in suites:
            if suite in host.suites:
                found.setdefault(suite, (uri, _keyring(uri, signed)))
    if host.release not in found:
        raise Fault("apt's sources name no archive with "
                    f"{host.label} ({host.release}); "
                    'add the one you use to /etc/apt/sources.list.d and run '
                    '"apt-get update"')
    return found


def archive():
    """(address, keyring) of the archive of the system's release."""
    return _archives()[this_host().release]


def _files():
    yield '/etc/apt/sources.list'
    directory = '/etc/apt/sources.list.d'
    if os.path.isdir(directory):
        for name in sorted(os.listdir(directory)):
            yield os.path.join(directory, name)


def _stanzas():
    """The system's sources: (address, suites, keyring)."""
    for path in _files():
        try:
            with open(path, encoding='utf-8') as f:
                text = f.read()
        except OSError:
            continue
        if path.endswith('.sources'):
            for stanza in re.split(r'\n\s*\n', text):
                fields = dict(re.findall(r'^([A-Za-z-]+):[ \t]*(.*)$', stanza,
                                         re.M))
                for uri in fields.get('URIs', '').split():
                    yield (uri, fields.get('Suites', '').split(),
                           fields.get('Signed-By', ''))
        elif path.endswith('.list'):
            for options, uri, suite in re.findall(
                    r'^deb(?:\s+\[([^]]*)\])?\s+(\S+)\s+(\S+)', text, re.M):
                key = re.search(r'signed-by=(\S+)', options)
                yield uri, [suite], key.group(1) if key else ''


def _keyring(uri, signed):
    """The keyring for an archive: the one in the sources, else Debian's."""
    candidates = [signed] + [key for where, _, key in _stanzas()
                             if where.rstrip('/') == uri.rstrip('/')]
    for path in candidates + [KEYRING]:
        if path.startswith('/') and os.path.isfile(path):
            return path
    raise Fault(f'there is no {KEYRING}; install it with '
                '"apt-get install debian-archive-keyring"')


def _sources(archives, suites=()):
    """The private sources: the system's, plus backports and source packages.
    If `suites` are named, only their source packages."""
    host = this_host()
    uri, keyring = archives[host.release]
    if suites:
        return (f'Types: deb-src\nURIs: {uri}\nSuites: {" ".join(suites)}\n'
                f'Components: main\nSigned-By: {keyring}\n')
    own = [host.release, *host.extra]
    wanted = [('deb deb-src', uri, ' '.join(own), keyring)]
    wanted += [('deb-src', uri, suite, keyring) for suite in host.sources
               if suite not in own]
    wanted += [('deb', where, suite, key)
               for suite, (where, key) in sorted(archives.items())
               if suite != host.release]
    return ''.join(f'Types: {types}\nURIs: {where}\nSuites: {suites}\n'
                   f'Components: main\nSigned-By: {key}\n\n'
                   for types, where, suites, key in wanted)


# Parts of the tests run in parallel, and apt has a single lock
_one_at_a_time = threading.Lock()


class Apt:
    """apt-get with the private configuration, which is recreated when needed.
    With `suites` it uses only those releases' source packages and keeps their
    lists separate, because nothing else depends on them."""

    def __init__(self, suites=()):
        self.suites = tuple(suites)
        self.directory = os.path.join(cache(), '-'.join(('apt', *suites)))
        self.options = []

    def _private(self, name, *parts):
        path = os.path.join(self.directory, name, *parts)
        os.makedirs(path, exist_ok=True)
        return os.path.join(self.directory, name)

    def prepare(self):
        """Write the sources, and fetch the archive's lists if they are missing
        or belong to other sources."""
        if self.options:
            return
        archives = _archives()
        parts = self._private('parts')
        lists = self._private('lists', 'partial')
        self.options = ['-o', 'Dir::Etc::sourcelist=/dev/null',
                        '-o', 'Dir::Etc::sourceparts=' + parts,
                        '-o', 'Dir::State::lists=' + lists,
                        '-o', 'APT::Get::List-Cleanup=0',
                        '-o', 'Acquire::Retries=2',
                        '-o', 'DPkg::Lock::Timeout=300',
                        '-o', 'APT::Update::Post-Invoke-Success=',
                        '-o', 'Acquire::Languages=none']
        path = os.path.join(parts, 'private.sources')
        stamp = os.path.join(self.directory, 'updated')
        text = _sources(archives, self.suites)
        try:
            with open(path, encoding='utf-8') as f:
                same = f.read() == text
        except OSError:
            same = False
        if same and os.path.exists(stamp):
            return
        with open(path, 'w', encoding='utf-8') as f:
            f.write(text)
        self.update()

    def update(self):
        self.prepare()
        self._get('read the lists of packages', 'update', '-q',
                  '-o', 'APT::Update::Error-Mode=any')
        open(os.path.join(self.directory, 'updated'), 'w').close()

    def _get(self, name, *argv, cwd=None):
        """Run apt-get; retry once if the archive can't be reached."""
        try:
            self._try(name, *argv, cwd=cwd)
        except Unreachable:
            note(f"{name}: the Debian archive can't be reached; trying again "
                 f'in {PAUSE} s')
            time.sleep(PAUSE)
            self._try(name, *argv, cwd=cwd)

    def _try(self, name, *argv, cwd=None):
        env = dict(os.environ, DEBIAN_FRONTEND='noninteractive', LC_ALL='C')
        log = log_path('apt-' + argv[0])
        with _one_at_a_time:
            code = step(name, ['apt-get', *self.options, *argv], log, cwd=cwd,
                        env=env, check=False)
            if code:
                raise _explain(name, log)

    def fetch(self, name, *argv, cwd=None):
        """Run apt-get; retry with new lists if the archive no longer has the
        version in the old ones."""
        self.prepare()
        try:
            self._get(name, *argv, cwd=cwd)
        except Failure:
            self.update()
            self._get(name, *argv, cwd=cwd)

    def source_versions(self, package):
        """All versions of a source package that the suites list."""
        return re.findall(r'^Version: (\S+)$',
                          self.packages('showsrc', '--only-source', package),
                          re.M)

    def fetch_source(self, package, version, where):
        """Fetch one version of a source package into the directory `where`,
        unless it is there.  Returns its .dsc."""
        os.makedirs(where, exist_ok=True)
        dsc = os.path.join(where, f'{package}_'
                           f'{version.partition(":")[2] or version}.dsc')
        if not os.path.exists(dsc):
            self.fetch(f'fetch {package} {version}', 'source', '-q',
                       '--download-only', '--only-source',
                       f'{package}={version}', cwd=where)
        return dsc

    def packages(self, *argv):
        """The output of `apt-cache`."""
        self.prepare()
        done = subprocess.run(['apt-cache', *self.options, *argv],
                              capture_output=True, text=True)
        return done.stdout


def fetch_family(suites, package, family, where):
    """Fetch into `where` the newest source package of a family of versions in
    `suites`.  Returns its .dsc, or None if there is none."""
    apt = Apt(suites)
    version = newest_of_family(apt.source_versions(package), family)
    return version and apt.fetch_source(package, version, where)


def newest_of_family(versions, family, later=False):
    """The newest version of the family in a list or, if there is none and
    `later` is set, the newest later version."""
    wanted = _numbers(family)
    found = [v for v in versions if _numbers(v)[:len(wanted)] == wanted]
    if not found and later:
        found = [v for v in versions if _numbers(v) > wanted]
    best = None
    for version in found:
        if best is None or subprocess.run(
                ['dpkg', '--compare-versions', version, 'gt',
                 best]).returncode == 0:
            best = version
    return best


def _numbers(version):
    """The upstream version of a package's version, as a list of numbers."""
    return [int(x) for x in
            re.match(r'(?:\d+:)?(\d+(?:\.\d+)*)', version).group(1).split('.')]


class Unreachable(Fault):
    """The archive can't be reached, perhaps only for a moment."""


def _explain(name, log):
    """The exception that says in one clear line why apt-get failed."""
    with open(log, errors='replace') as f:
        text = f.read()
    lines = [x for x in text.splitlines() if x.startswith(('E:', 'Err:'))]
    why = lines[-1] if lines else 'see there'
    if re.search(r'Could not resolve|Temporary failure|Could not connect|'
                 r'Network is unreachable|Connection failed|timed out|'
                 r'Unable to connect', text):
        return Unreachable(f'{name}: the Debian archive can\'t be reached; '
                           'check the network, or name a source tree of your '
                           f'own with --source DIR ({log})')
    if 'No space left' in text or 'enough free space' in text:
        return Fault(f'{name}: no space left; make room, or set QDIO_CACHE to'
                     f' a directory on a larger disk ({log})')
    return Failure(f'{name} failed: {why}; all of its output is in {log}')


def _installed(package):
    done = subprocess.run(['dpkg-query', '-W', '-f', '${db:Status-Status}',
                           package], capture_output=True, text=True)
    return done.stdout.strip() == 'installed'


def missing_packages(host, more=()):
    """The packages of the host and of `more` that are not installed or too
    old, as arguments of apt-get."""
    return [p for p in (*host.packages, *more)
            if not _installed(plain(p)) or _too_old(host, plain(p))]


def install_needed(more=()):
    """Install the missing packages of the host and of `more`, or list what to
    install.  With --no-install, list everything needed for builds that is
    missing."""
    if no_install():
        check_needed()
        return
    host = this_host()
    if not shutil.which('dpkg-query'):
        raise Fault(f'there is no dpkg-query here; this is no {host.label}')
    wanted = missing_packages(host, more)
    if not wanted:
        return
    if os.geteuid() != 0:
        late = sorted({p.partition('/')[2] for p in wanted if '/' in p})
        where = f" (with {', '.join(late)} among the sources)" if late else ''
        raise Fault(f'packages are missing; as root, run{where}: apt-get '
                    f"install --no-install-recommends {' '.join(wanted)}")
    Apt().fetch('install ' + ', '.join(map(plain, wanted)), 'install', '-y',
                '-q', '--no-install-recommends', *wanted)


def _too_old(host, package):
    """Whether an installed package is too old for the bases."""
    if package not in host.at_least:
        return False
    done = subprocess.run(['dpkg-query', '-W', '-f', '${Version}', package],
                          capture_output=True, text=True)
    return subprocess.run(['dpkg', '--compare-versions', done.stdout, 'lt',
                           host.at_least[package]]).returncode == 0
