# SPDX-License-Identifier: GPL-2.0-or-later
"""Import commits back into the repository: `./run refresh`."""

import os
import shutil
import tempfile

from .apply import set_applied, slug_of, without_trailer
from .git import Git, GitError, sections, stable_diff
from .say import Fault
from .series import HOUSE, Series, copy_series

# How to change a commit of an applied tree
FIXUP = '"git commit --fixup=COMMIT" and "git rebase -i --autosquash base"'
_TESTS = (('tests/unit/test-', 'unit'), ('tests/qtest/', 'qtest'))


class Commit:
    """The combined commits of one slug in the tree: adjacent commits with the
    same slug, such as a fix on top, count as one."""

    def __init__(self, name, message, old, new):
        self.name = name
        self.message = message
        self.old = old
        self.new = new
        self.added = {}         # {path in the tree: mode}
        self.hooked = []        # paths of the base


def _commit_ids(git, rev):
    """The series in a tree, oldest first: the commits of the range `rev` or,
    by default, all that follow the pristine source.  If neither is known, the
    last commits that name a slug."""
    if not rev and _in_history(git, 'refs/heads/base'):
        rev = 'refs/heads/base..HEAD'
    if rev and '..' in rev:
        return git('rev-list', '--reverse', '--first-parent', rev).split()
    ids = []
    for one in git('rev-list', '--first-parent', rev or 'HEAD').split():
        if not slug_of(git('log', '-1', '--format=%B', one)):
            break
        ids.insert(0, one)
    return ids


def _in_history(git, name):
    try:
        git('merge-base', '--is-ancestor', name, 'HEAD')
        return True
    except GitError:
        return False


def read_commits(git, base, rev=None):
    """The series in a tree, see _commit_ids(), as a list of Commit."""
    commits = []
    for one in _commit_ids(git, rev):
        message = git('log', '-1', '--format=%B', one) + '\n'
        name = slug_of(message)
        if not name:
            raise Fault(f'commit {one[:12]} ({message.splitlines()[0]}) names '
                        'no slug; for a new slug, add a line "Series-Id: '
                        'SLUG" at the end of its message; for a change to '
                        f'another commit, use {FIXUP}')
        if commits and commits[-1].name == name:
            commits[-1].new = one
            continue
        if any(c.name == name for c in commits):
            raise Fault(f"two commits name the slug '{name}' with others in "
                        'between; to change the first one, do not name its '
                        f'slug again, but use {FIXUP}')
        parent = git.commit_id(one + '^')
        if not parent:
            raise Fault(f'commit {one[:12]} has nothing below it: the tree '
                        f'must start with the pristine source of {base}')
        commits.append(Commit(name, without_trailer(message), parent, one))
    if not commits:
        raise Fault(f'no commit with a line "Series-Id: SLUG" in '
                    f'{git.directory}; run "./run apply {base}" first')
    return commits


def sort_changes(git, commits):
    """Determine which files each commit adds and hooks."""
    ours = {}                   # {path: the slug that adds it}
    for commit in commits:
        out = git.lines('diff-tree', '-r', '-z', '--raw', '--no-renames',
                        commit.old, commit.new)
        for info, path in zip(out[::2], out[1::2]):
            old_mode, new_mode, _, _, status = info.lstrip(':').split()
            if path in ours:
                raise Fault(f"{commit.name}: '{path}' is a file that the slug "
                            f"'{ours[path]}' adds; make the edit in the "
                            'commit of that slug, with "git rebase -i"')
            if status == 'A':
                commit.added[path] = new_mode
                ours[path] = commit.name
                if new_mode not in ('100644', '100755'):
                    raise Fault(f"{commit.name}: '{path}' is no plain file; "
                                'the series can only add plain files')
            elif status == 'M' and old_mode == new_mode:
                commit.hooked.append(path)
            else:
                raise Fault(f"{commit.name}: '{path}' is deleted or changes "
                            'its type or mode, which a hook must not do; '
                            'take that out of the commit')


class Writer:
    """Writes only files that differ, and remembers them."""

    def __init__(self, root):
        self.root = root
        self.changed = []

    def write(self, path, data, mode='100644'):
        full = os.path.join(self.root, path)
        bits = 0o755 if mode == '100755' else 0o644
        if os.path.islink(full):
            raise Fault(f"'{path}' is a symbolic link; refresh needs a file")
        if os.path.isfile(full):
            with open(full, 'rb') as f:
                same = f.read() == data
            if same and bool(os.stat(full).st_mode & 0o100) == bool(
                    bits & 0o100):
                return
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, 'wb') as f:
            f.write(data)
        os.chmod(full, bits)
        self.changed.append(path)

    def remove(self, path):
        full = os.path.join(self.root, path)
        if os.path.lexists(full):
            os.unlink(full)
            self.changed.append(path)


