# SPDX-License-Identifier: GPL-2.0-or-later
"""Collects tests and runs each in a separate process, with a time limit, and
cleans up after it."""

import contextlib
import copy
import ctypes
import os
import re
import shutil
import signal
import sys
import time
import traceback

from lab import fs
from lab.guest import configure_checker
from lab.vm import VM, Mode

TESTS = []


class Skip(Exception):
    """The test cannot run here; the message gives the reason."""


def test(name, quick=False, timeout=120, stock=None):
    """Registers a function as a test.

    quick       whether the test belongs to the short run
    timeout     in seconds, generous
    stock       if stock QEMU is known to fail the test: a regular expression
                that matches the reason.  A second test then requires this
                failure.  It shows when stock is fixed, and that the test can
                fail.
    """
    def register(function):
        TESTS.append((name, function, quick, timeout))
        if stock:
            TESTS.append((f'stock fails: {name}', _fails(function, stock),
                          False, timeout))
        return function
    return register


def _fails(function, reason):
    """Returns a test that requires `function` to fail with stock QEMU."""
    def run(t):
        if not t.config.stock:
            raise Skip('no stock QEMU: give --stock')
        try:
            function(t.on_stock())
        except Skip:
            raise
        except Exception as err:
            said = f'{type(err).__name__}: {err}'
            if not re.search(reason, said):
                raise AssertionError(f'stock QEMU fails in another way, not '
                                     f'with "{reason}": {said}') from None
            t.note(f'stock: {said[:200]}')
        else:
            raise AssertionError('stock QEMU no longer fails this; take '
                                 '"stock=" out of the test')
    return run


class Config:
    """The settings from the command line."""

    def __init__(self, ours, other, stock, kernel, busybox, rom, workdir,
                 quick, all_modes, jobs=1):
        self.ours = ours
        self.other = other
        self.stock = stock
        self.kernel = kernel
        self.busybox = busybox
        self.rom = rom
        self.workdir = workdir
        self.quick = quick
        self.all_modes = all_modes
        self.jobs = jobs                    # tests that run in parallel
        # The machine under test in e2e/machines
        self.machine = None
        # The root of libvirt's packages, for the tests that need them
        self.libvirt = None
        # Why nothing can be mounted, or empty
        self.no_mounts = ''


