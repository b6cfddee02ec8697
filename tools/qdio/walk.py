# SPDX-License-Identifier: GPL-2.0-or-later
"""Check each commit alone: `./run walk`."""

import os
import re
import subprocess
import tempfile

from .apply import make_commits
from .bases import clone_beside
from .build import EMULATOR, Build
from .config import cache
from .emit import emit, takes
from .git import Git, environment
from .say import note
from .suites import run_unit_tests, run_suite, targets_of

# The repository's own MAINTAINERS covers our files; otherwise every patch
# would need a hook in the base's.  Since 10.2 the files are listed before the
# question.
_KNOWN = re.compile(r'added, moved or deleted file\(s\)(, does|:.*\n\nDoes) '
                    r'MAINTAINERS need updating\?', re.S)


def checkpatch(git, commit):
    """The complaints of the base's checkpatch.pl about a commit, as a list."""
    mail = git.raw('format-patch', '-1', '--stdout', '--no-signature', commit)
    done = subprocess.run(['perl', 'scripts/checkpatch.pl', '--quiet', '-'],
                          cwd=git.directory, input=mail, capture_output=True,
                          env=environment())
    text = (done.stdout + done.stderr).decode(errors='replace')
    blocks = re.split(r'\n(?=ERROR|WARNING)', text.strip())
    said = [b.strip() for b in blocks
            if b.startswith(('ERROR', 'WARNING')) and not _KNOWN.search(b)]
    if done.returncode and not blocks[0].startswith(('ERROR', 'WARNING')):
        said.append(text.strip() or f'exit code {done.returncode}')
    return said


def walk_patches(series, base, tree, report):
    """Check that `git am` accepts the emitted series and gives the same trees,
    and that checkpatch.pl accepts every commit."""
    commits = make_commits(series, base, tree.src, tree.base_commit())
    with tempfile.TemporaryDirectory(dir=os.path.join(cache(), 'trees')) as top:
        # The sender adds the real sign-off; checkpatch.pl requires one
        patches = emit(series, base, tree, os.path.join(top, 'patches'),
                       'Nobody <nobody@example.org>')
        git = takes(tree, patches, os.path.join(top, 'src'))
        ids = git('rev-list', '--reverse',
                  f'{tree.base_commit()}..HEAD').split()
        same = [git('rev-parse', c + '^{tree}') for c in ids] == \
            [git('rev-parse', c + '^{tree}') for _, c in commits]
        report(same and len(ids) == len(commits),
               f'emit {base}: git am takes {len(patches)} patches and makes '
               'the same trees')
        for (slug, _), one in zip(commits, ids):
            said = checkpatch(git, one)
            for text in said:
                note(f'{slug.name}: {text}')
            report(not said, f'checkpatch {base} {slug.name}')


def walk_builds(series, base, tree, report, only=None):
    """Build every commit, and run the tests that must pass from it on, in a
    separate tree that is moved from commit to commit."""
    directory = clone_beside(tree, 'walk')
    commits = make_commits(series, base.name, tree.src, tree.base_commit())
    git = Git(os.path.join(directory, 'src'))
    build = Build(base, os.path.join(directory, 'build'), tree.name + '-walk')
    tests = []
    for slug, commit in commits:
        tests += [t for t in slug.tests(base.name) if t not in tests]
        if only and slug.name not in only:
            continue
        git('checkout', '--quiet', '--force', '--detach', commit)
        note(f'walk {base.name}: {slug.name}')
        build.ninja([EMULATOR, *targets_of(build, tests)],
                    f'build {slug.name} on')
        report(True, f'build {base.name} at {slug.name}')
        run_unit_tests(build, tests, report)
        for kind, name in tests:
            if kind == 'suite':
                run_suite(build, name, report)
