# SPDX-License-Identifier: GPL-2.0-or-later
"""`./run test`: everything that must pass before a change is accepted."""

import contextlib
import fcntl
import functools
import json
import os
import shutil
import sys
import tempfile

from . import fetch, fresh, leftovers, sanitize
from .apply import apply, make_commits
from .apt import install_needed
from .bases import Tree
from .build import EMULATOR, KVM, Build, built, built_from, \
    environment, for_machine, of_tree
from .clock import Clock
from .config import ROOT, base_names, cache, check_space, get_base, log_path
from .deb import check_package, make_package
from .host import demo_base
from .install import install
from .lint import Lint
from .refresh import refresh
from .report import Report
from .say import Failure, Fault, end_steps_at, side_by_side, step, tail
from .series import Series, copy_series
from .suites import IOTEST_PROGRAMS, SKIPPED, run_iotests, run_program, \
    run_qtest, run_suite, run_unit_tests, targets_of
from .walk import walk_patches

# The bases' own tests, which must still pass
OWN_TESTS = [('qtest', 'migration-test'), ('suite', 'qapi-schema'),
             ('suite', 'unit')]
# End-to-end tests that run in parallel for each CPU: they mostly wait; and at
# most, because each takes up to 1 GiB of memory
E2E_JOBS = 2
MOST_E2E_JOBS = 8
KVM_GET_API_VERSION = 0xae00
KVM_API = 12
# The parts that `./run test` selects, on the demo's base: those that find most
# for the time they take
QUICK = ('lint', 'tools', 'refresh', 'build', 'unit', 'qtest', 'e2e')


def time_limit():
    """The number of minutes in which the tests should end; 0 for no limit."""
    text = os.environ.get('QDIO_MINUTES', '0')
    if not text.isdecimal():
        raise Fault(f"QDIO_MINUTES is '{text}'; make it a number of minutes, "
                    'or 0 for no limit')
    return int(text)


def _check_socket_paths(parts):
    """A socket's path has at most 107 bytes, with up to 47 of them below the
    cache."""
    if {'e2e', 'machines', 'libvirt'} & set(parts) and \
            len(os.fsencode(cache())) > 60:
        raise Fault(f'{cache()} is too long a path for sockets; set QDIO_CACHE'
                    ' to one of at most 60 bytes')


def no_kvm():
    """Why KVM cannot be used, or ''."""
    try:
        with open(KVM, 'r+b', buffering=0) as f:
            version = fcntl.ioctl(f, KVM_GET_API_VERSION)
    except OSError as err:
        return err.strerror
    return '' if version == KVM_API else f'version {version} of its interface'


def available_memory():
    """In bytes."""
    with open('/proc/meminfo', encoding='ascii') as f:
        fields = dict(line.split(':') for line in f)
    return int(fields['MemAvailable'].split()[0]) << 10


def e2e_jobs():
    """How many end-to-end tests to run in parallel."""
    return max(1, min(E2E_JOBS * len(os.sched_getaffinity(0)), MOST_E2E_JOBS,
                      available_memory() >> 30))