class Context:
    """The argument of each test: the configuration, a directory, and methods
    that create objects which are removed at the end of the test."""

    def __init__(self, config, directory, stack, releases):
        self.config = config
        self.dir = directory
        self.stack = stack
        # Callbacks that release held I/O before the stack is unwound: a
        # process cannot exit while a FUSE server holds one of its requests
        self.releases = releases
        self.count = 0

    def on_stock(self):
        """Returns a copy that tests stock QEMU instead of ours.  It sets
        `quick`, because the first failure is enough."""
        other = copy.copy(self)
        other.config = copy.copy(self.config)
        other.config.ours = self.config.stock
        other.config.quick = True
        return other

    def note(self, text):
        """Adds a note to the test's result."""
        print('# ' + text, flush=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def checker(self, **config):
        """Returns the path of the self-checking guest."""
        name = '-'.join(f'{k}{v}' for k, v in sorted(config.items()))
        target = self.path(f'guest-{name}.rom')
        if not os.path.exists(target):
            configure_checker(self.config.rom, target, **config)
        return target

    def vm(self, name=None, emulator=None, guest=None, incoming=False,
           **kwargs):
        """Starts a virtual machine.  `guest` is a dict of checker()'s
        arguments, the name of a firmware file, or False to use none of
        ours."""
        self.count += 1
        name = f'{name or ("dst" if incoming else "src")}{self.count}'
        if guest is not False and not isinstance(guest, str):
            guest = self.checker(**(guest or {}))
        vm = VM(emulator or self.config.ours, self.dir, name,
                firmware=guest or None, incoming=incoming, **kwargs)
        self.stack.callback(vm.kill)
        return vm

    @contextlib.contextmanager
    def part(self, name):
        """A test within this one, with a directory and machines of its own,
        which go away at its end."""
        with contextlib.ExitStack() as stack:
            part = type(self)(self.config, self.path(name), stack,
                              self.releases)
            os.mkdir(part.dir)
            yield part

    def source(self, ready=True, **kwargs):
        """Starts a virtual machine whose guest has filled its memory."""
        vm = self.vm(**kwargs)
        if ready:
            vm.wait_guest('tick', 2)
        return vm

    def filesystem(self, kind, size, name=None, **kwargs):
        directory = self.path(name or kind)
        return self._enter(fs.mounted(kind, directory, size, **kwargs))

    def _enter(self, context):
        """Enters a context that needs root."""
        self.need_root()
        try:
            return self.stack.enter_context(context)
        except fs.Missing as err:
            raise Skip(str(err)) from None

    def modes(self, directory, modes):
        """Those of the modes that are possible in this directory, which must
        not be full: before Linux 6.6, tmpfs has no O_DIRECT."""
        if fs.takes_direct(directory):
            return list(modes)
        self.note(f'no O_DIRECT in {directory}: tested without')
        return [mode for mode in modes if not mode.direct]

    def loop(self, path, size=None, sector_size=512):
        if size is not None:
            with open(path, 'ab') as f:
                f.truncate(size)
        return self._enter(fs.loop(path, sector_size))

    def open(self, path, flags, mode=0o600):
        fd = os.open(path, flags, mode)
        self.stack.callback(os.close, fd)
        return fd

    def need_root(self):
        if self.config.no_mounts:
            raise Skip('needs root, to mount file systems: '
                       + self.config.no_mounts)

    def saved(self, path, mode, source=None, **kwargs):
        """Saves a guest, or the guest of `source`; returns the hash of its
        RAM."""
        src = source or self.source(**kwargs)
        src.save(f'file:{path}', mode)
        want = src.ram_hash()
        src.kill()
        return want

    def restores(self, uri, want_hash, mode=None, emulator=None, **kwargs):
        """Restores from `uri`; checks that RAM is unchanged, that the guest
        continues, and that it finds no error in its memory."""
        dst = self.vm(incoming=True, emulator=emulator, **kwargs)
        dst.load(uri, mode or Mode())
        have = dst.ram_hash()
        if want_hash and have != want_hash:
            raise AssertionError('restored RAM is not what was saved')
        dst.command('cont')
        dst.ticks_on()
        dst.wait_guest('sweep')
        return dst


class _Terminated(BaseException):
    """The time limit was reached.  It is no Exception, so that a test that
    expects one does not take it for that."""


def _limit(config, entry):
    """The seconds that a test may take.  Parallel tests compete for CPU time,
    as does what else runs on the machine, also beside a single test."""
    return entry[3] * max(config.jobs, 4)


def _why_no_mounts():
    """Gives the test mounts of its own; returns why it cannot, or ''."""
    if os.getuid():
        return 'the user is not root'
    try:
        fs.private_mounts()
    except OSError as err:
        return str(err)
    return ''


def _child(config, entry, directory):
    """Runs one test and reports through the exit code: 0 passed, 1 failed, 77
    skipped; the reason is in the file 'reason'."""
    function = entry[1]
    ended = []

    def on_signal(number, _):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ended.append('interrupted' if number == signal.SIGINT else
                     f'still not done after {_limit(config, entry)} s')
        raise _Terminated(ended[0])

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    code, reason = 0, ''
    try:
        config.no_mounts = _why_no_mounts()
        with contextlib.ExitStack() as stack, \
                contextlib.ExitStack() as releases:
            function(Context(config, directory, stack, releases))
    except Skip as err:
        code, reason = 77, str(err)
    except BaseException as err:            # every exception is a result
        code = 1
        kind = type(err).__name__
        reason = str(err) if kind in ('AssertionError', '_Terminated') \
            else f'{kind}: {err}'
        if ended and kind != '_Terminated':     # cleaning up failed, too
            reason = f'{ended[0]}, then {reason}'
        where = [f for f in traceback.extract_tb(err.__traceback__)
                 if os.path.basename(f.filename).startswith('test_')]
        if where:
            reason += f' [{os.path.basename(where[-1].filename)}:' \
                      f'{where[-1].lineno}]'
    with open(os.path.join(directory, 'reason'), 'w') as f:
        f.write(' '.join(reason.split()))
    return code


def clean(directory):
    """Removes what a killed test may have left."""
    fs.detach_below(directory)
    shutil.rmtree(directory, ignore_errors=True)


class _Job:
    """A test that runs in a separate process, with its output in a file, so
    that the output of parallel tests is not interleaved."""

    def __init__(self, config, number, entry):
        self.config = config
        self.entry = entry
        self.start = time.monotonic()
        self.directory = os.path.join(config.workdir, f't{number}')
        shutil.rmtree(self.directory, ignore_errors=True)
        os.makedirs(self.directory)
        self.output = os.path.join(self.directory, 'output')
        self._deadline = self.start + _limit(config, entry)
        self._signals = [(signal.SIGTERM, 60), (signal.SIGKILL, 30)]
        self._died = 'the test died'            # if it gives no reason
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be_the_test()

    def _be_the_test(self):
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)      # PR_SET_PDEATHSIG
        code = 1
        try:
            fd = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                         0o600)
            os.dup2(fd, 1)
            os.close(fd)
            code = _child(self.config, self.entry, self.directory)
            sys.stdout.flush()
        finally:
            os._exit(code)

    def poll(self):
        """The exit code, or None while the test runs.  A test that exceeds its
        time limit is terminated, then killed."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > self._deadline:
            self._died = 'still not done after ' \
                         f'{_limit(self.config, self.entry)} s, and killed'
            if not self._signals:
                return 1
            self.end(*self._signals.pop(0))
        return None

    def end(self, number, patience):
        self._deadline = time.monotonic() + patience
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(self.pid,
                                                                 number)

    def wait(self):
        while self.poll() is None:
            time.sleep(0.02)

    def read(self, name):
        try:
            with open(os.path.join(self.directory, name),
                      errors='replace') as f:
                return f.read()
        except OSError:
            return ''

    def close(self, keep):
        """Returns the test's output and the reason for its result."""
        output, reason = self.read('output'), self.read('reason')
        if not keep:
            clean(self.directory)
        return output, reason or self._died


