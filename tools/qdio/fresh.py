# SPDX-License-Identifier: GPL-2.0-or-later
"""`./run test --only fresh`: runs the README's first command on a new machine,
that is, in a minimal root of each Debian release described in tools/hosts,
with only git installed."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time

from . import apt, leftovers
from .build import environment
from .config import ROOT, cache, log_path
from .git import Git
from .host import Host, host_names, plain
from .say import Failure, note, step, tail

# Run in separate namespaces, with the root, the directories of ccache and of
# fetched packages, and a command.  Objects and packages from earlier runs come
# from outside and only save time.
MOUNT = r'''
set -e
root=$1 ccache=$2 packages=$3
shift 3
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mkdir -p "$root/ccache"
mount --bind "$ccache" "$root/ccache"
mount --bind "$packages" "$root/var/cache/apt/archives"
exec chroot "$root" "$@"
'''
NOBODY = 65534


def _sources(host):
    """Lines for apt: the archive that the system itself uses, in the host's
    release."""
    uri, keyring = apt.archive()
    return f'deb [signed-by={keyring}] {uri} {host.release} main\n'


def _directory():
    path = os.path.join(cache(), 'fresh')
    os.makedirs(path, exist_ok=True)
    return path


def _tarball(host):
    """A minimal root as a tarball; created once per cache."""
    path = os.path.join(_directory(), f'{host.name}.tar')
    if os.path.exists(path):
        return path
    with tempfile.NamedTemporaryFile('w', suffix='.list') as f:
        f.write(_sources(host))
        f.flush()
        try:
            _mmdebstrap(host, path + '.new', f.name)
        except Failure:
            # Perhaps the network was gone for a moment
            note(f'trying again in {apt.PAUSE} s')
            time.sleep(apt.PAUSE)
            _mmdebstrap(host, path + '.new', f.name)
    os.rename(path + '.new', path)
    return path


def _mmdebstrap(host, path, sources):
    step(f'make a minimal {host.label}',
         ['mmdebstrap', '--mode=root', '--variant=minbase', '--include=git',
          '--format=tar', host.release, path, sources],
         log_path(f'mmdebstrap-{host.name}'),
         env=dict(os.environ, LC_ALL='C'))


class Machine:
    """A fresh root in a temporary directory, with a clone of the repository
    in /home/project."""

    HOME = '/home/project'

    def __init__(self, host, stack):
        self.host = host
        self.root = stack.enter_context(tempfile.TemporaryDirectory(
            dir=_directory(), prefix=host.name + '.',
            ignore_cleanup_errors=True))
        stack.enter_context(leftovers.hold(self.root))
        os.chmod(self.root, 0o755)
        self.ccache = subprocess.run(
            ['ccache', '-k', 'cache_dir'], env=environment(), text=True,
            capture_output=True, check=True).stdout.strip()
        self.packages = os.path.join(_directory(), host.name + '.debs')
        for path in (self.ccache, os.path.join(self.packages, 'partial')):
            os.makedirs(path, exist_ok=True)

    def unpack(self):
        step(f'unpack a minimal {self.host.label}',
             ['tar', '-xpf', _tarball(self.host), '-C', self.root],
             log_path(f'fresh-{self.host.name}-unpack'))
        # Keep packages for the next machine
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.root + '/etc/apt/apt.conf.d/docker-clean')
        shutil.copy('/etc/resolv.conf', self.root + '/etc/resolv.conf')
        Git(ROOT)('clone', '--quiet', '--no-hardlinks', '.',
                  self.root + self.HOME)
        subprocess.run(['chown', '-R', f'{NOBODY}:{NOBODY}',
                        self.root + self.HOME], check=True)
        os.makedirs(self.root + '/home/nobody')
        os.chown(self.root + '/home/nobody', NOBODY, NOBODY)

    def run(self, what, argv, user=0):
        """Returns (exit code, log)."""
        log = log_path(f'fresh-{self.host.name}-{what.replace(" ", "-")}')
        home = '/home/nobody' if user else '/root'
        env = ['env', '-i', f'HOME={home}', 'TERM=dumb', 'CCACHE_DIR=/ccache',
               'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:'
               '/sbin:/bin', 'GIT_CONFIG_COUNT=1',
               'GIT_CONFIG_KEY_0=safe.directory', 'GIT_CONFIG_VALUE_0=*']
        who = ['setpriv', f'--reuid={user}', f'--regid={user}',
               '--clear-groups'] if user else []
        inside = [*env, *who, 'sh', '-c', f'cd {self.HOME} && exec "$@"',
                  'sh', *argv]
        code = step(f'{self.host.label}: {what}',
                    ['unshare', '--mount', '--pid', '--fork', '--kill-child',
                     'sh', '-c', MOUNT, 'sh', self.root, self.ccache,
                     self.packages, *inside], log, check=False, timeout=7200)
        return code, log


def named_packages(text):
    """The packages in the line that lists what root must install, or None."""
    found = re.findall(r'^run: packages are missing; as root, run.*: apt-get '
                       r'install --no-install-recommends (.+)$', text, re.M)
    return found[0].split() if len(found) == 1 else None


def _check_user(machine, report):
    """Check that an ordinary user gets a single line that lists everything
    that root must install."""
    code, log = machine.run('demo as an ordinary user', ['./run', 'demo'],
                            NOBODY)
    named = named_packages(tail(log, 10))
    present = subprocess.run(
        ['dpkg-query', f'--admindir={machine.root}/var/lib/dpkg', '-W', '-f',
         '${Package}\n'], text=True, capture_output=True,
        check=True).stdout.split()
    wanted = [p for p in machine.host.packages if plain(p) not in present]
    ok = code == 2 and named == wanted
    report(ok, f'fresh {machine.host.label}: an ordinary user is told what to '
           'install', log=log,
           remarks=() if ok else (f'named: {named}', f'lacks: {wanted}'))


def _one(host, report):
    with contextlib.ExitStack() as stack:
        machine = Machine(host, stack)
        machine.unpack()
        _check_user(machine, report)
        code, log = machine.run('demo', ['./run', 'demo'])
        report(code == 0, f'fresh {host.label}: git clone, ./run demo',
               log=log)


def run(report):
    if os.geteuid():
        report.skip('fresh', 'only root can make a root of another system')
        return
    apt.install_needed(('mmdebstrap',))
    for name in host_names():
        _one(Host(name), report)
