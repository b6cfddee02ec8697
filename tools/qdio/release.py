# SPDX-License-Identifier: GPL-2.0-or-later
"""`./run release VERSION`: mails, Debian's source packages, documentation and
figures, with their SHA-256.  The same commit gives the same bytes."""

import hashlib
import os
import re
import shutil
import tempfile

from .bases import Tree
from .config import ROOT, base_names, cache, get_base
from .deb import check_empty, make_package
from .emit import emit
from .git import Git
from .say import Fault

PAGES = ('README.md', 'CHANGELOG.md', 'SECURITY.md', 'CONTRIBUTING.md',
         'COPYING', 'MAINTAINERS', 'docs', 'bench/RESULTS.md',
         'bench/results', 'series/README.md')


def check_version(root, version):
    if not version or not re.match(r'\d+(\.\d+)*\Z', version):
        raise Fault(f"'{version or ''}' is no version; './run release 1.2' "
                    'makes one')
    try:
        with open(os.path.join(root, 'CHANGELOG.md'), encoding='utf-8') as f:
            known = re.findall(r'^## (\S+)', f.read(), re.M)
    except FileNotFoundError:
        known = []
    if version not in known:
        raise Fault(f"CHANGELOG.md has no section '## {version}'; write what "
                    'has changed there')


def check_clean(root):
    dirty = Git(root).dirty()
    if dirty:
        raise Fault(f"'{dirty[0]}' is not committed; a release is made of a "
                    'commit')


def _copy_pages(root, output):
    for page in PAGES:
        source = os.path.join(root, page)
        target = os.path.join(output, page)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(source):
            shutil.copytree(source, target)
        elif os.path.exists(source):
            shutil.copyfile(source, target)


def _packages(series, tree, output):
    """Write the packed source package, without the unpacked tree."""
    with tempfile.TemporaryDirectory(dir=cache()) as work:
        make_package(series, tree, work)
        os.makedirs(output)
        for entry in os.scandir(work):
            if entry.is_file():
                shutil.move(entry.path, output)


def write_sums(output):
    """Write SHA256SUMS for sha256sum -c."""
    lines = []
    for where, _, names in os.walk(output):
        for name in names:
            path = os.path.join(where, name)
            with open(path, 'rb') as f:
                digest = hashlib.file_digest(f, 'sha256').hexdigest()
            lines.append((os.path.relpath(path, output), digest))
    with open(os.path.join(output, 'SHA256SUMS'), 'w',
              encoding='utf-8') as f:
        f.writelines(f'{digest}  {path}\n' for path, digest in sorted(lines))


def release(series, version, output=None):
    """Make a release.  Returns its directory."""
    check_version(ROOT, version)
    check_clean(ROOT)
    output = os.path.abspath(output or os.path.join(cache(), 'release',
                                                    version))
    check_empty(output)
    os.environ['SOURCE_DATE_EPOCH'] = Git(ROOT)('log', '-1', '--format=%ct')
    for base in base_names():
        tree = Tree(get_base(base))
        with tree.locked():
            tree.ensure()
            # The sender of the mails signs off: see ./run emit
            emit(series, base, tree, os.path.join(output, 'mails', base))
            _packages(series, tree, os.path.join(output, 'debian', base))
    _copy_pages(ROOT, output)
    write_sums(output)
    return output
