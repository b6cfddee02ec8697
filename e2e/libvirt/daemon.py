# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirtd that leaves no traces, and its domains."""

import json
import os
import re
import shlex
import subprocess
import time
import uuid

from lab.vm import MACHINE, PATIENCE, Console, Hung, die_with_parent

HERE = os.path.dirname(os.path.abspath(__file__))

QEMU_CONF = '''
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
auto_start_bypass_cache = 0
save_image_format = "{format}"
snapshot_image_format = "raw"
'''
LIBVIRTD_CONF = '''
unix_sock_dir = "{directory}"
auth_unix_rw = "none"
log_filters = "1:qemu.qemu_monitor 3:*"
log_outputs = "1:file:{directory}/libvirtd.log"
'''


class VirshError(Exception):
    """A virsh command failed; holds its output."""


class Libvirt:
    """libvirtd of the unpacked packages in `root`.

    directory   for its configuration, log, socket and managed saves; not
                below /etc, /run, /usr or /var, of which it has its own
    image       its save_image_format: 'sparse' (mapped-ram), 'raw' ..."""

    def __init__(self, root, directory, image='sparse'):
        for hidden in ('/etc/', '/run/', '/usr/', '/var/'):
            if (os.path.realpath(directory) + '/').startswith(hidden):
                raise OSError(f'{directory}: libvirtd sees a {hidden} of its '
                              'own; name another directory with --workdir')
        self.root = root
        self.directory = directory
        os.makedirs(os.path.join(directory, 'save'))
        for name, text in (('qemu', QEMU_CONF), ('libvirtd', LIBVIRTD_CONF)):
            with open(os.path.join(directory, name + '.conf'), 'w') as f:
                f.write(text.format(directory=directory, format=image))
        with open(os.path.join(directory, 'libvirtd.out'), 'wb') as out:
            self.process = subprocess.Popen(
                ['unshare', '--mount', '--pid', '--fork', '--mount-proc',
                 '--kill-child', os.path.join(HERE, 'start'), root, directory],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                preexec_fn=die_with_parent)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self):
        deadline = time.monotonic() + PATIENCE * 60
        while True:
            code, said = self.virsh('uri', check=False)
            if not code:
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Hung(f'libvirtd does not start: {self.said()}; virsh '
                           f'says: {said}')
            time.sleep(0.1)

    def said(self):
        with open(os.path.join(self.directory, 'libvirtd.out'),
                  errors='replace') as f:
            return f.read().strip()

    def log(self):
        with open(os.path.join(self.directory, 'libvirtd.log'),
                  errors='replace') as f:
            return f.read()

    def start_virsh(self, *args):
        """Starts virsh with its output in pipes."""
        # Before the /usr merge, some libraries were in /lib
        libs = ':'.join(os.path.join(self.root, d, 'x86_64-linux-gnu')
                        for d in ('usr/lib', 'lib'))
        env = dict(os.environ, LD_LIBRARY_PATH=libs, LC_ALL='C')
        socket = os.path.join(self.directory, 'libvirt-sock')
        return subprocess.Popen(
            [os.path.join(self.root, 'usr', 'bin', 'virsh'), '--quiet',
             '--connect', f'qemu+unix:///system?socket={socket}', *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=env)

    def finish(self, virsh, check=True, timeout=180):
        """Waits for virsh to exit; returns (exit code, output)."""
        try:
            out, err = virsh.communicate(timeout=PATIENCE * timeout)
        except subprocess.TimeoutExpired:
            virsh.kill()
            virsh.communicate()
            raise Hung(f'virsh {shlex.join(virsh.args[4:])}: no end in '
                       f'{PATIENCE * timeout} s') from None
        if check and virsh.returncode:
            raise VirshError(f'virsh {shlex.join(virsh.args[4:])}: '
                             f'{err.strip()}')
        return virsh.returncode, (out + err).strip()

    def virsh(self, *args, check=True, timeout=180):
        """Runs virsh; returns (exit code, output)."""
        return self.finish(self.start_virsh(*args), check, timeout)

    def daemon(self):
        """The PID of libvirtd, as seen from outside its namespace."""
        with open(self._children(self._first())) as f:
            for pid in f.read().split():
                with open(f'/proc/{pid}/comm') as comm:
                    if comm.read().strip() == 'libvirtd':
                        return int(pid)
        raise AssertionError('libvirtd does not run')

    def _first(self):
        """The PID of the init process of its namespace, which reaps the
        emulators."""
        with open(self._children(self.process.pid)) as f:
            return int(f.read().split()[0])

    def reaped_cpu(self):
        """The CPU seconds used by all emulators that have exited."""
        with open(f'/proc/{self._first()}/stat') as f:
            fields = f.read().rsplit(')', 1)[1].split()
        return sum(map(int, fields[13:15])) / os.sysconf('SC_CLK_TCK')

    @staticmethod
    def _children(pid):
        return f'/proc/{pid}/task/{pid}/children'

    def close(self):
        """Kills libvirtd and all processes that it started."""
        self.process.kill()
        self.process.wait()


class Domain(Console):
    """A guest that libvirt runs.

    libvirt     the Libvirt
    emulator    the Emulator that runs it
    rom         the self-checking guest, or None to use `linux`
    linux       (kernel, initramfs, command line), or None for a guest that
                never runs
    prealloc    whether its memory is allocated at startup"""

    def __init__(self, libvirt, emulator, name='guest', ram=128, rom=None,
                 linux=None, prealloc=False):
        self.libvirt = libvirt
        self.name = name
        self.uuid = str(uuid.uuid4())
        self._pid = 0
        prefix = os.path.join(libvirt.directory, name)
        self.serial_path = prefix + '.serial'
        open(self.serial_path, 'w').close()
        self._values = {
            'name': name, 'uuid': self.uuid, 'ram': ram, 'machine': MACHINE,
            'serial': self.serial_path,
            'memory': '<memoryBacking><allocation mode="immediate"/>'
                      '</memoryBacking>' if prealloc else '',
            'boot': f"<loader type='rom'>{rom}</loader>" if rom else
                    "<kernel>{}</kernel><initrd>{}</initrd>"
                    "<cmdline>{}</cmdline>".format(*linux) if linux else ''}
        self.xml = self.describe(emulator)
        libvirt.virsh('define', self.xml)

    def describe(self, emulator):
        """Writes the domain's XML for this emulator; returns its path."""
        program = os.path.join(self.libvirt.directory,
                               f'qemu-{emulator.name}')
        lines = ['#!/bin/sh']
        lines += [f'export {name}={shlex.quote(value)}'
                  for name, value in emulator.env.items()
                  if os.environ.get(name) != value]
        lines.append(f'exec {shlex.join(emulator.argv())} "$@"')
        if not os.path.exists(program):     # libvirt probes changed emulators
            with open(program, 'w') as f:
                f.write('\n'.join(lines) + '\n')
            os.chmod(program, 0o755)
        path = os.path.join(self.libvirt.directory,
                            f'{self.name}-{emulator.name}.xml')
        with open(os.path.join(HERE, 'domain.xml')) as f:
            text = f.read()
        with open(path, 'w') as f:
            f.write(text.format(emulator=program, **self._values))
        return path

    def virsh(self, command, *args, **kwargs):
        return self.libvirt.virsh(command, self.name, *args, **kwargs)

    def start(self):
        self.virsh('start')

    def _is_mine(self, pid):
        try:
            with open(f'/proc/{pid}/cmdline', 'rb') as f:
                return self.uuid.encode() in f.read().split(b'\0')
        except OSError:
            return False

    @property
    def pid(self):
        """The PID of its QEMU, as seen from outside the namespace."""
        if not self._is_mine(self._pid):
            found = [int(name) for name in os.listdir('/proc')
                     if name.isdigit() and self._is_mine(name)]
            if not found:
                raise AssertionError(f'{self.name} does not run: '
                                     f'{self.qemu_log()[-500:]}')
            self._pid = found[0]
        return self._pid

    def raise_if_dead(self):
        assert self.pid

    def wait_gone(self):
        """Waits until its QEMU has ended."""
        deadline = time.monotonic() + PATIENCE * 60
        while self._is_mine(self._pid):
            if time.monotonic() > deadline:
                raise Hung(f'{self.name}: QEMU does not end')
            time.sleep(0.01)

    def qemu_log(self):
        """QEMU's output on stderr, and its command line."""
        path = (f'/proc/{self.libvirt.daemon()}/root/var/log/libvirt/qemu/'
                f'{self.name}.log')
        try:
            with open(path, errors='replace') as f:
                return f.read()
        except OSError as err:
            return str(err)

    def state(self):
        return self.virsh('domstate')[1]

    def qmp(self, command, arguments=None):
        """Sends a QMP command to QEMU itself."""
        _, text = self.virsh('qemu-monitor-command', json.dumps(
            {'execute': command, 'arguments': arguments or {}}))
        return json.loads(text)['return']

    def migration(self):
        return self.qmp('query-migrate')

    def job(self):
        """The output of `virsh domjobinfo`, {name: text}."""
        _, text = self.virsh('domjobinfo')
        return dict(re.findall(r'^(.+?):\s+(.+?)\s*$', text, re.M))