def refresh_applied(root, tree):
    """Import what the commits of an applied tree changed in it, and nothing
    else: the repository may have newer content, such as edits made there or
    refreshed from another base.  Returns the paths in the repository that
    changed."""
    base = tree.base.name
    # A new base that does not take the series yet has no record
    old = tree.record if os.path.isdir(tree.record) else root
    with tempfile.TemporaryDirectory(dir=tree.directory) as new:
        copy_series(old, new)
        _take_order(root, new, tree)
        changed = [path for path in refresh(new, base, tree.src)
                   if _content(root, path) != _content(new, path)]
        for path in changed:
            _check_unchanged(root, old, path, tree)
        writer = Writer(root)
        for path in changed:
            found = _content(new, path)
            if found:
                writer.write(path, *found)
            else:
                writer.remove(path)
        set_applied(new, tree)
    return writer.changed


def _take_order(root, new, tree):
    """Use the repository's series/order if it names the tree's slugs and the
    copy's does not: a slug was dropped, or marked for the base, in both."""
    base = tree.base.name
    names = {commit.name for commit in read_commits(Git(tree.src), base)}

    def same(where):
        return names == {slug.name for slug in Series(where).of(base)}

    if same(root) and not same(new):
        shutil.copyfile(os.path.join(root, 'series', 'order'),
                        os.path.join(new, 'series', 'order'))


def _content(root, path):
    """(bytes, mode) of a file, or None."""
    full = os.path.join(root, path)
    if not os.path.isfile(full):
        return None
    with open(full, 'rb') as f:
        return f.read(), '100755' if os.access(full, os.X_OK) else '100644'


def _check_unchanged(root, old, path, tree):
    """Refuse to overwrite newer content of the repository, or hooks that
    depend on newer ones of another base."""
    base = tree.base.name
    paths = [path]
    where, name = os.path.split(path)
    if name == f'hooks-{base}.patch':
        paths += [f'{where}/hooks-{other}.patch'
                  for other in Series(root).lineage(base)[1:]]
    for one in paths:
        if _content(root, one) != _content(old, one):
            raise Fault(f"'{one}' has changed in the repository since "
                        f'"./run apply {base}", in conflict with the commits '
                        f'in {tree.src}; keep them there with "git branch '
                        f'mine", run "./run apply {base} --discard", redo '
                        'them with "git cherry-pick", and refresh again')


def refresh(root, base, directory, rev=None):
    """Import the commits of the tree in `directory`, all that they contain.
    Returns the paths in the repository that changed."""
    git = Git(directory)
    if not git.commit_id('HEAD'):
        raise Fault(f'{directory} is no git tree with commits')
    if not rev:
        dirty = git.dirty()
        if dirty:
            raise Fault(f"{directory} has changes that are not committed, "
                        f"such as '{dirty[0]}'; commit them, for example "
                        f'with {FIXUP}, or take them back first')
    series = Series(root)
    commits = read_commits(git, base, rev)
    sort_changes(git, commits)
    writer = Writer(root)
    order = _merged_order(series, base, [c.name for c in commits])
    homes = _homes(series, base, commits)
    _check_homes(series, homes)
    _write(writer, git, series, base, commits, homes)
    _write_order(writer, series, order)
    return writer.changed


def _merged_order(series, base, names):
    """series/order with this base's slugs in the tree's order: a list of
    (name, bases).  New slugs are marked for this base only."""
    known = [slug.name for slug in series.of(base)]
    lost = [name for name in known if name not in names]
    if lost:
        raise Fault(f"the tree has no commit for the slug '{lost[0]}'; to "
                    'drop it, take it out of series/order, and its directory '
                    'and files out of the repository')
    result = [(slug.name, slug.bases) for slug in series.slugs]
    positions = {name: i for i, (name, _) in enumerate(result)}
    for name in names:
        if name in positions and name not in known:
            raise Fault(f"the tree has a commit for '{name}', which "
                        f'series/order marks for other bases than {base}; '
                        f'add {base} to its line there')
    if [n for n in names if n in known] != known:
        # Reordered: this base's slugs keep the same slots
        slots = [positions[n] for n in known]
        marks = {slug.name: slug.bases for slug in series.slugs}
        for slot, name in zip(slots, [n for n in names if n in known]):
            result[slot] = name, marks[name]
    for i, name in enumerate(names):
        if name in known:
            continue
        where = 0
        if i:
            where = 1 + next(j for j, (n, _) in enumerate(result)
                             if n == names[i - 1])
        result.insert(where, (name, [base]))
    return result


