# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual machines under test."""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import time

from .qmp import QMP, QMPClosed, QMPError

FINAL = ('completed', 'failed', 'cancelled')
# The machine type: one that every version has, so that images can be exchanged
# between all versions
MACHINE = 'pc-q35-7.2'

# Factor by which all timeouts exceed those for an idle machine: tests require
# that something happens, not that it happens quickly
PATIENCE = 5


class Crashed(Exception):
    """QEMU was killed by a signal."""


class Exited(Exception):
    """QEMU exited, with an exit code."""

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class Hung(Exception):
    """Something did not happen in time."""


class NotQEMU(Exception):
    """A program is not an emulator, or does not start."""


class Emulator:
    """One build of QEMU, how to start it, and what it supports; `params` are
    migration parameters for its machines, and `accel` is the accelerator."""

    params = {}

    def __init__(self, name, path, firmware, libs='', accel='tcg'):
        self.name = name
        self.path = path
        self.accel = accel
        self.firmware = [d for d in firmware.split(os.pathsep) if d]
        self.env = dict(os.environ)
        if libs:
            self.env['LD_LIBRARY_PATH'] = libs
        done = subprocess.run([path, '--version'], env=self.env,
                              capture_output=True, text=True)
        found = re.search(r'QEMU emulator version ([\d.]+)', done.stdout)
        if not found:
            raise NotQEMU(f"'{path}' does not say that it is QEMU: "
                          f'{(done.stderr or done.stdout).strip()[:200]}')
        self.version = found.group(1)

    def at_least(self, *version):
        return tuple(int(n) for n in self.version.split('.')) >= version

    def argv(self):
        argv = [self.path]
        for directory in self.firmware:
            argv += ['-L', directory]
        return argv


class Mode:
    """How a migration moves RAM: the number of multifd `channels`, or none,
    and whether direct I/O is used."""

    def __init__(self, channels=0, direct=False):
        self.channels = channels
        self.direct = direct

    def __str__(self):
        how = 'direct' if self.direct else 'buffered'
        return f'{how}, {self.channels or "no"} channels'


def die_with_parent(rlimit_fsize=None):
    """For preexec_fn: kills the process when the test dies.  If the process
    crashes, as stock QEMU may be expected to, it dumps no core.  The hard limit
    stays: libvirtd fails to raise it for its guests where root may not."""
    import ctypes
    import resource
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # PR_SET_PDEATHSIG
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    if rlimit_fsize is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (rlimit_fsize, rlimit_fsize))


class Console:
    """The output of a guest's serial port, which goes to the file
    `serial_path`.  Messages call the guest `name`, and raise_if_dead() must
    raise an error if it no longer runs."""

    def serial(self):
        with open(self.serial_path, errors='replace') as f:
            text = f.read()
        return text[:text.rfind('\n') + 1].splitlines()

    def last_number(self, word, base=16):
        for line in reversed(self.serial()):
            fields = line.split()
            if len(fields) > 1 and fields[0] == word:
                return int(fields[1], base)
        return 0

    def check_guest(self):
        for line in self.serial():
            if line.startswith('BAD'):
                raise AssertionError(f'guest of {self.name}: {line}')

    def count_lines(self, word):
        """Returns how many lines start with this word.  Unlike the number in
        the last line, it is 0 at first for a guest that was restored."""
        return sum(line.split()[:1] == [word] for line in self.serial())

    def wait_guest(self, word, more=1, timeout=90):
        """Waits for `more` lines that start with `word` on the console; fails
        if the guest reports an error.  The first line may tell of work that
        the guest began before it was saved."""
        self.wait_lines(word, self.count_lines(word) + more, timeout)

    def wait_lines(self, word, count, timeout=90):
        """Like wait_guest(), for `count` lines since the console was made."""
        deadline = time.monotonic() + PATIENCE * timeout
        while self.count_lines(word) < count:
            self.check_guest()
            self.raise_if_dead()
            if time.monotonic() > deadline:
                raise Hung(f'guest of {self.name} does not go on: no '
                           f'"{word}" in {PATIENCE * timeout} s')
            time.sleep(0.01)
        self.check_guest()


