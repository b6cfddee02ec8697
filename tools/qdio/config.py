# SPDX-License-Identifier: GPL-2.0-or-later
"""Locations: the repository, the cache, and the bases' descriptions."""

import contextlib
import fcntl
import hashlib
import importlib
import os
import shlex
import shutil
import sys

from .say import Fault, note

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))

# Two unpacked bases, two builds and the tests' output
NEEDED_SPACE = 8 << 30


def lab(name):
    """Imports a module of lab/, which is not below this tool's directory."""
    if ROOT not in sys.path:
        sys.path.insert(0, ROOT)
    return importlib.import_module(f'lab.{name}')


def cache():
    """The directory for sources, trees, builds and logs.  It is outside any
    checkout, so that several checkouts can share it."""
    path = os.environ.get('QDIO_CACHE')
    if not path:
        path = os.path.join(os.environ.get('XDG_CACHE_HOME') or
                            os.path.expanduser('~/.cache'), 'qemu-direct-io')
    return os.path.abspath(path)


def log_path(name):
    return os.path.join(cache(), 'logs', name + '.log')


def usable_cache():
    """Make the cache's directory; returns (path, bytes free in it)."""
    path = cache()
    try:
        os.makedirs(path, exist_ok=True)
        return path, shutil.disk_usage(path).free
    except OSError as err:
        raise Fault(f'cannot use {path}: {err.strerror}; set QDIO_CACHE to a '
                    'directory that can be written') from None


@contextlib.contextmanager
def locked(path, what):
    """Hold the lock file `path`, so that only one `./run` at a time works on
    `what`."""
    with open(path, 'w') as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f'waiting: another run works on {what}')
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def check_space():
    """Report immediately, not after half an hour, if the disk is too small.
    Space that the cache already uses counts as available."""
    path, free = usable_cache()
    needed = int(os.environ.get('QDIO_NEEDED_SPACE', NEEDED_SPACE))
    if os.path.exists(os.path.join(path, 'trees')):
        needed //= 2
    if free < needed:
        raise Fault(f'only {free / (1 << 30):.1f} GiB are free in {path}, '
                    f'{needed / (1 << 30):.0f} GiB are needed; make room, or '
                    'set QDIO_CACHE to a directory on a larger disk')


def read_conf(root, where, keys, optional=()):
    """{key: value} of a file with lines KEY = VALUE.  It must have all `keys`,
    and may have the `optional` ones but no others.  A key may be repeated to
    split a long value."""
    values = {}
    with open(os.path.join(root, where), encoding='utf-8') as f:
        for line in f:
            line = line.partition('#')[0].strip()
            if not line:
                continue
            key, equals, value = line.partition('=')
            key = key.strip()
            if not equals or key not in (*keys, *optional):
                raise Fault(f"{where}: cannot read '{line}'; write KEY = "
                            f"VALUE, KEY one of "
                            f"{', '.join((*keys, *optional))}")
            values[key] = f'{values.get(key, "")} {value.strip()}'.strip()
    for key in keys:
        if key not in values:
            raise Fault(f"{where} lacks '{key}'; add a line {key} = ...")
    return values


class Base:
    """A version of QEMU that the series supports, from bases/NAME.conf:

    package    the source package
    suite      the distribution's release that has it; if several are named,
               the one with the newest version of the family is used
    family     the prefix of its version
    configure  options for QEMU's configure
    hooks      optional: the base whose hooks, compat/ files, slugs and tests
               this base uses, except where it has its own (see series.py)
    Optional keys for the tests:

    mapped_ram     yes if the base has its own mapped-ram to compare with
    qtest_options  PROGRAM OPTION..., the options for one of the base's own
                   qtests
    iotests        image formats with which those of its iotests that migrate
                   must pass
    e2e            options for the end-to-end tests; --quick by default,
                   because most of what they find does not depend on the base
    exchange       the bases with which they exchange images
    bench          yes if the benchmark's own test runs on it
    machines       kvm, aarch64 or both: the other machines on which some
                   end-to-end tests run, each with a separate build
    sanitize       the sanitizers under which the series' tests run on it:
                   address (with undefined) for unit tests and qtests, or
                   address-unit for unit tests alone; thread; fuzz
    asan           configure options that enable those of address
    parts          the parts of ./run test --all that run on it; all by
                   default.  --only also runs the others"""

    KEYS = ('package', 'suite', 'family', 'configure')
    OPTIONAL = {'hooks': '', 'mapped_ram': 'yes', 'qtest_options': '',
                'iotests': '', 'e2e': '--quick', 'exchange': '',
                'bench': 'no', 'machines': '', 'sanitize': '', 'asan': '',
                'parts': ''}
    # Keys whose values are lists of these words
    CHOICES = {'machines': ('kvm', 'aarch64'),
               'sanitize': ('address', 'address-unit', 'thread', 'fuzz')}

    def __init__(self, root, name):
        self.name = name
        where = f'bases/{name}.conf'
        values = {**self.OPTIONAL,
                  **read_conf(root, where, self.KEYS, self.OPTIONAL)}
        self.package = values['package']
        self.suite = values['suite']
        self.hooks = values['hooks'] or None
        self.family = values['family']
        self.configure = shlex.split(values['configure'])
        for key in ('mapped_ram', 'bench'):
            if values[key] not in ('yes', 'no'):
                raise Fault(f"{where}: {key} is '{values[key]}'; make it yes "
                            'or no')
            setattr(self, key, values[key] == 'yes')
        self.iotests = values['iotests'].split()
        self.e2e = shlex.split(values['e2e'])
        self.exchange = values['exchange'].split()
        self.parts = values['parts'].split()
        for key, choices in self.CHOICES.items():
            setattr(self, key, values[key].split())
            for word in getattr(self, key):
                if word not in choices:
                    raise Fault(f"{where}: {key} has '{word}'; it takes some "
                                f"of {', '.join(choices)}")
        self.asan = shlex.split(values['asan'])
        self.qtest_options = {}
        if values['qtest_options']:
            program, *options = shlex.split(values['qtest_options'])
            self.qtest_options[program] = options

    def is_version(self, version):
        """Whether an upstream version such as 7.2.13 belongs to this base."""
        return version == self.family or version.startswith(
            (self.family + '.', self.family + '+'))


def base_names(root=ROOT):
    try:
        names = os.listdir(os.path.join(root, 'bases'))
    except OSError:
        names = []
    return sorted((n[:-5] for n in names if n.endswith('.conf')),
                  key=lambda n: [int(x) if x.isdigit() else 0
                                 for x in n.split('.')])


def lineage(name, root=ROOT):
    """A base and the bases whose hooks it falls back to, nearest first."""
    result = []
    while name and name not in result and name in base_names(root):
        result.append(name)
        name = Base(root, name).hooks
    return result or [name]


def get_base(name, root=ROOT):
    if name not in base_names(root):
        raise Fault(f"there is no base '{name}'; the bases are "
                    f"{', '.join(base_names(root))}")
    return Base(root, name)


def short_hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]
