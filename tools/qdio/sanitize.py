# SPDX-License-Identifier: GPL-2.0-or-later
"""`./run test --only sanitize`: runs the series under the compilers'
sanitizers, and its fuzz target.  Each needs its own build, next to the usual
one."""

import glob
import os
import shutil
import struct
import tempfile

from .build import EMULATOR, Build, built_from
from .config import log_path
from .say import read_log, step
from .suites import run_qtest, run_unit_tests, targets_of

# Sanitizers find errors at run time, so compiler warnings do not matter here;
# besides, the compiler gives different warnings with sanitizers
OPTIONS = ['--disable-werror']

# Without costly optimizations the emulator builds faster
ASAN_OPTIONS = ['--extra-cflags=-O1']

# The slugs that add code with threads, or objects passed between threads
TSAN_SLUGS = ('direct-queue', 'mapped-ram-pool', 'mapped-ram-lazy')
# The queue's sandbox test starts threads in a child process
TSAN = {'TSAN_OPTIONS': 'die_after_fork=0:exitcode=66'}

# A load that fails ends the process, by exit() in a coroutine that the end of a
# request has woken; so the request itself is never freed
SUPPRESSED = 'leak:thread_pool_submit_aio\n'

FUZZ_TARGET = 'tests/unit/fuzz-mapped-ram'
FUZZ_RUNS = 200000


def _variant(tree, kind, name, options, compiler='gcc'):
    return Build(tree.base, f'{tree.build}-{kind}', f'{tree.name}-{kind}',
                 [*OPTIONS, *options], compiler=compiler,
                 label=f'{tree.base.name} with {name}')


def run(tree, kind, tests, series, report):
    """Run the tests under one of the sanitizers that the base's file
    lists."""
    if kind == 'address':
        address(tree, tests, report)
    elif kind == 'address-unit':
        address(tree, [test for test in tests if test[0] == 'unit'], report)
    elif kind == 'thread':
        thread(tree, series, report)
    elif kind == 'fuzz':
        fuzz(tree, report)


def address(tree, tests, report):
    """Run the tests with ASan and UBSan."""
    has_qtests = any(kind == 'qtest' for kind, _ in tests)
    build = built_from(_variant(tree, 'asan', 'ASan and UBSan',
                                [*tree.base.asan, *ASAN_OPTIONS]),
                       [*([EMULATOR] if has_qtests else []), *_targets(tests)])
    with tempfile.TemporaryDirectory() as top:
        said = os.path.join(top, 'report')
        suppressions = os.path.join(top, 'suppressions')
        with open(suppressions, 'w') as f:
            f.write(SUPPRESSED)
        # The emulators' stderr is redirected.  GLib has no frame pointers, so
        # that only the slow way finds who called it.
        env = {'ASAN_OPTIONS': f'log_path={said}:fast_unwind_on_malloc=0',
               'LSAN_OPTIONS': f'suppressions={suppressions}',
               'UBSAN_OPTIONS': f'log_path={said}:halt_on_error=1:'
                                'print_stacktrace=1'}
        run_unit_tests(build, tests, report, env, filesystems=False)
        for kind, name in tests:
            if kind == 'qtest':
                run_qtest(build, name, report, variables=env)
        log = log_path(f'sanitizers-{build.name}')
        found = _collect(said, log)
    report(not found, f'sanitizers {build.label}: nothing to report', log=log)


def _collect(prefix, log):
    """Combine the reports in `log`.  Returns their number."""
    found = 0
    with open(log, 'w', encoding='utf-8') as out:
        for path in sorted(glob.glob(glob.escape(prefix) + '.*')):
            with open(path, errors='replace') as f:
                text = f.read()
            # Skip warnings about ASan's own limitations
            if 'ERROR: ' in text or 'runtime error: ' in text:
                out.write(text)
                found += 1
    return found


def thread(tree, series, report):
    """Test the queue, the extents and the lazy loader with TSan.  TSan does
    not see the kernel's writes to memory, and does not report them as races,
    because the kernel returns results in memory that no other thread
    accesses."""
    tests = [test for name in TSAN_SLUGS
             for test in series.slug(name).tests(tree.base.name)]
    build = built_from(_variant(tree, 'tsan', 'TSan', ['--enable-tsan']),
                       _targets(tests))
    run_unit_tests(build, tests, report, TSAN, filesystems=False)


def _targets(tests):
    return targets_of(None, [t for t in tests if t[0] != 'suite'])


def _seed(directory):
    """Write the initial inputs, which are correct headers because all
    differences are 0.  See tests/unit/fuzz-mapped-ram.c."""
    mib = 1 << 20
    for i, numbers in enumerate([(0x49, 128 * mib, 4096, 0),
                                 (0x49, 128 * mib, 4096, 129 * mib),
                                 (0, 65 * 4096, 4096, 1 << 40),
                                 (1 << 60, 1 << 60, 4096, 0)]):
        with open(os.path.join(directory, f'seed{i}'), 'wb') as f:
            f.write(struct.pack('<4Q', *numbers) + bytes(28 + 16))


def fuzz(tree, report):
    """Run the fuzz target for a fixed number of iterations."""
    name = f'fuzz {tree.base.name} {os.path.basename(FUZZ_TARGET)}'
    if not shutil.which('clang'):
        report.skip(name, "there is no 'clang' here, which has libFuzzer; "
                    'install the package clang')
        return
    build = built_from(_variant(tree, 'fuzz', 'libFuzzer',
                                [*tree.base.asan, '--enable-fuzzing'],
                                compiler='clang'), [FUZZ_TARGET])
    log = log_path(f'fuzz-{build.name}')
    with tempfile.TemporaryDirectory() as corpus:
        _seed(corpus)
        code = step(name, [os.path.join(build.directory, FUZZ_TARGET),
                           f'-runs={FUZZ_RUNS}', '-seed=1',
                           '-use_value_profile=1',
                           f'-artifact_prefix={log}-', corpus],
                    log, check=False, timeout=1800)
    done = f'Done {FUZZ_RUNS} runs' in read_log(log)
    report(code == 0 and done, f'{name}, {FUZZ_RUNS} runs', log=log)