class VM(Console):
    """One QEMU process.

    emulator    which QEMU
    directory   for its sockets and logs
    name        tells it from others in messages
    ram         size of RAM in MiB
    firmware    image of the self-checking guest, or None
    incoming    whether it waits to be restored; then it does not run on its
                own after that
    args        more arguments
    machine     its type
    ram_at      where its RAM begins, in the guest's addresses
    patience    how many seconds it may take to start
    """

    def __init__(self, emulator, directory, name, ram=128, firmware=None,
                 incoming=False, args=(), rlimit_fsize=None, wrapper=(),
                 machine=MACHINE, ram_at=0, patience=30):
        self.emulator = emulator
        self.name = name
        self.ram = ram
        self.ram_at = ram_at
        prefix = os.path.join(directory, name)
        socket = prefix + '.qmp'
        self.serial_path = prefix + '.serial'
        self.stderr_path = prefix + '.stderr'
        self._dump = prefix + '.ram'
        open(self.serial_path, 'w').close()
        argv = [*wrapper, *emulator.argv(),
                '-machine', machine, '-accel', emulator.accel,
                '-m', str(ram),
                '-nodefaults', '-no-user-config', '-display', 'none',
                '-vga', 'none', '-name', name,
                '-chardev',
                f'file,id=serial0,path={self.serial_path},append=on',
                '-serial', 'chardev:serial0',
                '-chardev', f'socket,id=qmp,path={socket},server=on,wait=off',
                '-mon', 'chardev=qmp,mode=control']
        if firmware:
            argv += ['-bios', firmware]
        if incoming:
            argv += ['-S', '-incoming', 'defer']
        argv += args
        with open(self.stderr_path, 'wb') as err:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=err, stderr=err,
                env=emulator.env,
                preexec_fn=lambda: die_with_parent(rlimit_fsize))
        try:
            self.qmp = QMP(socket, PATIENCE * patience,
                           alive=self.raise_if_dead)
        except (OSError, QMPClosed, TimeoutError):
            self.raise_if_dead()
            self.kill()
            raise

    # The process

    @property
    def pid(self):
        return self.process.pid

    def stderr(self):
        with open(self.stderr_path, errors='replace') as f:
            return f.read()

    def errors(self):
        """QEMU's output on stderr, without the usual warnings."""
        return [line for line in self.stderr().splitlines()
                if line.strip() and 'terminating on signal' not in line]

    def wait_exit(self, timeout=60):
        """Waits until QEMU exits; returns its exit code."""
        return self.process.wait(PATIENCE * timeout)

    def raise_if_dead(self, wait=0):
        try:
            code = self.wait_exit(wait) if wait else self.process.poll()
        except subprocess.TimeoutExpired:
            return
        if code is None:
            return
        said = ' | '.join(self.errors()[-3:]) or 'nothing on stderr'
        # strace and prlimit report a signal as 128 + signal
        if code < 0 or 128 < code < 160:
            number = -code if code < 0 else code - 128
            raise Crashed(f'{self.name} ({self.emulator.name}) was killed by '
                          f'{signal.Signals(number).name}: {said}')
        raise Exited(f'{self.name} ({self.emulator.name}) exited with code '
                     f'{code}: {said}', code)

    def command(self, name, arguments=None, fds=(), timeout=60):
        try:
            return self.qmp.command(name, arguments, fds, PATIENCE * timeout)
        except QMPClosed:
            self.raise_if_dead(wait=20)
            raise

    def events(self, name):
        """The events of this name that have arrived with answers to commands.
        """
        return [e for e in self.qmp.events if e['event'] == name]

    def hmp(self, line):
        """Runs a command of the human monitor; returns its output."""
        return self.command('human-monitor-command', {'command-line': line})

    def open_descriptors(self):
        return len(os.listdir(f'/proc/{self.pid}/fd'))

    def wait_descriptors(self, most, timeout=20):
        """Waits until no more descriptors than this are open; a save closes
        its own a moment after it has ended."""
        deadline = time.monotonic() + PATIENCE * timeout
        while (now := self.open_descriptors()) > most:
            self.raise_if_dead()
            if time.monotonic() > deadline:
                raise AssertionError(f'{now - most} descriptors leaked')
            time.sleep(0.01)

    def cpu_times(self):
        """CPU seconds of each thread, by its name and id."""
        ticks = os.sysconf('SC_CLK_TCK')
        result = {}
        for tid in os.listdir(f'/proc/{self.pid}/task'):
            # A thread may end meanwhile
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), \
                    open(f'/proc/{self.pid}/task/{tid}/stat') as f:
                name, _, rest = f.read().partition(' (')[2].rpartition(') ')
                fields = rest.split()
                result[f'"{name}" ({tid})'] = \
                    (int(fields[11]) + int(fields[12])) / ticks
        return result

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.qmp_close()
        if os.path.exists(self._dump):
            os.unlink(self._dump)

    def qmp_close(self):
        if hasattr(self, 'qmp'):
            self.qmp.close()

    # The guest

    def wait_until(self, condition):
        """Waits until `condition()` holds; only the test's time limit
        applies."""
        while not condition():
            self.raise_if_dead()
            time.sleep(0.005)

    def wait_runstate(self, wanted):
        self.wait_until(
            lambda: self.command('query-status')['status'] == wanted)

    def ticks_on(self, more=3):
        """Checks that the guest runs and that QEMU soon reports it as
        running.  A failure may be reported shortly before the guest
        resumes."""
        while (status := self.command('query-status'))['status'] != 'running':
            if status['status'] != 'finish-migrate':
                raise AssertionError(f'{self.name} is {status["status"]}, '
                                     'not running')
            time.sleep(0.01)
        self.wait_guest('tick', more)

    def ram_hash(self):
        """SHA-256 of guest RAM; the guest must be stopped."""
        self.command('pmemsave', {'val': self.ram_at,
                                  'size': self.ram << 20,
                                  'filename': self._dump})
        digest = hashlib.sha256()
        with open(self._dump, 'rb') as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
        os.unlink(self._dump)
        return digest.hexdigest()

    # Migration

    def set_capabilities(self, *names, state=True):
        self.command('migrate-set-capabilities', {'capabilities': [
            {'capability': name, 'state': state} for name in names]})

    def setup(self, mode, **params):
        """Sets capabilities and parameters for `mode`, or if it is None for a
        plain stream without mapped-ram.  Without a limit on the bandwidth, the
        limit on the downtime is so high that even a slow and busy disk keeps
        up with the guest."""
        mapped_ram = mode is not None
        mode = mode or Mode(0)
        self.command('migrate-set-capabilities', {'capabilities': [
            {'capability': 'events', 'state': True},
            {'capability': 'mapped-ram', 'state': mapped_ram},
            {'capability': 'multifd', 'state': mode.channels > 0}]})
        values = {'max-bandwidth': 1 << 40, 'direct-io': mode.direct,
                  'downtime-limit': 300 if 'max_bandwidth' in params else
                  5000}
        if mode.channels:
            values['multifd-channels'] = mode.channels
        values.update(self.emulator.params)
        values.update(params)
        self.command('migrate-set-parameters',
                     {k.replace('_', '-'): v for k, v in values.items()})

    def hurry(self):
        """Lets a save with a limited bandwidth end soon, on any disk."""
        self.command('migrate-set-parameters', {'max-bandwidth': 1 << 40,
                                                'downtime-limit': 5000})

    def wait_or_hurry(self, passes=4):
        """Waits until a live save with a limited bandwidth ends; hurries it if
        it has not ended after so many passes, since it may never end if the
        disk writes more slowly than the guest does."""
        while (info := self.migration()).get('status') not in FINAL:
            if info.get('ram', {}).get('dirty-sync-count', 0) > passes:
                self.hurry()
                break
            time.sleep(0.01)
        return self.wait_migration()

    def add_fds(self, fdset, *fds):
        for fd in fds:
            self.command('add-fd', {'fdset-id': fdset}, fds=[fd])

    def migration(self, timeout=60):
        return self.command('query-migrate', timeout=timeout)

    def written(self):
        """How many bytes the migration has written."""
        return self.migration().get('ram', {}).get('transferred', 0)

    def wait_migration(self, timeout=120):
        """Waits for the end; returns the result of query-migrate."""
        deadline = time.monotonic() + PATIENCE * timeout
        while True:
            info = self.migration(timeout)
            if info.get('status') in FINAL:
                return info
            if time.monotonic() > deadline:
                raise Hung(f'{self.name}: migration is still '
                           f'{info.get("status")} after '
                           f'{PATIENCE * timeout} s')
            time.sleep(0.01)

    def start_save(self, uri):
        self.command('migrate', {'uri': uri})

    def save(self, uri, mode=None, timeout=120, **params):
        """Saves; fails if the save does not complete."""
        info = self.try_save(uri, mode, timeout, **params)
        if info['status'] != 'completed':
            raise AssertionError(f'save by {self.name} {info["status"]}: '
                                 f'{info.get("error-desc")}')
        return info

    def try_save(self, uri, mode=None, timeout=120, **params):
        """Saves, and returns the final state.  If the migrate command is
        refused, the result looks like a failed migration: status and
        error-desc."""
        if mode:
            self.setup(mode, **params)
        try:
            self.start_save(uri)
        except QMPError as err:
            return {'status': 'failed', 'error-desc': err.desc,
                    'refused': True}
        return self.wait_migration(timeout)

    def try_load(self, uri, mode=None, timeout=120, **params):
        """Restores.  Returns None on success, else QEMU's error message.
        Death by a signal, a hang, or an exit without a message are test
        errors."""
        try:
            if mode:
                self.setup(mode, **params)
            try:
                self.command('migrate-incoming', {'uri': uri})
            except QMPError as err:
                return err.desc
            info = self.wait_migration(timeout)
            if info['status'] == 'completed':
                return None
            # 7.2 exits right after this, later versions also do by default
            self.raise_if_dead(wait=20)
            return info.get('error-desc') or ' | '.join(self.errors())
        except QMPClosed:
            self.raise_if_dead(wait=20)
            raise
        except Exited as err:
            if err.code != 1 or not self.errors():
                raise
            return ' | '.join(self.errors())
        except TimeoutError as err:
            raise Hung(f'{self.name}: {err}') from None

    def load(self, uri, mode=None, timeout=120, **params):
        """Restores; fails if that does not succeed."""
        said = self.try_load(uri, mode, timeout, **params)
        if said is not None:
            raise AssertionError(f'restore by {self.name} '
                                 f'({self.emulator.name}) failed: {said}')