class Tests:
    """The parts, in the order in which they run.  The first part that needs a
    shared prerequisite, such as a build, makes it."""

    # The minutes that each part takes on 2 cores, for one base or in total, if
    # the objects of the build are in ccache; `machines` and `sanitize`: for
    # each machine or sanitizer
    PARTS = {'lint': 0.2, 'tools': 1.5, 'refresh': 0.2, 'build': 3,
             'unit': 1.5, 'qtest': 2, 'e2e': 4, 'own': 3, 'iotests': 1,
             'libvirt': 1.5, 'demo': 1, 'machines': 1, 'fresh': 10,
             'patches': 0.3, 'bench': 1, 'deb': 2, 'sanitize': 4,
             'canary': 0.5}
    # The same for all end-to-end tests instead of a selection
    ALL_E2E = 10
    # Without these on the first base, a run does not pass
    ESSENTIAL = ('unit', 'qtest', 'e2e')
    # These take the same time for any number of bases
    ONCE = ('lint', 'tools', 'fresh', 'canary')
    # These need none of the others' builds and run in parallel with the parts
    # that follow `build`: both spend as much time waiting for disks, timers
    # and guests as computing
    BESIDE = ('fresh', 'patches', 'deb', 'sanitize', 'canary')

    def __init__(self, bases, source, clock, quick=False, every=False):
        """`every`: run each part also on bases that do not list it."""
        self.report = Report(self.ESSENTIAL)
        self.series = Series(ROOT)
        self.all_trees = [Tree(base, source) for base in bases]
        self._every = every
        self._broken = set()
        self._clock = clock
        self._quick = quick

    def prepare(self):
        """Fetch and apply; edits in a tree are saved separately and not
        tested."""
        for tree in self.all_trees:
            tree.ensure()
            apply(self.series, tree.base.name, tree, 'keep')

    def trees_of(self, part):
        """The trees on which a part runs."""
        return [t for t in self.all_trees if self._every or part in self.ONCE
                or not t.base.parts or part in t.base.parts]

    def minutes_of(self, part):
        if part in self.ONCE:
            return self.PARTS[part]
        return sum(self.minutes_on(part, t) for t in self.trees_of(part))

    def minutes_on(self, part, tree):
        if part in ('machines', 'sanitize'):
            return self.PARTS[part] * len(getattr(tree.base, part))
        if part == 'e2e' and not (tree.base.e2e or self._quick):
            return self.ALL_E2E
        return self.PARTS[part]

    def lanes(self, parts):
        """Split `parts` into those that run first, and two lists that run in
        parallel."""
        first = [p for p in parts if list(self.PARTS).index(p)
                 <= list(self.PARTS).index('build')]
        beside = [p for p in parts if p in self.BESIDE and p not in first]
        then = [p for p in parts if p not in first and p not in beside]
        return first, then, beside

    def _estimate(self, parts):
        first, then, beside = (sum(map(self.minutes_of, lane))
                               for lane in self.lanes(parts))
        return first + max(then, beside)

    def plan(self, parts):
        print('# QEMU ' + ', '.join(t.base.name for t in self.all_trees)
              + ': '
              + ', '.join(f'{p} {self.minutes_of(p):.1f}' for p in parts)
              + f'; about {self._estimate(parts):.0f} minutes on 2 cores, '
              'more if much must be compiled', flush=True)
        _, then, beside = self.lanes(parts)
        if then and beside:
            print('# side by side: ' + ', '.join(then) + ' and '
                  + ', '.join(beside), flush=True)

    def run(self, parts):
        parts = [p for p in self.PARTS if p in parts]
        self.plan(parts)
        self.report.expect(parts)
        first, then, beside = self.lanes(parts)
        self._run_lane(first)
        side_by_side([lambda: self._run_lane(then),
                      lambda: self._run_lane(beside)])
        return self.report.close()

    def _run_lane(self, parts):
        for part in parts:
            self.report.part(part, functools.partial(self._run_part, part),
                             f'{self._clock.spent():.0f} minutes so far')

    def _run_part(self, part):
        run, trees = getattr(self, 'part_' + part), self.trees_of(part)
        if part in self.ONCE:
            for _ in self._in_time([part], lambda _: self.PARTS[part], str):
                run(trees)
        elif part in ('machines', 'sanitize'):
            run(trees)
        else:
            run(self._trees_in_time(part, trees))

    def _trees_in_time(self, part, trees):
        return self._in_time(trees, functools.partial(self.minutes_on, part),
                             lambda tree: f'{part} {tree.base.name}',
                             trees[:1] if part in self.ESSENTIAL else ())

    def _in_time(self, items, minutes, name, essential=()):
        """Yield those of `items` for which there is time, and report the
        others.  `minutes` and `name` are functions of an item."""
        for item in items:
            # What was slow may have been the compiler
            if self._clock.enough_for(minutes(item), item in essential):
                with self._clock.work(minutes(item)):
                    yield item
                continue
            why = f'not enough of the {self._clock.limit} minutes of ' \
                'QDIO_MINUTES is left'
            if item in essential:
                self.report(False, f'{name(item)}: {why}')
            else:
                self.report.skip(name(item), why)

    # The repository

    def part_tools(self, _):
        env = dict(os.environ, PYTHONPATH=os.path.join(ROOT, 'tools'))
        for name in ('tools', 'lab', 'bench'):
            run_program(f'own tests of {name}/',
                        [sys.executable, '-m', 'qdio.tap',
                         os.path.join(ROOT, name, 'tests')],
                        log_path(name + '-tests'), self.report, env=env,
                        cwd=ROOT)

    def part_lint(self, trees):
        complaints = Lint(ROOT, trees).run()
        self.report(not complaints, 'lint', remarks=complaints)

    def part_refresh(self, trees):
        for tree in trees:
            self._refresh_is_identity(tree)

    def _refresh_is_identity(self, tree):
        base = tree.base.name
        commits = [c for _, c in make_commits(self.series, base, tree.src,
                                              tree.base_commit())]
        name = f'apply, refresh, apply {base} is the identity'
        if not commits:
            self.report.skip(name, 'no slugs')
            return
        with tempfile.TemporaryDirectory(dir=cache()) as copy:
            copy_series(ROOT, copy)
            changed = refresh(copy, base, tree.src,
                              f'{tree.base_commit()}..{commits[-1]}')
            changed = [p for p in changed if not _only_moved(copy, p)]
            again = [c for _, c in make_commits(Series(copy), base, tree.src,
                                                tree.base_commit())]
        self.report(not changed and again == commits, name,
                    remarks=[f'refresh changes {path}' for path in changed])

    def part_patches(self, trees):
        for tree in trees:
            if self.series.of(tree.base.name):
                walk_patches(self.series, tree.base.name, tree, self.report)

    # The builds

    def _tests(self, tree, kinds=('unit', 'qtest', 'suite')):
        """The series' tests on a base, without duplicates."""
        found = []
        for slug in self.series.of(tree.base.name):
            found += [t for t in slug.tests(tree.base.name)
                      if t not in found and t[0] in kinds]
        return found

    def _built(self, tree, tests=()):
        """The build with what `tests` need, or None if it failed; the failure
        is reported only once."""
        if tree.name in self._broken:
            return None
        build = of_tree(tree)
        try:
            return built(tree, [EMULATOR, *targets_of(build, tests)])
        except Failure as err:
            self._broken.add(tree.name)
            self.report(False, f'build {tree.base.name}: {err}', log=err.log)
            return None

    def _on_builds(self, name, trees, action, needs):
        for tree in trees:
            tests = needs(tree)
            if not tests:
                continue
            build = self._built(tree, tests)
            if build:
                action(build, tests)
            else:
                self.report.skip(f'{name} {tree.base.name}',
                                 'it could not be built')

    def part_build(self, trees):
        for tree in trees:
            if self._built(tree, self._tests(tree, ('unit', 'qtest'))):
                self.report(True, f'build {tree.base.name}')

    def part_unit(self, trees):
        def action(build, tests):
            run_unit_tests(build, tests, self.report)

        self._on_builds('unit tests', trees, action,
                        lambda tree: self._tests(tree, ('unit',)))

    def part_qtest(self, trees):
        def action(build, tests):
            for _, name in tests:
                run_qtest(build, name, self.report, filesystems=True)

        self._on_builds('qtests', trees, action,
                        lambda tree: self._tests(tree, ('qtest',)))

    def part_own(self, trees):
        def action(build, tests):
            for kind, name in tests:
                if kind == 'suite':
                    run_suite(build, name, self.report)
                else:
                    options = build.base.qtest_options
                    run_qtest(build, name, self.report,
                              options=options.get(name, ()))

        self._on_builds("the base's tests", trees, action,
                        lambda tree: OWN_TESTS)

    def part_sanitize(self, trees):
        for tree in trees:
            tests = self._tests(tree, ('unit', 'qtest'))
            for kind in self._in_time(tree.base.sanitize,
                                      lambda _: self.PARTS['sanitize'],
                                      f'{{}} {tree.base.name}'.format):
                sanitize.run(tree, kind, tests, self.series, self.report)

    def part_iotests(self, trees):
        for tree in trees:
            formats = tree.base.iotests
            if not formats:
                continue
            build = self._built(tree)
            if not build:
                self.report.skip(f'iotests {tree.base.name}',
                                 'it could not be built')
                continue
            build.ninja(IOTEST_PROGRAMS, 'build the tools of')
            for one in formats:
                run_iotests(build, one, self.report)

    # The whole

    def part_fresh(self, _):
        fresh.run(self.report)

    def part_e2e(self, trees):
        if not os.path.exists(os.path.join(ROOT, 'e2e', '__main__.py')):
            self.report.skip('end to end', 'there is no e2e here')
            return
        for tree in trees:
            build = self._built(tree)
            if not build:
                self.report.skip(f'end to end {tree.base.name}',
                                 'it could not be built')
                continue
            options = ['--quick'] if self._quick else tree.base.e2e
            others = list(filter(None, map(self._built, self._peers(tree))))
            self._e2e(build, others[0] if others else None, options=options)
            for other in others[1:]:
                self._e2e(build, other,
                          f'exchange of images with {other.base.name},',
                          f'e2e-{other.name}', [*options, '-k', 'interop:'])

    def _peers(self, tree):
        """The trees with which a tree's build exchanges images."""
        return [t for name in tree.base.exchange for t in self.all_trees
                if t.base.name == name]

    def _e2e(self, build, other, name='end to end', log='e2e', options=()):
        """`other`: the build to exchange images with, or None."""
        work = os.path.join(cache(), 'e2e')
        env = dict(environment(), PYTHONPATH=ROOT,
                   PYTHONDONTWRITEBYTECODE='1')
        run_program(
            f'{name} {build.base.name}',
            [sys.executable, '-m', 'e2e', *options, '--qemu', build.emulator,
             '--jobs', str(e2e_jobs()),
             '--firmware', ':'.join(fetch.firmware_directories()),
             '--stock', fetch.stock_emulator(),
             '--stock-lib', fetch.stock_libraries(),
             '--kernel', fetch.kernel_image(), '--busybox', fetch.busybox(),
             '--workdir', work,
             *(['--other', other.emulator] if other else [])],
            log_path(f'{log}-{build.name}'), self.report, env=env, cwd=ROOT,
            timeout=7200)

    def part_machines(self, trees):
        """Test guests on KVM and of another target, with separate builds: if
        the usual ones had KVM, the bases' own tests would use it where
        available, and results would differ between hosts."""
        if any('aarch64' in tree.base.machines for tree in trees):
            install_needed(('binutils-aarch64-linux-gnu',))
        for tree in trees:
            for machine in self._in_time(tree.base.machines,
                                         lambda _: self.PARTS['machines'],
                                         f'{{}} {tree.base.name}'.format):
                name = f'{machine} {tree.base.name}'
                if machine == 'kvm' and no_kvm():
                    self.report.skip(name, f'{KVM}: {no_kvm()}')
                elif not self._built(tree):
                    self.report.skip(name, 'it could not be built')
                else:
                    self._machine(tree, machine)

    def _machine(self, tree, machine):
        build = for_machine(tree, machine)
        self._e2e(built_from(build, [build.program]), None, machine, machine,
                  ['--machine', machine])

    def part_libvirt(self, trees):
        """Test virsh save and restore with a real libvirt."""
        for tree in trees:
            build = self._built(tree)
            if build:
                self._e2e(build, None, 'libvirt', 'libvirt',
                          ['--libvirt', fetch.libvirt(),
                           *tree.base.e2e])
            else:
                self.report.skip(f'libvirt {tree.base.name}',
                                 'it could not be built')

    def part_bench(self, trees):
        """Run the benchmark with small guests; the speed does not matter."""
        for tree in trees:
            if not tree.base.bench:
                continue
            build = self._built(tree)
            if not build or os.geteuid():
                self.report.skip(f'benchmark {tree.base.name}',
                                 'it needs root' if build else
                                 'it could not be built')
                continue
            self._bench(build)

    def _bench(self, build):
        log = log_path(f'bench-{build.name}')
        with tempfile.TemporaryDirectory(dir=cache()) as where:
            argv = [os.path.join(ROOT, 'run'), 'bench', 'random', 'slow',
                    '--emulator', build.emulator, '--ram', '32',
                    '--rounds', '1', '--channels', '2', '--engines', 'auto',
                    '--sides', 'ours,fio,exec', '--any-load', '--dir', where,
                    '--json', where + '/results.json', '--pictures', where]
            code = step(f'benchmark {build.base.name}', argv, log,
                        check=False, timeout=1800)
            drawn = os.path.exists(where + '/throughput.svg')
            ours = code == 0 and has_ours(where + '/results.json')
        self.report(drawn and ours, f'benchmark {build.base.name}', log=log)

    def part_demo(self, trees):
        """Run the demo with each emulator as installed by `./run install`."""
        for tree in trees:
            if not self._built(tree):
                self.report.skip(f'demo {tree.base.name}',
                                 'it could not be built')
                continue
            with tempfile.TemporaryDirectory(dir=cache()) as prefix:
                self._demo(tree, install(tree, prefix))

    def _demo(self, tree, emulator):
        log = log_path(f'demo-{tree.name}')
        code = step(f'demo {tree.base.name}',
                    [os.path.join(ROOT, 'run'), 'demo', '--emulator',
                     emulator], log, check=False, timeout=3600)
        self.report(code == 0, f'install and demo {tree.base.name}', log=log)


    def part_deb(self, trees):
        for tree in trees:
            if self.series.of(tree.base.name):
                self._deb(tree)

    def _deb(self, tree):
        """Check that the package from ./run deb unpacks to the applied tree
        and builds: only the emulator, because a full package build takes hours
        and needs some hundred packages."""
        base = tree.base.name
        directory = os.path.join(cache(), 'trees', tree.name + '-deb')
        src = os.path.join(directory, 'src')
        shutil.rmtree(src, ignore_errors=True)
        os.makedirs(directory, exist_ok=True)
        tip = make_commits(self.series, base, tree.src,
                           tree.base_commit())[-1][1]
        with tempfile.TemporaryDirectory(dir=directory) as output:
            _, dsc = make_package(self.series, tree, output)
            differs = check_package(tree, tip, dsc, src)
        self.report(not differs, f'deb {base}: dpkg-source -x makes the '
                    'applied tree',
                    remarks=[f'{path} differs' for path in differs[:10]])
        # Without a .git, configure would omit -Werror, and ccache would find
        # nothing
        build = Build(tree.base, os.path.join(directory, 'build'),
                      tree.name + '-deb', ['--enable-werror'])
        build.ninja([EMULATOR], 'build the package of')
        self.report(True, f'deb {base}: its emulator builds')


    def part_canary(self, _):
        """Run the canary.  Work that the next version line will require does
        not count as a failure."""
        log = log_path('canary')
        code = step('canary', [os.path.join(ROOT, 'run'), 'canary'], log,
                    check=False, timeout=1800)
        if code == SKIPPED:
            self.report.skip('canary', tail(log, 1))
            return
        self.report(code == 0, 'canary', log=log,
                    remarks=tail(log, 100).splitlines())


