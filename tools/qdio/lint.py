# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of the repository: `./run lint`."""

import os
import re

from . import fates, imports
from .apply import make_commits
from .config import Base, base_names, lineage
from .git import Git, patched_paths
from .say import Fault
from .series import HOUSE, Series, tree_path

_VERSION_IF = re.compile(
    r'^\s*#\s*(?:el)?if.*\bQEMU_?(?:VERSION|VER)\w*'
    r'|project_version\s*\(\)\s*\.\s*version_compare'
    r'|^\s*#\s*(?:el)?if.*\b\w*_BASE_(?:VERSION|\d)', re.M)

# Addresses of registries, and paths that exist only on one developer's
# machine.  They are split, so that this file does not contain them itself.
_FOREIGN = (
    (re.compile(r'https?://\S*(?:debian|ubuntu|pypi|npmjs|snapshot)\S*', re.I),
     'has the address of a package archive'),
    (re.compile(r'\b(?:deb|security|snapshot|ftp)\.' r'debian\.org'),
     'has the address of a package archive'),
    (re.compile(r'(?<![\w.~}-])/(?:root/(?:w/|\.)|work/(?:main|shared|\.))'),
     "has a path of one developer's machine"),
)
_TEXT_LIMIT = 4 << 20

# Beyond this, checkpatch.pl complains, which takes much longer to run
_COLUMNS = 80


