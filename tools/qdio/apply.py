# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn the repository into commits: `./run apply`.

Commits are made outside the work tree, in a separate index, and the work tree
is then moved from its previous commit to the new tip.  So unchanged files keep
their times, and ninja rebuilds only what changed.  The same series always
gives the same commit ids, which also show whether there is anything to do."""

import os
import re
import shutil
import tempfile

from .config import ROOT
from .git import Git, GitError
from .say import Fault, note
from .series import Series, copy_series

TRAILER = re.compile(r'^Series-Id:[ \t]*(\S+)[ \t]*\n?', re.M)
APPLIED = 'refs/qdio/applied'
_TRAILER_LINE = re.compile(r'[A-Za-z][A-Za-z-]*: \S')


def with_trailer(message, name):
    """A slug's message as used in its commit."""
    message = message.rstrip('\n') + '\n'
    last = message.rstrip('\n').split('\n\n')[-1].split('\n')
    in_trailers = '\n\n' in message and all(map(_TRAILER_LINE.match, last))
    return f"{message}{'' if in_trailers else chr(10)}Series-Id: {name}\n"


def without_trailer(message):
    return TRAILER.sub('', message).rstrip('\n') + '\n'


def slug_of(message):
    """The slug that a commit message names, or None."""
    found = TRAILER.findall(message)
    return found[-1] if found else None


def signed_off(text, signoff):
    """A message with the Signed-off-by line of the person who sends the
    change."""
    line = f'Signed-off-by: {signoff}'
    lines = text.rstrip('\n').split('\n')
    if line in lines:
        return text
    ends = re.match(r'[A-Za-z-]+: ', lines[-1]) and len(lines) > 1
    return '\n'.join(lines + ([] if ends else ['']) + [line]) + '\n'


def make_commits(series, base, directory, start, trailer=True, signoff=None):
    """Make the series' commits for `base` on top of the commit `start`, in the
    repository in `directory`; `signoff`, 'NAME <ADDRESS>', is the person who
    sends them.  Returns [(slug, commit)]."""
    result = []
    parent = start
    with tempfile.TemporaryDirectory() as top:
        git = Git(directory, os.path.join(top, 'index'))
        git('read-tree', start)
        for slug in series.of(base):
            _stage_slug(git, series, slug, base)
            text = slug.message()
            if not text.strip():
                raise Fault(f'series/{slug.name}/message is missing or empty;'
                            ' write the subject and the reasons there')
            if signoff:
                text = signed_off(text, signoff)
            if trailer:
                text = with_trailer(text, slug.name)
            tree = git('write-tree')
            parent = git('commit-tree', tree, '-p', parent, '-F', '-',
                         data=text.encode())
            result.append((slug, parent))
    return result


def _stage_slug(git, series, slug, base):
    entries = []
    for path, where in slug.installs(base).items():
        mode, data = series.content(path)
        blob = git('hash-object', '-w', '--stdin', data=data)
        entries.append(f'{mode} {blob}\t{where}')
    if entries:
        git('update-index', '--add', '--index-info',
            data=('\n'.join(entries) + '\n').encode())
    hooks = slug.hooks(base)
    if hooks:
        try:
            git('apply', '--cached', '--whitespace=nowarn', '-', data=hooks)
        except GitError as err:
            said = err.said.replace('error: ', '').replace('\n', ' | ')
            version = git('show', ':VERSION')
            raise Fault(f'series/{slug.name}/hooks-{base}.patch does not '
                        f'apply to QEMU {version}: {said}; take a later point '
                        'release of the base, or correct the patch by hand '
                        'and apply again') \
                from None


def edits_in(git):
    """The edits made in an applied tree since it was applied, or None."""
    dirty = git.dirty()
    if dirty:
        return f"'{dirty[0]}' is changed"
    head = git.commit_id('HEAD')
    if head not in (git.commit_id(APPLIED), git.commit_id('base')):
        return 'it has commits of its own'
    return None


def _save_edits(git):
    """Keep the content of the work tree on a branch, and print its name."""
    git('add', '-A')
    kept = git('commit-tree', git('write-tree'), '-p', 'HEAD', '-m',
               'what was in the work tree')
    branch = 'kept/' + kept[:10]
    git('branch', '--force', branch, kept)
    note(f'edits in {git.directory} are kept there as the branch {branch}')


def apply(series, base, tree, edits='refuse'):
    """Bring an unpacked base to the series' tip.  Returns the commits.
    `edits`: what to do with edits made in the tree: 'refuse', 'keep' (on a
    branch) or 'discard'."""
    git = Git(tree.src)
    found = edits_in(git)
    if found and edits == 'refuse':
        raise Fault(f'{tree.src} has edits ({found}); take them over with '
                    f'"./run refresh {base}" or throw them away with '
                    f'"./run apply {base} --discard"')
    commits = make_commits(series, base, tree.src, tree.base_commit())
    tip = commits[-1][1] if commits else tree.base_commit()
    if found and edits == 'keep':
        _save_edits(git)
    if git.commit_id('HEAD') != tip or found:
        git('checkout', '--quiet', '--force', '-B', 'series', tip)
        if found:
            git('clean', '-fdq')
    set_applied(series.root, tree)
    return commits


def set_applied(root, tree):
    """Record that the tree's commits are the series in the repository `root`,
    which refresh compares them with."""
    Git(tree.src)('update-ref', APPLIED, 'HEAD')
    new = tree.record + '.new'
    for path in (new, tree.record):
        shutil.rmtree(path, ignore_errors=True)
    copy_series(root, new)
    os.rename(new, tree.record)


def applied_tree(tree):
    """The tree, fetched if needed, with this checkout's series applied."""
    with tree.locked():
        tree.ensure()
        apply(Series(ROOT), tree.base.name, tree)
    return tree
