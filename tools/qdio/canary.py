# SPDX-License-Identifier: GPL-2.0-or-later
"""Try the hooks on a version of QEMU that is not a base: `./run canary`.

It shows what a port must change, and modifies nothing."""

import collections
import glob
import os
import re
import shutil
import subprocess
import tempfile

from .apt import Apt, newest_of_family
from .bases import unpack_package, unpack_source, version_of
from .config import cache, read_conf
from .git import sections
from .say import Failure, Fault, note

KEYS = ('package', 'suite', 'family', 'hooks')
SKIPPED = 77            # no source available

# The result of one hunk: 'applies', 'fuzzy' or 'fails', and patch's message
Hunk = collections.namedtuple('Hunk', 'path number state said')

_RESULT = re.compile(r'^Hunk #(\d+) (succeeded at .*|FAILED at .*|ignored.*)$',
                     re.M)


class Canary:
    """The content of bases/NAME.canary:

    package, family   as of a base
    suite             the releases that may have it
    hooks             the base whose hooks are tried"""

    def __init__(self, root, name):
        values = read_conf(root, f'bases/{name}.canary', KEYS)
        self.name = name
        self.package = values['package']
        self.suites = values['suite'].split()
        self.family = values['family']
        self.hooks = values['hooks']

    def fetch(self):
        """The .dsc of the newest version of the family in the archive, else of
        the newest later version; None if there is none."""
        try:
            apt = Apt(self.suites)
            version = newest_of_family(apt.source_versions(self.package),
                                       self.family, later=True)
        except (Fault, Failure) as err:
            note(str(err))
            return None
        if not version:
            note(f'{", ".join(self.suites)} have no QEMU {self.family} or '
                 'later')
            return None
        try:
            return apt.fetch_source(self.package, version,
                                    os.path.join(cache(), 'sources',
                                                 self.name))
        except Failure as err:
            # Some archives list packages that they do not serve
            note(f'{", ".join(self.suites)} list QEMU {version}, but it '
                 f'cannot be fetched: {err}')
            return None


def canary_names(root):
    return sorted(os.path.basename(p)[:-len('.canary')] for p in
                  glob.glob(os.path.join(root, 'bases', '*.canary')))


def try_hooks(source, patch, work):
    """Apply a slug's hooks to copies, in `work`, of the files of `source`
    that earlier slugs have not copied yet.  Returns its hunks."""
    result = []
    for path, part in sections(patch):
        target = os.path.join(work, path)
        original = os.path.join(source, path)
        count = len(re.findall(rb'^@@ ', part, re.M))
        if not os.path.exists(target):
            if not os.path.isfile(original):
                result += [Hunk(path, n + 1, 'fails', 'there is no such file')
                           for n in range(count)]
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(original, target)
        result += _try_file(path, target, part, count)
    return result


def _try_file(path, target, part, count):
    done = subprocess.run(
        ['patch', '--force', '--verbose', '--fuzz=2', '--reject-file=-',
         '--no-backup-if-mismatch', target], input=part,
        env=dict(os.environ, LC_ALL='C'), capture_output=True)
    text = done.stdout.decode(errors='replace')
    found = []
    for number, said in _RESULT.findall(text):
        state = 'fails' if not said.startswith('succeeded') else \
            'fuzzy' if 'with fuzz' in said else 'applies'
        found.append(Hunk(path, int(number), state, said.rstrip('.')))
    if len(found) != count:
        raise Failure(f'patch did not tell about each of {count} hunks in '
                      f'{path}: {text.strip()}')
    return found


def report(series, base, source):
    """Print the result of each slug's hooks.  A hunk that fails may cause
    later slugs' hunks in the same place to fail."""
    totals = collections.Counter()
    with tempfile.TemporaryDirectory() as work:
        for slug in series.of(base):
            hunks = try_hooks(source, slug.hooks(base), work)
            states = collections.Counter(h.state for h in hunks)
            totals += states
            print(f'{slug.name}: {_counts(states)}')
            for path in sorted(slug.installs(base).values()):
                if os.path.exists(os.path.join(source, path)):
                    print(f'  there already: {path}')
                    totals['there already'] += 1
            for hunk in hunks:
                if hunk.state != 'applies':
                    print(f'  {hunk.state}: {hunk.path}, hunk {hunk.number}: '
                          f'{hunk.said}')
    print(f'total: {_counts(totals)}')


def _counts(states):
    return ', '.join(f'{n} {state}' for state, n in states.items()) \
        or 'no hooks'


def run(root, series, name, source):
    """The whole command; returns the exit code."""
    canary = Canary(root, name)
    with tempfile.TemporaryDirectory(dir=cache()) as top:
        if source:
            where = unpack_source(os.path.realpath(source), top,
                                  'canary-' + name)
        else:
            dsc = canary.fetch()
            if not dsc:
                note(f'no source of QEMU {canary.family} can be had; name one '
                     'with --source DIR')
                return SKIPPED
            where = unpack_package(dsc, os.path.join(top, 'src'),
                                   'canary-' + name)
        version = version_of(where, source or dsc)
        print(f'the hooks of {canary.hooks} on QEMU {version}:')
        report(series, canary.hooks, where)
    return 0
