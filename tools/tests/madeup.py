# SPDX-License-Identifier: GPL-2.0-or-later
"""A made-up repository with two tiny bases, which lets the tools' tests run
in seconds and without a network."""

import os
import shutil
import subprocess
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
TOOLS = os.path.dirname(HERE)
SIGNED = 'Signed-off-by: A Tester <tester@example.org>\n'

# A checkpatch.pl that complains about tabs, in the format of QEMU's
CHECKPATCH = r'''#!/usr/bin/perl
my $bad = 0;
while (<STDIN>) {
    if (/^\+[^+].*\t/) { print "ERROR: code indent should never use tabs\n"; $bad = 1; }
    if (/^new file mode/) { print "WARNING: added, moved or deleted file(s), does MAINTAINERS need updating?\n"; $bad = 1; }
}
exit $bad;
'''


def text(*lines):
    return ''.join(line + '\n' for line in lines)


def numbered(first, last):
    return text(*(f'line {n}' for n in range(first, last + 1)))


class MadeUp(unittest.TestCase):
    """Gives each test its own cache, and a repository in self.root with a
    series of three slugs on two bases."""

    def setUp(self):
        self.top = tempfile.mkdtemp(prefix='qdio-tests.')
        self.addCleanup(shutil.rmtree, self.top)
        self.root = os.path.join(self.top, 'repo')
        os.makedirs(self.root)
        run = os.path.join(os.path.dirname(TOOLS), 'run')
        shutil.copy(run, self.root)
        shutil.copytree(os.path.join(TOOLS, 'qdio'),
                        os.path.join(self.root, 'tools', 'qdio'),
                        ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copytree(os.path.join(TOOLS, 'hosts'),
                        os.path.join(self.root, 'tools', 'hosts'))
        for base, extra in (('1.0', 0), ('2.0', 30)):
            self.write(f'bases/{base}.conf', text(
                'package = madeup', 'suite = none', f'family = {base}',
                'configure = --nothing'))
            self.make_source(base, extra)
        self.make_series()
        self.git('init', '--quiet')
        self.git('add', '-A')
        self.git('commit', '--quiet', '-m', 'start')
        # The user who emits the series
        self.git('config', 'user.name', 'The User')
        self.git('config', 'user.email', 'u@example.org')

    # Files

    def path(self, *parts):
        return os.path.join(self.root, *parts)

    def write(self, path, content, top=None):
        full = os.path.join(top or self.root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, 'w', encoding='utf-8') as f:
            f.write(content)

    def read(self, path, top=None):
        with open(os.path.join(top or self.root, path),
                  encoding='utf-8') as f:
            return f.read()

    def source(self, base):
        return os.path.join(self.top, 'source-' + base)

    def make_source(self, base, extra):
        """Base 2.0 has more lines at the top, so its hooks differ."""
        where = self.source(base)
        self.write('VERSION', base + '.5\n', where)
        self.write('io/meson.build', numbered(1 - extra, 20), where)
        self.write('io/channel.c', numbered(1 - extra, 40), where)
        self.write('scripts/checkpatch.pl', CHECKPATCH, where)
        if extra:
            self.write('io/late.c', 'only here\n', where)

    def hook(self, path, line, added, base):
        """Return a patch that adds a line after `line N`."""
        start = line + (30 if base == '2.0' else 0)
        return text(f'diff --git a/{path} b/{path}', f'--- a/{path}',
                    f'+++ b/{path}', f'@@ -{start - 2},6 +{start - 2},7 @@ line {line - 3}',
                    f' line {line - 2}', f' line {line - 1}', f' line {line}',
                    f'+{added}', f' line {line + 1}', f' line {line + 2}',
                    f' line {line + 3}')

    def make_series(self):
        self.write('series/order', text('# a remark', 'first', 'only-one 1.0',
                                        'last'))
        self.write('series/cover', text('The series', 'What it is.'))
        self.write('series/README.md', text(
            '| slug | 1.0 | 2.0 | upstream |', '|---|---|---|---|',
            '| first | ours | adapted | nothing |',
            '| only-one | ours | - | has it |',
            '| last | ours | ours | nothing |'))
        for slug in ('first', 'only-one', 'last'):
            self.write(f'series/{slug}/message', text(
                f'io: the {slug} change', '', 'Reasons.', '') + SIGNED)
        self.write('series/first/files', text('include/io/queue.h',
                                              'io/queue.c'))
        self.write('io/queue.c', text('queue 1', 'queue 2', 'queue 3'))
        self.write('include/io/queue.h', 'header\n')
        for base in ('1.0', '2.0'):
            self.write(f'series/first/hooks-{base}.patch',
                       self.hook('io/meson.build', 10, 'queue', base))
            self.write(f'series/last/hooks-{base}.patch',
                       self.hook('io/channel.c', 20, 'use it', base))
        self.write('series/only-one/files', text('compat/1.0/io/late.c'))
        self.write('compat/1.0/io/late.c', 'what 2.0 has\n')

    # Commands

    def environment(self, **env):
        full = {k: v for k, v in os.environ.items()
                if not k.startswith(('GIT_', 'QDIO_'))}
        full.update(QDIO_CACHE=os.path.join(self.top, 'cache'),
                    QDIO_NEEDED_SPACE='1000', GIT_CONFIG_GLOBAL='/dev/null',
                    GIT_AUTHOR_NAME='T', GIT_AUTHOR_EMAIL='t@example.org',
                    GIT_COMMITTER_NAME='T',
                    GIT_COMMITTER_EMAIL='t@example.org')
        full.update(env)
        return full

    def run_it(self, *argv, code=0, **env):
        """Run `./run ARGV`; return (stdout, stderr)."""
        done = subprocess.run([self.path('run'), *argv], cwd=self.top,
                              env=self.environment(**env), text=True,
                              stdin=subprocess.DEVNULL, capture_output=True)
        self.assertEqual(done.returncode, code,
                         f'{argv}: {done.stdout}{done.stderr}')
        return done.stdout, done.stderr

    def on(self, command, base='1.0', *argv, **kw):
        """Run a command on one of the made-up bases."""
        return self.run_it(command, base, '--source', self.source(base),
                           *argv, **kw)

    def refused(self, *argv, says, code=2, **env):
        """Check that a command fails with one line that matches `says`."""
        out, err = self.run_it(*argv, code=code, **env)
        lines = [x for x in err.splitlines() if x.startswith('run: ')]
        self.assertEqual(len(lines), 1, err)
        self.assertRegex(lines[0], says)
        self.assertNotIn('Traceback', err)
        return lines[0]

    def git(self, *argv, where=None):
        done = subprocess.run(['git', *argv], cwd=where or self.root,
                              env=self.environment(), text=True,
                              capture_output=True)
        self.assertEqual(done.returncode, 0, f'{argv}: {done.stderr}')
        return done.stdout.strip()

    def applied(self, base='1.0'):
        """Apply the series; return the tree's directory."""
        self.on('apply', base)
        return self.run_it('base', base, '--source',
                           self.source(base))[0].strip()

    def changes(self):
        return self.git('status', '--porcelain')