def selected(pattern, quick):
    return [entry for entry in TESTS
            if (entry[2] or not quick) and
            (not pattern or re.search(pattern, entry[0]))]


class _Results:
    """Prints a line of TAP for each test, and counts."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def __call__(self, job, code, output, reason):
        number = self.passed + self.failed + self.skipped + 1
        name = job.entry[0]
        took = f' ({time.monotonic() - job.start:.1f} s)'
        if code == 0:
            self.passed += 1
            line = f'ok {number} - {name}{took}'
        elif code == 77:
            self.skipped += 1
            line = f'ok {number} - {name} # SKIP {reason}'
        else:
            self.failed += 1
            line = f'not ok {number} - {name}{took}: {reason}'
        print(output + line, flush=True)


def run_all(config, pattern, keep=False):
    """Runs the selected tests, config.jobs of them in parallel; returns how
    many failed."""
    tests = selected(pattern, config.quick)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    results = _Results()
    running = []
    # The longest first, so that no long test runs alone at the end
    waiting = sorted(enumerate(tests, 1), key=lambda x: -x[1][3]) \
        if config.jobs > 1 else list(enumerate(tests, 1))
    print(f'1..{len(tests)}')
    try:
        while waiting or running:
            while waiting and len(running) < config.jobs:
                running.append(_Job(config, *waiting.pop(0)))
            for job in list(running):
                code = job.poll()
                if code is not None:
                    running.remove(job)
                    results(job, code, *job.close(
                        keep and code not in (0, 77)))
            time.sleep(0.02)
    except KeyboardInterrupt:
        for job in running:
            job.end(signal.SIGINT, 60)
        for job in running:
            job.wait()
            job.close(keep)
        print('Bail out! interrupted', flush=True)
        results.failed += 1
    print(f'{results.passed} passed, {results.failed} failed, '
          f'{results.skipped} skipped', flush=True)
    return results.failed
