# SPDX-License-Identifier: GPL-2.0-or-later
"""git, independent of the user's own configuration.

Patches and commits that the tools make must be the same on every machine, so
neither the user's nor the system's configuration is read, and dates and names
are fixed."""

import os
import re
import subprocess

from .say import Fault

AUTHOR = ('Direct I/O maintainers', 'maintainers@direct-io.invalid')
DATE = '1700000000 +0000'


class GitError(Fault):
    """git failed; `said` is its output."""

    def __init__(self, argv, said):
        super().__init__(f"git {argv[0]}: {' | '.join(said.split(chr(10)))}")
        self.said = said


def environment(index=None):
    env = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}
    env.update(GIT_CONFIG_GLOBAL='/dev/null', GIT_CONFIG_NOSYSTEM='1',
               GIT_AUTHOR_NAME=AUTHOR[0], GIT_AUTHOR_EMAIL=AUTHOR[1],
               GIT_COMMITTER_NAME=AUTHOR[0], GIT_COMMITTER_EMAIL=AUTHOR[1],
               GIT_AUTHOR_DATE=DATE, GIT_COMMITTER_DATE=DATE, LC_ALL='C',
               GIT_ATTR_NOSYSTEM='1')
    if index:
        env['GIT_INDEX_FILE'] = index
    return env


class Git:
    """One repository; `index` names a separate index file."""

    def __init__(self, directory, index=None, options=()):
        self.directory = directory
        self._env = environment(index)
        self._options = ['-c', 'safe.directory=*', '-c', 'core.quotePath=off',
                         '-c', 'core.autocrlf=false', '-c', 'gc.auto=0',
                         *options]

    def raw(self, *argv, data=None):
        """The output, as bytes."""
        try:
            done = subprocess.run(['git', *self._options, *argv],
                                  cwd=self.directory, env=self._env,
                                  input=data, capture_output=True,
                                  stdin=None if data is not None
                                  else subprocess.DEVNULL)
        except FileNotFoundError as err:
            what = 'git' if err.filename == 'git' else self.directory
            raise Fault(f'there is no {what}') from None
        if done.returncode:
            raise GitError(argv, done.stderr.decode(errors='replace').strip())
        return done.stdout

    def __call__(self, *argv, data=None):
        """The output, as text without the last newline."""
        return self.raw(*argv, data=data).decode(errors='replace').rstrip('\n')

    def lines(self, *argv):
        """The output of a command with -z, as a list."""
        return [x for x in self.raw(*argv).decode(errors='replace').split('\0')
                if x]

    def commit_id(self, name):
        """The commit that `name` refers to, or None."""
        try:
            return self('rev-parse', '--verify', '--quiet',
                        name + '^{commit}')
        except GitError:
            return None

    def blob(self, commit, path):
        return self.raw('cat-file', 'blob', f'{commit}:{path}')

    def dirty(self):
        """The paths that differ from the commit."""
        out = self.lines('status', '--porcelain', '-z', '--no-renames')
        return [line[3:] for line in out]


# Options with which a diff has the same text on every machine
_STABLE = ('--no-color', '--no-ext-diff', '--no-textconv', '--no-renames',
           '-U3', '--diff-algorithm=myers', '--inter-hunk-context=0',
           '--src-prefix=a/', '--dst-prefix=b/', '--no-indent-heuristic')


def stable_diff(git, old, new, paths):
    """The differences in `paths` as a patch, or b''.  Lines with ids of blobs
    are left out: they would change with every point release of a base."""
    if not paths:
        return b''
    patch = git.raw('diff-tree', '-p', '-r', *_STABLE, old, new, '--',
                    *sorted(paths))
    keep = [line for line in patch.split(b'\n')
            if not line.startswith(b'index ')]
    return b'\n'.join(keep)


def patched_paths(patch):
    """The paths that a patch changes: {path: 'edit', 'create', 'delete' or
    'other'}."""
    result = {}
    path = None
    body = False
    for line in patch.decode(errors='replace').split('\n'):
        if line.startswith('diff --git a/'):
            half = (len(line) - len('diff --git ') - 1) // 2
            path = line[len('diff --git '):][:half][2:]
            result[path] = 'edit'
            body = False
        elif line.startswith('@@'):
            body = True
        elif body or path is None:
            continue
        elif line.startswith('new file'):
            result[path] = 'create'
        elif line.startswith('deleted file'):
            result[path] = 'delete'
        elif line.startswith(('old mode', 'rename ', 'copy ', 'GIT binary',
                              'Binary files')):
            result[path] = 'other'
    return result


def sections(patch):
    """Split a patch by file: [(path, patch of that file)]."""
    parts = re.split(rb'^(?=diff --git )', patch, flags=re.M)[1:]
    return [(re.match(rb'diff --git a/(\S+) ', p).group(1).decode(), p)
            for p in parts]
