# SPDX-License-Identifier: GPL-2.0-or-later
"""Output of the tools: errors in one line, and progress of long steps."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed


# A step that has written nothing for so many seconds hangs
SILENCE = 300

_speaking = threading.Lock()
_libc = ctypes.CDLL(None)


def _die_with_parent():
    _libc.prctl(1, signal.SIGTERM)      # PR_SET_PDEATHSIG


class _Steps:
    """The processes of the steps that all threads run now."""

    def __init__(self):
        self._lock = threading.Lock()
        self._processes = set()
        self.ended = False
        self.deadline = None

    def start(self, argv, **options):
        with self._lock:
            if self.ended:
                raise Ended
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                       start_new_session=True,
                                       preexec_fn=_die_with_parent, **options)
            self._processes.add(process)
        return process

    def patience(self, timeout):
        """For how many seconds a step may run that starts now."""
        if self.deadline is None:
            return timeout
        left = max(0, self.deadline - time.monotonic())
        return left if timeout is None else min(timeout, left)

    def forget(self, process):
        with self._lock:
            self._processes.discard(process)

    def end(self):
        """End all steps, and prevent others from starting."""
        with self._lock:
            self.ended = True
            processes = list(self._processes)
        for process in processes:
            _end(process)


_steps = _Steps()


def end_steps():
    """End the steps of all threads."""
    _steps.end()


def end_steps_at(moment):
    """Let no step run beyond this time of time.monotonic(), unless it is
    None."""
    _steps.deadline = moment


class Fault(Exception):
    """An error that the user must correct: one clear line that says what is
    wrong and what to do.  Ends the program with exit code 2."""


class Failure(Exception):
    """A step that was started properly, such as a build, has failed.  Ends the
    program with exit code 1.  `log`: where its output is, if it should be
    shown."""

    def __init__(self, text, log=None):
        super().__init__(text)
        self.log = log


class Late(Failure):
    """The time of the run was over before the step began, or while it made
    progress: nothing has failed."""


class Ended(Exception):
    """Another thread has failed, or the user has stopped the program."""


def say(*lines):
    """Print lines that are not interleaved with the output of other
    threads."""
    with _speaking:
        print('\n'.join(lines), flush=True)


def note(text):
    """Print a remark, on stderr because programs may read stdout."""
    print(f'run: {text}', file=sys.stderr, flush=True)


def duration(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    return f'{minutes}m{seconds:02}s' if minutes else f'{seconds}s'


class _Ticker:
    """Shows how long a step has been running: in place on a terminal, one
    line a minute elsewhere, so that a log of CI stays readable."""

    def __init__(self, name, log):
        self._name = name
        self._log = log
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._done.wait(1 if self._terminal else 60):
            self._show('', '\r' if self._terminal else '\n')

    def _last(self):
        """The progress from the log: ninja's [n/m], or nothing."""
        try:
            with open(self._log, 'rb') as f:
                f.seek(max(0, os.path.getsize(self._log) - 4096))
                tail = f.read().decode(errors='replace')
        except OSError:
            return ''
        for line in reversed(tail.replace('\r', '\n').splitlines()):
            if line.startswith('[') and '/' in line.partition(']')[0]:
                return line.partition(']')[0] + ']'
        return ''

    def _show(self, word, end):
        took = duration(time.monotonic() - self._start)
        text = f'run: {self._name} {self._last() if not word else word} {took}'
        if self._terminal:
            text = '\r\033[K' + text.rstrip()
        print(text, end=end, file=sys.stderr, flush=True)

    def stop(self, word):
        self._done.set()
        self._thread.join()
        self._show(word, '\n')


def read_log(path):
    """The output of a program, which need not be text."""
    with open(path, errors='replace') as f:
        return f.read()


def tail(path, lines=25):
    try:
        with open(path, errors='replace') as f:
            return ''.join(f.readlines()[-lines:]).rstrip()
    except OSError as err:
        return str(err)


def _end(process):
    """End a program and all its children.  They may clean up first: tests have
    file systems to unmount."""
    for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def step(name, argv, log, cwd=None, env=None, check=True, append=False,
         timeout=None):
    """Run a long command with its output in the file `log`, and show its
    progress.  A failure shows the log's last lines and its path.  Returns the
    exit code."""
    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, 'ab' if append else 'wb') as out:
        out.write(('$ ' + ' '.join(map(str, argv)) + '\n').encode())
        out.flush()
        patience = _steps.patience(timeout)
        if patience == 0:
            raise Late(f'{name}: not begun, because the time is over', log)
        ticker = _Ticker(name, log)
        try:
            process = _steps.start(argv, cwd=cwd, env=env, stdout=out,
                                   stderr=out)
        except OSError as err:
            ticker.stop('failed,')
            raise Fault(f'cannot start {argv[0]}: {err.strerror}') from None
        except Ended:
            ticker.stop('not begun,')
            raise
        try:
            code = process.wait(patience)
        except BaseException as err:
            # Many programs report the signal that ends them
            silence = time.time() - os.path.getmtime(log)
            _end(process)
            ticker.stop('stopped,')
            if isinstance(err, subprocess.TimeoutExpired):
                kind = Late if patience != timeout and silence < SILENCE \
                    else Failure
                raise kind(f'{name}: not done after {duration(patience)}; '
                           f'its output is in {log}', log) from None
            raise
        finally:
            _steps.forget(process)
    if _steps.ended:
        ticker.stop('stopped,')
        raise Ended
    ticker.stop('done,' if code == 0 else f'failed (exit code {code}),')
    if code and check:
        text = tail(log)
        print(text, file=sys.stderr)
        if 'No space left on device' in text:
            raise Fault(f'{name}: no space left; make room, or set QDIO_CACHE '
                        f'to a directory on a larger disk ({log})')
        raise Failure(f'{name} failed; all of its output is in {log}')
    return code


def side_by_side(actions):
    """Run each function in its own thread, and wait until all have returned.
    If one raises an exception, terminate the steps of the others and re-raise
    it."""
    with ThreadPoolExecutor(len(actions)) as pool:
        futures = [pool.submit(action) for action in actions]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            _steps.end()
            raise
