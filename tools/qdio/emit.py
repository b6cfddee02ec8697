# SPDX-License-Identifier: GPL-2.0-or-later
"""The series as mails for `git am`: `./run emit`."""

import glob
import os
import re
import shutil
import subprocess

from .apply import make_commits
from .config import ROOT
from .git import Git
from .say import Fault

COVER = 'cover-letter.txt'


def own_signoff():
    """'NAME <ADDRESS>' of the configured git user; there is no default."""
    def ask(key):
        done = subprocess.run(['git', 'config', key], capture_output=True,
                              text=True, cwd=ROOT)
        return done.stdout.strip()

    name, address = ask('user.name'), ask('user.email')
    if not name or not address:
        raise Fault("git does not know who you are: set user.name and "
                    "user.email, or use --signoff 'NAME <ADDRESS>'")
    return f'{name} <{address}>'


def check_signoff(text):
    if not re.match(r'[^<>\n]+ <[^<>@\s]+@[^<>\s]+>\Z', text):
        raise Fault(f"--signoff '{text}': write it as 'NAME <ADDRESS>'")
    return text


def emit(series, base, tree, directory, signoff=None):
    """Write the patches and a cover letter; `signoff` is the person who sends
    them.  Returns the patches' paths.

    The cover letter has a different suffix, because `git am` refuses mails
    without a patch and a user will run `git am DIR/*.patch`."""
    commits = make_commits(series, base, tree.src, tree.base_commit(),
                           trailer=False, signoff=signoff)
    if not commits:
        raise Fault(f'the series has no slugs for {base}; nothing to emit')
    os.makedirs(directory, exist_ok=True)
    _empty(series, directory)
    git = Git(tree.src)
    git('format-patch', '--quiet', '--cover-letter', '--no-signature',
        '--zero-commit', '--no-renames', '--subject-prefix',
        f'PATCH {base}', '-o', os.path.abspath(directory),
        f'{tree.base_commit()}..{commits[-1][1]}')
    patches = sorted(glob.glob(os.path.join(directory, '*.patch')))
    _cover(series, patches[0], os.path.join(directory, COVER))
    return patches[1:]


def _empty(series, directory):
    """Remove an earlier series of ours, but nothing else."""
    names = os.listdir(directory)
    strangers = [n for n in names if n != COVER and
                 not re.match(r'\d{4}-.*\.patch\Z', n)]
    if strangers:
        raise Fault(f"{directory} has other files, such as '{strangers[0]}'; "
                    'name an empty or a new directory with --output')
    if names and not _is_ours(series, os.path.join(directory, COVER)):
        raise Fault(f"{directory} has patches of another series, such as "
                    f"'{names[0]}'; name an empty or a new directory with "
                    '--output')
    for name in names:
        os.unlink(os.path.join(directory, name))


def _is_ours(series, path):
    """Whether a cover letter is the series' own, for any base."""
    try:
        with open(path, encoding='utf-8', errors='replace') as f:
            found = re.search(r'^Subject: \[PATCH \S+ 0+/\d+\] (.*)$',
                              f.read(), re.M)
    except FileNotFoundError:
        return False
    return bool(found) and found.group(1) == _cover_text(series)[0]


def _cover_text(series):
    """(subject, blurb) from series/cover."""
    try:
        with open(os.path.join(series.root, 'series', 'cover'),
                  encoding='utf-8') as f:
            subject, _, blurb = f.read().partition('\n')
    except FileNotFoundError:
        return 'Series', ''
    return subject, blurb.strip()


def _cover(series, draft, path):
    """Fill in the blanks that git leaves, from series/cover."""
    with open(draft, encoding='utf-8') as f:
        text = f.read()
    subject, blurb = _cover_text(series)
    text = text.replace('*** SUBJECT HERE ***', subject)
    text = text.replace('*** BLURB HERE ***', blurb)
    with open(path, 'w', encoding='utf-8') as f:
        f.write(text)
    os.unlink(draft)


def takes(tree, patches, directory):
    """Apply the patches with `git am` to the pristine base, in a new clone in
    `directory`.  Returns that clone's Git."""
    if os.path.exists(directory):
        shutil.rmtree(directory)
    Git(tree.src)('clone', '--quiet', '--shared', '--no-checkout', tree.src,
                  directory)
    git = Git(directory)
    git('checkout', '--quiet', '--detach', tree.base_commit())
    git('am', '--quiet', *[os.path.abspath(p) for p in patches])
    return git