class Lint:
    """Collects complaints, each a line."""

    def __init__(self, root, trees):
        self.root = root
        self.trees = trees                  # unpacked bases
        self.bases = base_names(root)
        self.complaints = []
        self.series = None

    def run(self):
        try:
            self.series = Series(self.root)
            self._order()
            self._fallbacks()
            for slug in self.series.slugs:
                self._message(slug)
                self._tests(slug)
                self._patches(slug)
            self._files()
            self._contents()
            for text in fates.complaints(self.root, self.series, self.bases):
                self._say(text)
            for text in imports.complaints(self.root, self.tracked()):
                self._say(text)
        except Fault as err:
            self._say(str(err))
        if not self.complaints:
            self._applies()
        return self.complaints

    def _say(self, text):
        self.complaints.append(text)

    def tracked(self):
        """All files of the repository, also those not yet added to git."""
        if os.path.exists(os.path.join(self.root, '.git')):
            names = Git(self.root).lines('ls-files', '-z', '-c', '-o',
                                         '--exclude-standard')
        else:
            names = [os.path.relpath(os.path.join(where, name), self.root)
                     for where, _, files in os.walk(self.root)
                     for name in files if '__pycache__' not in where]
        return sorted({n for n in names
                       if os.path.lexists(os.path.join(self.root, n))})

    # The lists

    def _order(self):
        if not self.series.slugs:
            self._say('series/order names no slugs')
        top = os.path.join(self.root, 'series')
        for name in sorted(os.listdir(top)) if os.path.isdir(top) else []:
            if os.path.isdir(os.path.join(top, name)) and \
                    not self.series.slug(name):
                self._say(f'series/{name}/ is not in series/order')
        for slug in self.series.slugs:
            if not os.path.isdir(slug.directory):
                self._say(f"series/order names '{slug.name}', but there is no"
                          f' series/{slug.name}/')
            for base in slug.bases:
                if base not in self.bases:
                    self._say(f"series/order: '{slug.name}' is for '{base}', "
                              'which is no base')

    def _fallbacks(self):
        for name in self.bases:
            hooks = Base(self.root, name).hooks
            if hooks and hooks not in self.bases:
                self._say(f"bases/{name}.conf: hooks = '{hooks}', which is no "
                          'base')
            elif hooks and name in lineage(hooks, self.root):
                self._say(f'bases/{name}.conf: hooks = {hooks} leads back to '
                          f'{name}')

    def _files(self):
        listed = {}
        for slug in self.series.slugs:
            for path in slug.files():
                if path in listed:
                    self._say(f"'{path}' is listed twice: in series/"
                              f'{listed[path]}/files and series/{slug.name}/'
                              'files')
                listed.setdefault(path, slug.name)
                self._listed_path(slug, path)
        for path in self.tracked():
            if path.split('/')[0] not in HOUSE and path not in listed:
                self._say(f"'{path}' is listed nowhere; add it to the files "
                          'of a slug')

    def _listed_path(self, slug, path):
        where = f'series/{slug.name}/files'
        if os.path.normpath(path) != path or path.startswith(('/', '../')):
            self._say(f"{where}: '{path}' is no path inside the repository")
            return
        if path.split('/')[0] in HOUSE:
            self._say(f"{where}: '{path}' is no place for files of the series")
            return
        if not os.path.isfile(os.path.join(self.root, path)):
            self._say(f"{where} lists '{path}', which is not there")
        if path.startswith('compat/') and \
                not any(tree_path(path, b) for b in self.bases):
            self._say(f"{where}: '{path}' is for no base that there is; "
                      'compat/BASE/PATH is')
        for tree in self.trees:
            inside = self.series.tree_path(path, tree.base.name)
            if inside and inside in tree_files(tree):
                self._say(f"{where} lists '{path}', but QEMU "
                          f'{tree.base.name} has a file {inside} of its own')

    # One slug

    def _message(self, slug):
        text = slug.message()
        where = f'series/{slug.name}/message'
        if not text.strip():
            self._say(f'{where} is missing or empty')
            return
        lines = text.split('\n')
        if len(lines) > 1 and lines[1]:
            self._say(f'{where}: the line after the subject is not empty')
        if not re.match(r'[\w/.,+ -]+: \S', lines[0]) or len(lines[0]) > 76:
            self._say(f"{where}: the subject is not 'area: what it does' in "
                      'at most 76 characters')
        if re.search(r'^Signed-off-by:.*\.invalid>', text, re.M):
            self._say(f"{where} has a sign-off of nobody; 'emit' adds one of "
                      'whoever sends the series')
        if 'Series-Id:' in text:
            self._say(f'{where} has a Series-Id; the tool adds that')
        # git am would truncate the message there
        if re.search(r'^(---|diff -|Index: )', text, re.M):
            self._say(f'{where} has a line that git takes for the beginning '
                      'of a patch')

    def _tests(self, slug):
        for kind, name in slug.tests():
            if kind == 'suite':
                continue
            path = f'tests/{kind}/{name}.c'
            if not any(path in s.files() for s in self.series.slugs) and \
                    not any(path in tree_files(t) for t in self.trees):
                self._say(f"series/{slug.name}/tests: '{kind} {name}' has no "
                          f'{path}')

    def _patches(self, slug):
        names = sorted(os.listdir(slug.directory)) \
            if os.path.isdir(slug.directory) else []
        for name in names:
            where = f'series/{slug.name}/{name}'
            hooks = re.match(r'hooks-(.+)\.patch\Z', name)
            if hooks:
                self._hooks(slug, where, hooks.group(1))
            elif name not in ('message', 'files', 'tests'):
                self._say(f'{where}: what is that? A slug has message, files,'
                          ' tests and hooks-BASE.patch')

    def _hooks(self, slug, where, base):
        if base not in self.bases:
            self._say(f"{where} is for '{base}', which is no base")
        elif not slug.on(base):
            self._say(f'{where}: series/order says that the slug is not for '
                      f'{base}')
        patch, dropped = slug.own_hooks(base)
        if not patched_paths(patch) and not dropped:
            self._say(f'{where} is no patch')
        for path in set(dropped) - set(patched_paths(
                slug.inherited_hooks(base))):
            self._say(f"{where} drops the hook of '{path}', which it would "
                      'not take from another base')
        for path, what in patched_paths(patch).items():
            if what in ('create', 'delete'):
                self._say(f"{where} {what}s '{path}'; a hook may only edit")
            elif what != 'edit':
                self._say(f"{where} does more to '{path}' than edit it")
            for tree in self.trees:
                if tree.base.name == base and path not in tree_files(tree) \
                        and what == 'edit':
                    self._say(f"{where} edits '{path}', which QEMU {base} "
                              'does not have')

    # The content of the files

    def _contents(self):
        for path in self.tracked():
            full = os.path.join(self.root, path)
            if os.path.islink(full) or not os.path.isfile(full) or \
                    os.path.getsize(full) > _TEXT_LIMIT:
                continue
            with open(full, 'rb') as f:
                data = f.read()
            if b'\0' in data:
                continue
            text = data.decode(errors='replace')
            if path.endswith('.patch'):
                # Context lines are the base's; only added lines are ours
                text = '\n'.join(line[1:] for line in text.split('\n')
                                 if line.startswith('+'))
            self._content(path, text)

    def _content(self, path, text):
        for pattern, what in _FOREIGN:
            found = pattern.search(text)
            if found:
                self._say(f"'{path}' {what}: {found.group(0).strip()}")
                break
        if path.endswith(('.c', '.h', '.c.inc')):
            for number, line in enumerate(text.split('\n'), 1):
                if len(line) > _COLUMNS:
                    self._say(f"'{path}': line {number} has {len(line)} "
                              'columns')
        ours = path.split('/')[0] not in HOUSE or path.endswith('.patch')
        if ours and not path.startswith('compat/'):
            found = _VERSION_IF.search(text)
            if found:
                self._say(f"'{path}' depends on the version of QEMU outside "
                          f'compat/: {found.group(0).strip()}')

    def _applies(self):
        for tree in self.trees:
            try:
                last = tree.base_commit()
                for slug, commit in make_commits(self.series, tree.base.name,
                                                 tree.src, last):
                    git = Git(tree.src)
                    if git('rev-parse', commit + '^{tree}') == \
                            git('rev-parse', last + '^{tree}'):
                        self._say(f'series/{slug.name} changes nothing on '
                                  f'{tree.base.name}')
                    last = commit
            except Fault as err:
                self._say(str(err))


_files_of = {}


def tree_files(tree):
    """The paths that a base has."""
    key = tree.src, tree.base_commit()
    if key not in _files_of:
        _files_of[key] = set(Git(tree.src).lines('ls-tree', '-r', '-z',
                                                 '--name-only', key[1]))
    return _files_of[key]