def _homes(series, base, commits):
    """The path of each of our files in the repository: a file that is already
    in compat/BASE stays there, and all others are at the root."""
    in_compat = {series.tree_path(p, base): p for slug in series.slugs
                 for p in slug.files()
                 if p.startswith('compat/') and series.tree_path(p, base)}
    return {path: in_compat.get(path, path)
            for commit in commits for path in commit.added}


def _check_homes(series, homes):
    """A file of the tree must not overwrite one of the repository's own files
    with the same name."""
    listed = {p for slug in series.slugs for p in slug.files()}
    for home in homes.values():
        if home not in listed and home.split('/')[0] in HOUSE:
            raise Fault(f"the tree adds '{home}', but that name is no place "
                        'for files of the series; choose another one')


def _write(writer, git, series, base, commits, homes):
    still = {homes[p] for commit in commits for p in commit.added}
    for commit in commits:
        slug = series.slug(commit.name)
        where = f'series/{commit.name}/'
        listed = slug.files() if slug else []
        others = [p for p in listed if not series.tree_path(p, base)]
        mine = [homes[p] for p in commit.added]
        files = sorted(set(others + mine))
        for path in listed:
            if path not in files and path not in still:
                writer.remove(path)
        for path, mode in commit.added.items():
            writer.write(homes[path], git.blob(commit.new, path), mode)
        writer.write(where + 'message', commit.message.encode())
        _write_or_remove(writer, where + 'files',
                         ''.join(f'{p}\n' for p in files).encode())
        hooks = _own_hooks(git, slug, base, commit)
        _write_or_remove(writer, f'{where}hooks-{base}.patch', hooks)
        tests = _guess_tests(commit.added)
        if tests and not os.path.exists(os.path.join(writer.root, where,
                                                     'tests')):
            writer.write(where + 'tests', tests.encode())


def _own_hooks(git, slug, base, commit):
    """The content of hooks-BASE.patch: all hooks or, if the base falls back to
    another one, only those of files for which the other base's hooks give a
    different result."""
    hooks = stable_diff(git, commit.old, commit.new, commit.hooked)
    inherited = dict(sections(slug.inherited_hooks(base))) if slug else {}
    if not inherited:
        return hooks
    dropped = sorted(set(inherited) - set(commit.hooked))
    head = ''.join(f'Not here: {path}\n' for path in dropped).encode()
    own = [part for path, part in sections(hooks)
           if not _makes_same(git, commit, path, inherited.get(path))]
    return head + b''.join(own)


def _makes_same(git, commit, path, patch):
    """Whether a hook of another base has the same effect here as the
    commit."""
    if not patch:
        return False
    with tempfile.TemporaryDirectory() as top:
        index = Git(git.directory, os.path.join(top, 'index'))
        index('update-index', '--index-info',
              data=git.raw('ls-tree', commit.old, '--', path))
        try:
            index('apply', '--cached', '--whitespace=nowarn', '-', data=patch)
        except GitError:
            return False
        return index('rev-parse', ':' + path) == \
            git('rev-parse', f'{commit.new}:{path}')


def _write_or_remove(writer, path, data):
    if data:
        writer.write(path, data)
    else:
        writer.remove(path)


def _guess_tests(added):
    """A first list of tests for a new slug: the test programs it adds."""
    text = ''
    for path in sorted(added):
        for start, kind in _TESTS:
            if path.startswith(start) and path.endswith('-test.c' if kind ==
                                                        'qtest' else '.c'):
                text += f'{kind} {os.path.basename(path)[:-2]}\n'
    return text


def _write_order(writer, series, order):
    """Rewrite series/order only if slugs were added or moved, so that its
    comments otherwise stay where they are."""
    if order == [(slug.name, slug.bases) for slug in series.slugs]:
        return
    width = max(len(name) for name, _ in order)
    text = ('# The slugs in the order of their commits, one a line.  A name\n'
            '# of a base after it: the slug is for that base only.\n')
    for name, bases in order:
        text += f"{name:{width}}  {' '.join(bases)}".rstrip() + '\n'
    writer.write('series/order', text.encode())
