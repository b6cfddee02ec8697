# SPDX-License-Identifier: GPL-2.0-or-later
"""The series as it is stored in the repository.

series/order lists the slugs in the order of their commits, one per line; a
slug that is only for some bases is followed by their names.  For each slug,
series/SLUG/ contains

    message           the commit's subject and reasons, for all bases
    files             the root files that it adds, one path per line; a path
                      compat/BASE/PATH is installed at PATH, only on BASE
    tests             the tests that pass from this commit on (see tests())
    hooks-BASE.patch  its edits to files that BASE has

A base whose description says `hooks = OTHER` inherits from OTHER: the slugs
and tests that are marked for OTHER, the files in compat/OTHER/ unless
compat/BASE/ has one with the same path, and OTHER's hooks, file by file.  Its
hooks-BASE.patch then contains only the files whose hooks differ; a line
"Not here: PATH" before the first of them drops OTHER's hook of PATH.  The
context of a hook must match exactly, at any line; hooks are never applied with
fuzz or merged, so the result depends only on the repository and the base.

A root file is added by the slug that lists it.  No later slug edits it, and
refresh refuses such an edit."""

import os
import re
import shutil

from .config import lineage
from .git import sections
from .say import Fault

# Files at the root that are not part of the series
HOUSE = {'run', 'tools', 'bases', '.ci', '.gitignore', '.gitattributes',
         'README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md',
         'COPYING', 'MAINTAINERS', 'meson.build', 'series',
         'lab', 'e2e', 'bench', '.editorconfig'}

SLUG = re.compile(r'[a-z0-9][a-z0-9.-]*\Z')
KINDS = ('unit', 'qtest', 'suite')


def _lines(path):
    """The lines of a list, without comments and empty lines."""
    try:
        with open(path, encoding='utf-8') as f:
            text = f.read()
    except FileNotFoundError:
        return []
    return [line for line in (x.partition('#')[0].strip()
                              for x in text.splitlines()) if line]


def _bytes(path):
    try:
        with open(path, 'rb') as f:
            return f.read()
    except FileNotFoundError:
        return b''


class Slug:
    """One commit of the series."""

    def __init__(self, series, name, bases):
        self.series = series
        self.name = name
        self.bases = bases              # empty: all of them
        self.directory = os.path.join(series.root, 'series', name)

    def on(self, base):
        return not self.bases or \
            bool(set(self.bases) & set(self.series.lineage(base)))

    def path(self, name):
        return os.path.join(self.directory, name)

    def message(self):
        return _bytes(self.path('message')).decode(errors='replace')

    def files(self):
        """The repository's paths of all files that it adds on any base."""
        return _lines(self.path('files'))

    def installs(self, base):
        """{path in the repository: path in the tree} for one base."""
        result = {}
        for path in self.files():
            where = self.series.tree_path(path, base)
            if where:
                result[path] = where
        return result

    def own_hooks(self, base):
        """(patch, paths whose inherited hook is dropped) from the base's own
        hooks file."""
        text = _bytes(self.path(f'hooks-{base}.patch'))
        start = re.search(rb'^diff --git ', text, re.M)
        head = text[:start.start()] if start else text
        return text[len(head):], [p.decode() for p in
                                  re.findall(rb'^Not here: (\S+)$', head,
                                             re.M)]

    def hooks(self, base):
        """All hooks for a base, including inherited ones."""
        own, dropped = self.own_hooks(base)
        inherited = self.inherited_hooks(base)
        if not own and not dropped:
            return inherited
        merged = {path: part for path, part in sections(inherited)
                  if path not in dropped}
        merged.update(sections(own))
        return b''.join(merged[path] for path in
                        sorted(merged, key=str.encode))

    def inherited_hooks(self, base):
        """The hooks that a base takes from the base it falls back to."""
        others = self.series.lineage(base)[1:]
        return self.hooks(others[0]) if others else b''

    def tests(self, base=None):
        """Pairs such as ('unit', 'test-direct-queue').  The kinds are unit, a
        program in tests/unit; qtest, one in tests/qtest; and suite, one of
        meson's.  A third word limits the line to one base."""
        result = []
        for line in _lines(self.path('tests')):
            words = line.split()
            if len(words) not in (2, 3) or words[0] not in KINDS:
                raise Fault(f"series/{self.name}/tests: cannot read '{line}';"
                            f" write KIND NAME [BASE], KIND one of "
                            f"{', '.join(KINDS)}")
            if base is None or len(words) == 2 or \
                    words[2] in self.series.lineage(base):
                result.append((words[0], words[1]))
        return result


def tree_path(path, base):
    """Where a file of the repository, in compat/BASE or for all bases, is
    installed on `base`, or None."""
    if not path.startswith('compat/'):
        return path
    parts = path.split('/', 2)
    return parts[2] if len(parts) == 3 and parts[1] == base else None


class Series:
    def __init__(self, root):
        self.root = root
        self.slugs = []
        self._lineages = {}
        self._read_order()

    def _read_order(self):
        for line in _lines(os.path.join(self.root, 'series', 'order')):
            name, *bases = line.split()
            if not SLUG.match(name):
                raise Fault(f"series/order: '{name}' is no name for a slug; "
                            'use small letters, digits, "-" and "."')
            if any(s.name == name for s in self.slugs):
                raise Fault(f"series/order: '{name}' is there twice; "
                            'take one of the lines out')
            self.slugs.append(Slug(self, name, bases))

    def of(self, base):
        return [slug for slug in self.slugs if slug.on(base)]

    def lineage(self, base):
        if base not in self._lineages:
            self._lineages[base] = lineage(base, self.root)
        return self._lineages[base]

    def tree_path(self, path, base):
        """Where a file of the repository is installed on `base`, or None."""
        nearer = []
        for name in self.lineage(base):
            where = tree_path(path, name)
            if where:
                listed = {p for s in self.slugs for p in s.files()}
                return None if listed & {f'compat/{n}/{where}'
                                         for n in nearer} else where
            nearer.append(name)
        return None

    def slug(self, name):
        return next((s for s in self.slugs if s.name == name), None)

    def content(self, path):
        """(mode, bytes) of a root file."""
        full = os.path.join(self.root, path)
        if os.path.islink(full) or not os.path.isfile(full):
            raise Fault(f"series: '{path}' is listed but is no file here; "
                        'restore it, or take it out of the list')
        mode = '100755' if os.access(full, os.X_OK) else '100644'
        with open(full, 'rb') as f:
            return mode, f.read()


def copy_series(root, where):
    """Copy the part of a repository that apply and refresh work on."""
    for name in ('series', 'bases'):
        if os.path.isdir(os.path.join(root, name)):
            shutil.copytree(os.path.join(root, name),
                            os.path.join(where, name))
    for slug in Series(root).slugs:
        for path in slug.files():
            target = os.path.join(where, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.exists(os.path.join(root, path)):
                shutil.copy2(os.path.join(root, path), target)
