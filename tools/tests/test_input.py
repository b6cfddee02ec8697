# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad input gives one clear line and exit code 2."""

import os
import stat
import subprocess
import unittest

from madeup import TOOLS, MadeUp, text


class BadInput(MadeUp):
    def test_help(self):
        out, _ = self.run_it('help')
        for word in ('demo', 'test', 'refresh', '1.0, 2.0'):
            self.assertIn(word, out)
        self.assertEqual(self.run_it(code=2)[0], out)

    def test_unknown_command(self):
        self.refused('tset', says="no command 'tset'; './run help'")

    def test_unknown_option(self):
        self.refused('lint', '--fast', says='--fast.*help')

    def test_unknown_base(self):
        for command in ('apply', 'refresh', 'emit', 'walk', 'base'):
            self.refused(command, '3.1',
                         says="no base '3.1'; the bases are 1.0, 2.0")
        for command in ('build', 'where', 'test', 'demo'):
            self.refused(command, '--base', '3.1', says="no base '3.1'")

    def test_no_base(self):
        self.refused('apply', says='which base\\?.*1.0, 2.0')

    def test_unknown_part(self):
        self.refused('test', '--only', 'nits', says="no part 'nits'; --only")

    def test_time_limit(self):
        self.refused('test', '--only', 'lint', says="QDIO_MINUTES is 'soon'",
                     QDIO_MINUTES='soon')

    def test_long_paths_of_sockets(self):
        long = os.path.join(self.top, 'x' * 60)
        self.refused('test', '--base', '1.0', '--source', self.source('1.0'),
                     '--only', 'e2e', QDIO_CACHE=long,
                     says=f'^run: {long} is too long a path for sockets; set '
                     'QDIO_CACHE to one of at most 60 bytes$')
        done = subprocess.run(
            ['python3', '-m', 'e2e', '--qemu', '/bin/true', '--workdir', long],
            cwd=os.path.dirname(TOOLS), text=True, capture_output=True)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, f'--workdir: {long} is too long a path '
                         'for sockets; name one of at most 64 bytes$')

    def test_unknown_slug(self):
        self.refused('walk', '1.0', 'nix', '--source', self.source('1.0'),
                     says="no slug 'nix'")

    def test_not_built(self):
        self.refused('where', '--base', '1.0', code=1,
                     says='not built yet; run "./run build --base 1.0"')

    def test_install(self):
        def refused(*argv, says):
            self.refused('install', '--base', '1.0', '--source',
                         self.source('1.0'), *argv, says=says)

        refused(says='install where\\? --prefix DIR names')
        refused('--prefix', 'opt', says="--prefix opt: name a directory from")
        refused('--prefix', '/proc/opt',
                says='cannot make /proc/opt: .*name another --prefix')
        refused('--prefix', '/opt', '--destdir', '/proc/d',
                says='cannot make /proc/d/opt')

    def test_conf(self):
        self.write('bases/1.0.conf', 'colour = red\n')
        self.refused('apply', '1.0', says="bases/1.0.conf: cannot read "
                     "'colour = red'; write KEY")
        self.write('bases/1.0.conf', 'package = x\n')
        self.refused('apply', '1.0', says="lacks 'suite'")

    def test_order(self):
        self.write('series/order', 'Not/aSlug\n')
        self.on('base')
        self.refused('apply', '1.0', '--source', self.source('1.0'),
                     says="'Not/aSlug' is no name for a slug")

    # Sources

    def test_source_not_there(self):
        self.refused('apply', '1.0', '--source', '/nowhere',
                     says='--source /nowhere: there is no such')

    def test_source_of_something_else(self):
        where = os.path.join(self.top, 'else')
        self.write('README', 'x', where)
        self.refused('apply', '1.0', '--source', where,
                     says='no VERSION in it and 0 tarballs')

    def test_source_of_another_version(self):
        self.refused('apply', '1.0', '--source', self.source('2.0'),
                     says='has QEMU 2.0.5, but the base is 1.0; name a')

    def tarball(self, name):
        path = os.path.join(self.top, 'tarballs', name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        subprocess.run(['tar', '-cJf', path, '-C', self.top, 'source-1.0'],
                       check=True)
        return path

    def test_sources_are_all_the_same(self):
        """A directory, a tarball, a directory with a tarball and a checkout
        all give the same tree."""
        checkout = os.path.join(self.top, 'checkout')
        self.git('clone', '-q', self.applied(), checkout)
        self.git('checkout', '-q', 'origin/base', where=checkout)
        self.write('not-tracked', 'x', checkout)
        tarball = self.tarball('x-1.0.tar.xz')
        seen = set()
        for source in (self.source('1.0'), tarball, os.path.dirname(tarball),
                       checkout):
            tree = self.run_it('base', '1.0', '--source', source)[0].strip()
            seen.add(self.git('rev-parse', 'base^{tree}', where=tree))
        self.assertEqual(len(seen), 1)

    def test_broken_tarball(self):
        path = self.tarball('x-1.0.tar.xz')
        with open(path, 'r+b') as f:
            f.truncate(100)
        self.refused('apply', '1.0', '--source', path,
                     says='cannot unpack .*x-1.0.tar.xz')

    # The machine

    def test_no_space(self):
        self.refused('apply', '1.0', '--source', self.source('1.0'),
                     QDIO_NEEDED_SPACE=str(1 << 60),
                     says='GiB are free in .*make room, or set QDIO_CACHE')

    def test_cache_that_cannot_be_made(self):
        self.refused('apply', '1.0', '--source', self.source('1.0'),
                     QDIO_CACHE='/proc/nothing',
                     says='cannot use /proc/nothing: .*set QDIO_CACHE')

    def test_wrong_distribution(self):
        self.programs(**{'dpkg-query': 'echo'})
        self.refused('base', '1.0', QDIO_OS_RELEASE='fedora 41',
                     PATH=self.bin + ':/usr/bin:/bin',
                     says='this is fedora 41, but .*Debian 12')

    def test_all_that_is_missing_at_once(self):
        """On an unknown system, --no-install lists everything that is
        missing."""
        self.write('tools/hosts/needed.conf', text(
            'programs = sh no-such-program', 'modules = no-such-module',
            'headers = stdio.h no-such-header.h', 'python = no_such_python'))
        self.refused('build', '--base', '1.0', '--no-install', '--source',
                     self.source('1.0'), QDIO_OS_RELEASE='fedora 41',
                     says='lacks programs no-such-program; pkg-config modules '
                     'no-such-module; C headers no-such-header.h; Python '
                     'modules no_such_python; install')

    def programs(self, **scripts):
        """Create programs that come first in PATH."""
        self.bin = os.path.join(self.top, 'bin')
        for name, body in scripts.items():
            self.write(name, '#!/bin/sh\n' + body + '\n', self.bin)
            os.chmod(os.path.join(self.bin, name), 0o755)

    def test_no_network(self):
        self.programs(**{'apt-get': text(
            'case "$*" in',
            '*indextargets*) echo "Packages|a:b/|bookworm|" ;;',
            '*) echo "Err:1 a:b"; echo "  Could not connect to a:b"; '
            'echo "E: Failed to fetch"; exit 100 ;;', 'esac'),
            'dpkg-query': 'case "$*" in *Version*) echo 9 ;; '
                          '*) echo installed ;; esac'})
        _, err = self.run_it('base', '1.0', code=2,
                             PATH=self.bin + ':/usr/bin:/bin')
        self.assertRegex(err.splitlines()[-1],
                         "archive can't be reached; check the network, or "
                         'name a source tree of your own with --source DIR')

    def test_not_root(self):
        """For an ordinary user, the error lists what root must install.  The
        test changes the user with setpriv."""
        if os.geteuid() != 0:
            self.skipTest('only root can become somebody else')
        self.programs(**{'dpkg-query': 'echo not-installed'})
        os.chmod(self.top, 0o755)
        subprocess.run(['chmod', '-R', 'a+rX', self.top], check=True)
        cache = os.path.join(self.top, 'nobody')
        os.mkdir(cache)
        os.chmod(cache, stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
        done = subprocess.run(
            ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups',
             self.path('run'), 'base', '1.0'], cwd=self.top, text=True,
            capture_output=True, stdin=subprocess.DEVNULL,
            env=self.environment(QDIO_CACHE=cache, HOME=cache,
                                 QDIO_OS_RELEASE='debian 12',
                                 PATH=self.bin + ':/usr/bin:/bin'))
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertRegex(done.stderr, r'^run: packages are missing; as root, '
                         r'run.*apt-get install --no-install-recommends '
                         r'python3 .*build-essential ccache .*meson/bookworm-backports')
        self.assertEqual(done.stderr.count('\n'), 1)


if __name__ == '__main__':
    unittest.main()
