# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's source package with the series in its patches: `./run deb`."""

import datetime
import email.utils
import os
import re
import shutil
import subprocess
import tempfile
import time

from . import fates
from .bases import unpack_package
from .config import cache, log_path
from .emit import emit
from .git import AUTHOR, Git
from .say import Failure, Fault, step

# Added to the version.  An update from Debian must be offered, so it sorts
# before +deb12u1 and +nmu1; but a rebuild without changes must not replace
# ours, so it sorts after +b1.
SUFFIX = '+custom.directio1'
PATCHES = 'direct-io'           # below debian/patches


def make_package(series, tree, output):
    """Write the package to the empty directory `output`, unpacked and as
    packed by dpkg-source.  Returns (unpacked directory, .dsc)."""
    original = tree.source_package()
    for path in _package_files(original):
        shutil.copy2(path, output)
    name, version = _version(original)
    unpacked = os.path.join(output, f'{name}-{_upstream(version)}')
    step(f'unpack {os.path.basename(original)}',
         ['dpkg-source', '--no-check', '-x', original, unpacked],
         log_path(f'deb-{tree.name}'))
    _add_patches(series, tree, unpacked)
    _add_changelog(unpacked, name, version + SUFFIX, tree.base.suite)
    step(f'pack {name} {version}{SUFFIX}',
         ['dpkg-source', '--build', os.path.basename(unpacked)],
         log_path(f'deb-{tree.name}'), cwd=output, append=True)
    dsc = os.path.join(output,
                       f'{name}_{_without_epoch(version)}{SUFFIX}.dsc')
    if not os.path.exists(dsc):
        raise Failure(f'dpkg-source made no {dsc}; its output is in '
                      f'{log_path("deb-" + tree.name)}')
    return unpacked, dsc


def check_empty(output):
    """Make a directory, or refuse one that is not empty."""
    os.makedirs(output, exist_ok=True)
    found = os.listdir(output)
    if found:
        raise Fault(f"{output} is not empty, it has '{found[0]}'; remove it, "
                    'or name another directory with --output')


def _package_files(dsc):
    """The .dsc's tarballs; the .dsc itself is no longer needed."""
    with open(dsc, encoding='utf-8') as f:
        listed = re.search(r'^Files:\n((?: .*\n)+)', f.read(), re.M)
    names = [line.split()[2] for line in listed.group(1).splitlines()] \
        if listed else []
    if not names:
        raise Fault(f'{dsc} lists no files; is it a source package?')
    return [os.path.join(os.path.dirname(dsc), n) for n in names
            if '.debian.tar.' not in n]


def _version(dsc):
    """(package, version with epoch) from the .dsc."""
    with open(dsc, encoding='utf-8') as f:
        fields = dict(re.findall(r'^(Source|Version): *(\S+)', f.read(), re.M))
    if len(fields) != 2:
        raise Fault(f'{dsc} names no source and version; is it a source '
                    'package?')
    return fields['Source'], fields['Version']


def _without_epoch(version):
    return version.partition(':')[2] or version


def _upstream(version):
    return _without_epoch(version).rpartition('-')[0]


def _add_patches(series, tree, unpacked):
    """Add the emitted mails, which quilt also accepts, after Debian's
    patches."""
    where = os.path.join(unpacked, 'debian', 'patches')
    with tempfile.TemporaryDirectory(dir=cache()) as top:
        mails = emit(series, tree.base.name, tree, os.path.join(top, 'mails'))
        os.makedirs(os.path.join(where, PATCHES), exist_ok=True)
        rows = fates.read(series.root)[1]
        for slug, mail in zip(series.of(tree.base.name), mails):
            _copy_patch(mail, rows.get(slug.name, {}).get('upstream'),
                        os.path.join(where, PATCHES))
    path = os.path.join(where, 'series')
    old = ''
    if os.path.exists(path):
        with open(path, encoding='utf-8') as f:
            old = f.read()
    with open(path, 'w', encoding='utf-8') as f:
        f.write(old.rstrip('\n') + '\n' if old else '')
        f.writelines(f'{PATCHES}/{os.path.basename(m)}\n' for m in mails)
    _push(unpacked)


def _copy_patch(mail, upstream, where):
    """Copy a mail, whose From and Subject are DEP-3's Author and Description,
    with the other fields of DEP-3."""
    with open(mail, encoding='utf-8') as f:
        header, blank, rest = f.read().partition('\n\n')
    fields = ['Origin: vendor, the direct-io series',
              'Forwarded: not-needed (carried downstream; upstream: '
              f"{upstream or 'unknown'})",
              f'Last-Update: {_now():%Y-%m-%d}']
    with open(os.path.join(where, os.path.basename(mail)), 'w',
              encoding='utf-8') as f:
        f.write('\n'.join([header, *fields]) + blank + rest)


def _now():
    now = float(os.environ.get('SOURCE_DATE_EPOCH') or time.time())
    return datetime.datetime.fromtimestamp(now, datetime.timezone.utc)


def _push(unpacked):
    """Apply the new patches in debian/patches/series, and record them as
    applied, as quilt would."""
    done = subprocess.run(['dpkg-source', '--before-build', '.'],
                          cwd=unpacked, capture_output=True, text=True)
    if done.returncode:
        raise Failure('the patches do not apply to the package: '
                      + (done.stderr or done.stdout).strip()
                      .replace('\n', ' | '))


def _add_changelog(unpacked, name, version, suite):
    path = os.path.join(unpacked, 'debian', 'changelog')
    with open(path, encoding='utf-8') as f:
        old = f.read()
    date = email.utils.format_datetime(_now())
    with open(path, 'w', encoding='utf-8') as f:
        f.write(f'{name} ({version}) {suite}; urgency=medium\n\n'
                '  * Local build with direct I/O for saving guests to files: '
                f'the patches\n    in debian/patches/{PATCHES}.\n\n'
                f' -- {AUTHOR[0]} <{AUTHOR[1]}>  {date}\n\n{old}')


def check_package(tree, tip, dsc, directory):
    """Unpack the new package.  Returns the paths, except in debian/, that
    differ from the applied tree `tip`."""
    where = unpack_package(dsc, directory, f'deb-check-{tree.name}')
    git = Git(where, os.path.join(tree.directory, 'deb.index'),
              ['--git-dir', os.path.join(tree.src, '.git'), '--work-tree',
               where])
    try:
        git('read-tree', tip)
        git('add', '-Af', '.')
        made = git('write-tree')
    finally:
        if os.path.exists(os.path.join(tree.directory, 'deb.index')):
            os.unlink(os.path.join(tree.directory, 'deb.index'))
    return git.lines('diff-tree', '-r', '-z', '--name-only', tip, made, '--',
                     '.', ':(exclude)debian')