def has_ours(path):
    """Whether the benchmark's results in a file have a run of ours with direct
    I/O."""
    with open(path, encoding='utf-8') as f:
        sessions = json.load(f)['sessions']
    return any(run['facts']['program'] == 'ours' and run['facts']['direct']
               for session in sessions for run in session['runs'])


def _only_moved(copy, path):
    """Whether a patch differs only in line numbers, which happens when a point
    release of a base moves lines."""
    if not path.endswith('.patch'):
        return False

    def text(root):
        with contextlib.suppress(OSError), \
                open(os.path.join(root, path), 'rb') as f:
            return [x.split(b'@@')[-1] if x.startswith(b'@@') else x
                    for x in f.read().split(b'\n')]

    return text(copy) == text(ROOT)


def _check_parts(base):
    for part in base.parts:
        if part not in Tests.PARTS:
            raise Fault(f"bases/{base.name}.conf: there is no part '{part}'; "
                        f"parts takes some of {', '.join(Tests.PARTS)}")


def main(args):
    if args.list:
        print('\n'.join(Tests.PARTS))
        return 0
    chosen = args.only or (Tests.PARTS if args.all else QUICK)
    parts = [p for word in chosen for p in word.split(',')]
    for part in parts:
        if part not in Tests.PARTS:
            raise Fault(f"there is no part '{part}'; --only takes one of "
                        f"{', '.join(Tests.PARTS)}")
    name = args.base or args.base_option
    if args.source and not name:
        raise Fault('--source needs a --base that says which one it is')
    _check_socket_paths(parts)
    clock = Clock(time_limit())
    end_steps_at(clock.end)
    quick = not args.all and not args.only
    # The demo's base comes first, in case there is no time for the others
    names = [name] if name else [demo_base()] if quick else \
        sorted(base_names(), key=lambda n: n != demo_base())
    bases = [get_base(n) for n in names]
    for base in bases:
        _check_parts(base)
    leftovers.remove()
    check_space()
    install_needed()
    tests = Tests(bases, args.source, clock, quick, every=bool(args.only))
    with contextlib.ExitStack() as locks:
        for tree in tests.all_trees:
            locks.enter_context(tree.locked())
        tests.prepare()
        return tests.run(parts)
