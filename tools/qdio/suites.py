# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the tests of a build: unit programs, qtests, meson's suites."""

import os
import re
import shutil
import sys

from . import build as building
from .config import ROOT, log_path
from .say import Failure, Late, read_log, step, tail

SKIPPED = 77            # the exit code that means "skipped" to test harnesses
_PLAN = re.compile(r'^1\.\.(\d+)', re.M)
_ABSENT = re.compile(r'^with-filesystems: (no .*)', re.M)
_CASE = re.compile(r'^(not )?ok\b[^#\n]*(# *SKIP)?', re.M | re.I)


def targets_of(build, tests):
    """What ninja must build to run `tests`."""
    targets = [f'tests/{kind}/{name}' for kind, name in tests
               if kind in ('unit', 'qtest')]
    suites = [name for kind, name in tests if kind == 'suite']
    if suites:
        build.configure()
        targets += suite_targets(build, suites)
    return targets


def suite_targets(build, suites):
    """The files that the tests of the given meson suites need.  `meson test`
    would build everything."""
    files = {}
    for target in build.introspect('targets'):
        files[target['id']] = target['filename']
    needed = set()
    for test in build.introspect('tests'):
        if any(s.split(':')[-1] in suites for s in test['suite']):
            for one in test['depends']:
                needed.update(files.get(one, ()))
    return sorted(os.path.relpath(f, build.directory) for f in needed)


def count_cases(log):
    """(passed, failed, skipped) from the TAP output in a log."""
    found = _CASE.findall(read_log(log))
    failed = sum(1 for no, _ in found if no)
    skipped = sum(1 for no, skip in found if skip and not no)
    return len(found) - failed - skipped, failed, skipped


def planned_cases(log):
    """How many cases a program meant to run; None if it did not tell."""
    found = _PLAN.search(read_log(log))
    return int(found[1]) if found else None


def absent_filesystems(log):
    """What tools/with-filesystems could not make, with the reasons."""
    return _ABSENT.findall(read_log(log))


def _report_unfinished(report, err, failed):
    """Report a test program that did not end by itself.  If the time was over,
    that is no failure, unless one of its cases has `failed` before."""
    if isinstance(err, Late) and not failed:
        report.late(err)
    else:
        report(False, str(err), log=err.log)


def run_program(name, argv, log, report, env=None, cwd=None, timeout=2400,
                filesystems=False):
    """Run one test program that writes TAP, with real file systems if it uses
    them, and count its cases."""
    def run(wrapper):
        return step(name, [*wrapper, *argv], log, cwd=cwd, env=env,
                    check=False, timeout=timeout)

    wrapper = os.path.join(ROOT, 'tools', 'with-filesystems')
    try:
        code = run([wrapper]) if filesystems else SKIPPED
        if filesystems and code == SKIPPED:
            report.skip(f'{name}: on file systems of its own', tail(log, 1))
        if code == SKIPPED:
            code = run([])
    except Failure as err:
        _report_unfinished(report, err, count_cases(log)[1])
        return
    passed, failed, skipped = count_cases(log)
    ran, planned = passed + failed + skipped, planned_cases(log)
    if code == 0 and passed + skipped == 0:
        report(False, f'{name}: it ran nothing; see {log}')
    elif code == 0 and not failed and planned not in (None, ran):
        report(False, name, count=(passed, 1, skipped), log=log,
               remarks=[f'{ran} of {planned} planned cases ran'])
    else:
        report(code == 0 and not failed, name, count=(passed, failed, skipped),
               log=log)
    if filesystems:
        for what in absent_filesystems(log):
            report.skip(f'{name}: on one file system', what)


def unit_tests(tests):
    return [name for kind, name in tests if kind == 'unit']


def run_unit_tests(build, tests, report, variables=None, filesystems=True):
    env = dict(
        building.environment(), **(variables or {}),
        G_TEST_BUILDDIR=os.path.join(build.directory, 'tests', 'unit'),
        G_TEST_SRCDIR=os.path.join(os.path.dirname(build.directory), 'src',
                                   'tests', 'unit'))
    for name in unit_tests(tests):
        run_program(f'unit {build.label} {name}',
                    [os.path.join(build.directory, 'tests', 'unit', name),
                     '--tap', '-k'],
                    log_path(f'unit-{build.name}-{name}'), report, env=env,
                    cwd=build.directory, filesystems=filesystems)


def run_qtest(build, name, report, filesystems=False, variables=None,
              options=()):
    """Run one program of tests/qtest with the built emulator."""
    env = dict(building.environment(), QTEST_QEMU_BINARY=build.emulator,
               **(variables or {}))
    run_program(f'qtest {build.label} {name}',
                [os.path.join(build.directory, 'tests', 'qtest', name),
                 *options, '--tap', '-k'],
                log_path(f'qtest-{build.name}-{name}'), report, env=env,
                cwd=build.directory, timeout=2400, filesystems=filesystems)


# Programs that the iotests need besides the emulator
IOTEST_PROGRAMS = ('qemu-img', 'qemu-io', 'qemu-nbd',
                   'storage-daemon/qemu-storage-daemon')


# Compares durations, which are unpredictable on a busy machine
UNSTEADY_IOTESTS = {'migrate-bitmaps-postcopy-test'}


def migrating_iotests(directory):
    """The names of the base's iotests, in its tests/qemu-iotests, that
    migrate, or save and load snapshots."""
    found = []
    for where in (directory, os.path.join(directory, 'tests')):
        for entry in os.scandir(where):
            if entry.name in UNSTEADY_IOTESTS or '.' in entry.name or \
                    not entry.is_file():
                continue
            with open(entry.path, errors='replace') as f:
                text = f.read()
            if re.search(r'^# group: ', text, re.M) and \
                    re.search(r'migrat|savevm|loadvm', text):
                found.append(entry.name)
    return sorted(found)


def run_iotests(build, image_format, report):
    """Run those of the base's iotests that migrate, with one image format."""
    name = f'iotests {build.base.name} {image_format}'
    src = os.path.join(os.path.dirname(build.directory), 'src', 'tests',
                       'qemu-iotests')
    where = os.path.join(build.directory, 'tests', 'qemu-iotests')
    # Files left by an interrupted test make it fail the next time
    scratch = os.path.join(where, 'scratch')
    shutil.rmtree(scratch, ignore_errors=True)
    run_program(name, [sys.executable, 'check', f'-{image_format}', '-tap',
                       *migrating_iotests(src)],
                log_path(f'iotests-{build.name}-{image_format}'), report,
                env=dict(building.environment(), TEST_DIR=scratch),
                timeout=1800,
                cwd=where)


def run_suite(build, suite, report):
    """Run one of meson's suites, such as unit or qapi-schema."""
    name = f'suite {build.base.name} {suite}'
    log = log_path(f'suite-{build.name}-{suite}')
    try:
        code = step(name, ['meson', 'test', '--no-rebuild', '--suite', suite,
                           '--print-errorlogs', '-t', '5'],
                    log, cwd=build.directory, env=building.environment(),
                    check=False, timeout=3600)
    except Late as err:
        _report_unfinished(report, err, re.search(
            r'\b(FAIL|TIMEOUT|ERROR)\b', read_log(log)))
        return
    text = read_log(log)

    def number(word):
        found = re.search(rf'^{word}:\s+(\d+)', text, re.M)
        return int(found.group(1)) if found else 0

    passed = number('Ok') + number('Expected Fail')
    failed = number('Fail') + number('Timeout') + number('Unexpected Pass')
    report(code == 0 and passed > 0 and not failed, name,
           count=(passed, failed, number('Skipped')), log=log)
