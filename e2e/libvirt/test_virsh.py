# SPDX-License-Identifier: GPL-2.0-or-later
"""virsh save, restore and related commands, with emulators that have the
series."""

import contextlib
import os
import re
import subprocess
import time

from lab import image, meter
from lab.fs import free_bytes
from lab.guest import build_initramfs
from lab.vm import PATIENCE

from ..faults import faulty, open_gate, stalls
from ..harness import Skip, test
from ..instant import need_userfaultfd, wait_status
from .daemon import Domain, Libvirt, VirshError

MIB = 1 << 20
CHANNELS = ((), ('--parallel-channels', '4'))
DIRECT = ('--bypass-cache',)
QEMU_XML = 'http://libvirt.org/schemas/domain/qemu/1.0'
LIVE = {'dirty': 64, 'pause': 20000}


def libvirt(t, **kwargs):
    t.need_root()
    daemon = Libvirt(t.config.libvirt, t.path(f'libvirt{t.count}'), **kwargs)
    t.count += 1
    t.stack.callback(daemon.close)
    return daemon


def domain(t, daemon, emulator=None, guest=None, **kwargs):
    """Starts a domain whose self-checking guest has filled its memory."""
    found = Domain(daemon, emulator or t.config.ours,
                   rom=t.checker(**(LIVE if guest is None else guest)),
                   **kwargs)
    found.start()
    found.wait_guest('tick', 2)
    return found


def goes_on(guest):
    """Checks that the guest runs and finds its memory unchanged."""
    assert guest.state() == 'running', guest.state()
    guest.wait_guest('tick', 2)
    guest.wait_guest('sweep', 2)


def whole(path):
    """Checks that the file has a complete mapped-ram image after libvirt's
    header."""
    code, found = image.tool('verify', path)
    assert code == 0, found
    assert found['libvirt'], 'no header of libvirt is seen'


def told_direct(guest, expected=True):
    """Checks what our QEMU reports about direct I/O after a restore."""
    told = guest.migration()['direct-io']
    assert told['active'] == expected, told
    assert (told['direct-bytes'] > 32 * MIB) == expected, told


@test('libvirt: save and restore', quick=True, timeout=300)
def test_save_restore(t):
    """With and without --bypass-cache, with one and four channels."""
    daemon = libvirt(t)
    path = t.path('guest.save')
    guest = domain(t, daemon)
    for cache in ((), DIRECT):
        for channels in CHANNELS:
            for _ in range(3):
                guest.virsh('save', path, *cache, *channels)
                assert guest.state() == 'shut off', guest.state()
                cached = meter.cached(path)
                if cache or cached > 8 * MIB:
                    break
                # The host may have needed its memory for something else
                daemon.virsh('restore', path, *channels)
                os.unlink(path)
            assert (cached <= 8 * MIB) == bool(cache), \
                f'{cache}: {cached} bytes of the image in the page cache'
            whole(path)
            daemon.virsh('restore', path, *cache, *channels)
            if cache:
                cached = meter.cached(path)
                assert cached <= 8 * MIB, f'{cached} bytes cached by restoring'
            told_direct(guest, bool(cache))
            goes_on(guest)
            os.unlink(path)
    sets = re.findall(r'"opaque":"libvirt-(?:outgoing|incoming)-migrate-'
                      r'directio-fd"', daemon.log())
    assert len(sets) >= 4, f'two descriptors were passed {len(sets)} times'


def state_after_failure(guest):
    """The state of a domain whose save has failed, 'running' or 'shut off'.
    QEMU may still answer just before it aborts, and if it has ended, libvirt
    notices it a moment later.  So the domain only counts as running if QEMU
    also answers some seconds after its first answer."""
    deadline = time.monotonic() + PATIENCE * 60
    first = None
    while True:
        state = guest.state()
        if state == 'shut off' or time.monotonic() > deadline:
            return state
        try:
            guest.qmp('query-status')
        except VirshError:              # it is about to be shut off
            first = None
        else:
            now = time.monotonic()
            first = first or now
            if now - first > 5:
                return guest.state()
        time.sleep(0.1)


@test('libvirt: buffered after direct', timeout=200,
      stock='the guest is lost')
def test_buffered_after_direct(t):
    """libvirt does not turn direct-io off again, and then passes only one
    descriptor, without O_DIRECT.  Stock QEMU then loses the guest: it aborts,
    and what virsh says depends on what libvirt was waiting for."""
    daemon = libvirt(t)
    path = t.path('guest.save')
    guest = domain(t, daemon)
    guest.virsh('save', path, *DIRECT)
    daemon.virsh('restore', path, *DIRECT)
    goes_on(guest)
    try:
        guest.virsh('save', path)
    except VirshError as err:
        state = state_after_failure(guest)
        assert state != 'shut off', f'the guest is lost: {err}'
        raise
    daemon.virsh('restore', path)
    goes_on(guest)


@test('libvirt: a Linux guest', timeout=600)
def test_linux(t):
    """Debian's kernel resumes its computation where it was saved."""
    if not t.config.kernel or not t.config.busybox:
        raise Skip('no kernel: give --kernel and --busybox')
    daemon = libvirt(t)
    initramfs = build_initramfs(t.config.busybox, t.path('initramfs.gz'))
    guest = Domain(daemon, t.config.ours, ram=256, linux=(
        t.config.kernel, initramfs, 'console=ttyS0 quiet panic=1 '
        'tsc=unstable no_timer_check mitigations=off '
        'random.trust_bootloader=on'))
    guest.start()
    guest.wait_guest('count', 2, timeout=300)
    path = t.path('guest.save')
    for channels in CHANNELS:
        guest.virsh('save', path, *DIRECT, *channels)
        saved = guest.last_number('count', 10)
        daemon.virsh('restore', path, *DIRECT, *channels)
        guest.wait_guest('count', 2, timeout=300)
        first = [int(line.split()[1]) for line in guest.serial()
                 if line.startswith('count ')]
        assert first == list(range(1, len(first) + 1)), \
            f'the rounds around {saved} are {first[-6:]}'


@test('libvirt: managed save and start', timeout=200)
def test_managed_save(t):
    daemon = libvirt(t)
    guest = domain(t, daemon)
    for options in ((), DIRECT):
        guest.virsh('managedsave', *options)
        assert guest.state() == 'shut off'
        guest.virsh('start', *options)
        told_direct(guest, bool(options))
        goes_on(guest)
        take_back(guest)
    guest.virsh('managedsave', *DIRECT)
    guest.virsh('managedsave-remove')
    assert not os.listdir(os.path.join(daemon.directory, 'save'))


def take_back(guest):
    """libvirt 11.3 leaves the image's descriptors open in QEMU, so the space
    of an image that it has removed is not freed; this function closes them."""
    for fdset in guest.qmp('query-fdsets'):
        if 'incoming-migrate' in fdset['fds'][0]['opaque']:
            guest.qmp('remove-fd', {'fdset-id': fdset['fdset-id']})
    where = f'/proc/{guest.pid}/fd'
    left = [os.readlink(f'{where}/{fd}') for fd in os.listdir(where)]
    left = [name for name in left if name.endswith('(deleted)')]
    assert not left, f'still open: {left}'


@test('libvirt: external snapshots with memory', timeout=300)
def test_snapshot(t):
    """Live snapshots: the guest keeps running, and so does a guest restored
    from the snapshot's memory.  No descriptor is leaked in QEMU or libvirtd.
    libvirt 11.3 saves that memory as a plain stream, regardless of
    snapshot_image_format."""
    daemon = libvirt(t)
    guest = domain(t, daemon)
    counts = []
    for i in range(6):
        path = t.path(f'memory{i}')
        guest.virsh('snapshot-create-as', f'snapshot{i}', '--live',
                    '--memspec', f'file={path},snapshot=external')
        goes_on(guest)
        counts.append(open_in(daemon, guest))
    check_leaks(counts, lambda: open_in(daemon, guest))
    guest.virsh('destroy')
    daemon.virsh('restore', path, *DIRECT)
    goes_on(guest)


def open_in(daemon, guest):
    """How many descriptors QEMU and libvirtd have."""
    return [len(os.listdir(f'/proc/{pid}/fd'))
            for pid in (guest.pid, daemon.daemon())]


def check_leaks(counts, count):
    """Checks that no more descriptors are open than after the second round.
    libvirtd closes the socket of a virsh a moment after that has ended."""
    deadline = time.monotonic() + 60
    while any(now > then for now, then in zip(counts[-1], counts[1])):
        assert time.monotonic() < deadline, f'descriptors leak: {counts}'
        time.sleep(0.1)
        counts[-1] = count()


@contextlib.contextmanager
def held_save(t, daemon, guest, path):
    """Starts a save that hangs in its second write of RAM."""
    virsh = daemon.start_virsh('save', guest.name, path, *DIRECT)
    try:
        while not stalls(t):
            if virsh.poll() is not None:
                raise AssertionError('the save does not get to its second '
                                     f'write: {daemon.finish(virsh, False)}')
            time.sleep(0.05)
        yield virsh
    finally:
        open_gate(t)
        if virsh.poll() is None:
            daemon.finish(virsh, check=False)


@test('libvirt: progress, and an abort in the middle', quick=True,
      timeout=200)
def test_abort(t):
    daemon = libvirt(t)
    path = t.path('guest.save')
    ours = faulty(t, 'guest.save', 'write:d2:hold')
    guest = domain(t, daemon, ours)
    with held_save(t, daemon, guest, path) as virsh:
        job = guest.job()
        assert job['Job type'] == 'Unbounded', job
        assert job['Operation'] == 'Save', job
        assert float(job['Memory total'].split()[0]) >= 128, job
        assert float(job['Memory remaining'].split()[0]) > 0, job
        guest.virsh('domjobabort')
        open_gate(t)
        code, said = daemon.finish(virsh, check=False)
    assert code and 'cancel' in said.lower(), said
    goes_on(guest)
    assert not os.path.exists(path), 'the file was left'
    guest.virsh('save', path, *DIRECT)
    whole(path)
    daemon.virsh('restore', path, *DIRECT)
    goes_on(guest)


@test('libvirt: no room on the target', timeout=200)
def test_full(t):
    """After repeated failures the guest keeps running, the space is freed, and
    no descriptor is leaked except those that libvirt 11.3 passes and never
    removes.  These also prevent stock QEMU from freeing the space."""
    # Mounted before libvirtd starts, because it would not see it otherwise
    small = t.filesystem('ext4', 32 * MIB)
    daemon = libvirt(t)
    guest = domain(t, daemon)
    free = free_bytes(small)
    counts = []
    for i in range(6):
        code, said = guest.virsh('save', f'{small}/guest.save', *DIRECT,
                                 *CHANNELS[i % 2], check=False)
        assert code and 'no space left' in said.lower(), said
        assert guest.state() == 'running', guest.state()
        guest.wait_guest('tick', 2)
        assert free_bytes(small) >= free - MIB, 'the space is not given back'
        passed = sum(len(x['fds']) for x in guest.qmp('query-fdsets'))

        def count():
            qemu, libvirtd = open_in(daemon, guest)
            return qemu - passed, libvirtd
        counts.append(count())
    goes_on(guest)
    check_leaks(counts, count)
    guest.virsh('save', t.path('guest.save'), *DIRECT)
    daemon.virsh('restore', t.path('guest.save'), *DIRECT)
    goes_on(guest)


@test('libvirt: truncated images', quick=True, timeout=300)
def test_truncated(t):
    daemon = libvirt(t)
    path = t.path('guest.save')
    guest = domain(t, daemon)
    guest.virsh('save', path, *DIRECT)
    pages = next(b.pages_offset for b in image.blocks(path)
                 if b.name == b'pc.ram')
    for size in (pages + 64 * MIB, pages, 70000, 100):
        short = t.path('short.save')
        subprocess.run(['cp', '--sparse=always', path, short], check=True)
        os.truncate(short, size)
        code, said = daemon.virsh('restore', short, *DIRECT, check=False)
        assert code and said, f'{size} bytes: {said}'
        # libvirt itself detects that its own header is truncated
        assert ('is truncated' if size > 100 else 'domain XML') in said, said
        assert guest.state() == 'shut off', guest.state()
    daemon.virsh('restore', path, *DIRECT)
    goes_on(guest)


def waiting_xml(t, daemon, path):
    """Writes the XML of a saved domain, changed so that its QEMU waits for an
    image when it starts; returns its path.  The operator's page shows this."""
    _, text = daemon.virsh('save-image-dumpxml', path, '--security-info')
    text = text.replace('<domain ', f"<domain xmlns:qemu='{QEMU_XML}' ", 1)
    text = text.replace('</domain>', '<qemu:commandline>'
                        "<qemu:arg value='-incoming'/>"
                        "<qemu:arg value='defer'/>"
                        '</qemu:commandline></domain>')
    with open(t.path('waiting.xml'), 'w') as f:
        f.write(text)
    return f.name


@test('libvirt: instant restore', quick=True, timeout=200)
def test_instant(t):
    """libvirt cannot do it by itself, but leaves it to the operator.  When RAM
    is loaded, the domain can be saved as before."""
    need_userfaultfd()
    daemon = libvirt(t)
    path = t.path('guest.save')
    guest = domain(t, daemon)
    guest.virsh('save', path, *DIRECT)
    _, found = image.tool('info', path)
    daemon.virsh('create', waiting_xml(t, daemon, path), '--paused')
    guest.qmp('migrate-set-capabilities', {'capabilities': [
        {'capability': name, 'state': True}
        for name in ('mapped-ram', 'postcopy-ram', 'multifd')]})
    guest.qmp('migrate-set-parameters', {'direct-io': True})
    guest.qmp('migrate-incoming',
              {'uri': f'file:{path},offset={found["offset"]}'})
    wait_status(guest, 'postcopy-active', 'completed')
    guest.virsh('resume')
    goes_on(guest)
    told = wait_status(guest, 'completed')['direct-io']
    assert told['active'] and told['instant']['total'] > 32 * MIB, told
    assert 'reason' not in told['instant'], told
    os.unlink(path)
    guest.virsh('save', path, *DIRECT)
    daemon.virsh('restore', path, *DIRECT)
    goes_on(guest)


@test('libvirt: an image without the mark that libvirt makes last',
      quick=True, timeout=200)
def test_incomplete(t):
    """As after a crash of the host between QEMU's syncs and libvirt's mark.
    The operator's page says how to set the mark."""
    daemon = libvirt(t)
    path = t.path('guest.save')
    guest = domain(t, daemon)
    guest.virsh('save', path, *DIRECT)
    with open(path, 'r+b') as f:
        assert f.read(16) == b'LibvirtQemudSave'
        f.seek(0)
        f.write(b'LibvirtQemudPart')
    code, said = daemon.virsh('restore', path, *DIRECT, check=False)
    assert code and 'save image is incomplete' in said, said
    assert guest.state() == 'shut off', guest.state()
    code, found = image.tool('verify', path)
    assert code == 3 and not found['problems'], found
    assert 'incomplete' in found['unfinished-because'], found
    subprocess.run(['sh', '-c', 'printf LibvirtQemudSave | dd of="$1" bs=16 '
                                'count=1 conv=notrunc', 'sh', path],
                   check=True, capture_output=True)
    whole(path)
    daemon.virsh('restore', path, *DIRECT)
    goes_on(guest)


@test('libvirt: images of stock QEMU, both ways', timeout=300)
def test_stock(t):
    if not t.config.stock:
        raise Skip('no stock QEMU: give --stock')
    daemon = libvirt(t)
    path = t.path('guest.save')
    pair = (t.config.stock, t.config.ours)
    guest = domain(t, daemon, pair[0])
    for saver, loader in (pair, pair[::-1]) * 2:
        channels = CHANNELS[saver is pair[0]]
        guest.virsh('save', path, *DIRECT, *channels)
        whole(path)
        daemon.virsh('restore', path, *DIRECT, '--xml',
                     guest.describe(loader))
        running = os.readlink(f'/proc/{guest.pid}/exe')
        assert os.path.realpath(loader.path) == running, running
        goes_on(guest)


@test('libvirt: save_image_format raw', timeout=200)
def test_raw(t):
    """A plain stream, which libvirt has always written, still works."""
    daemon = libvirt(t, image='raw')
    path = t.path('guest.save')
    guest = domain(t, daemon)
    for options in (DIRECT, ()):
        guest.virsh('save', path, *options)
        daemon.virsh('restore', path, *options)
        goes_on(guest)
    code, _ = image.tool('info', path)
    assert code == 2, 'this is no raw image'
    code, said = guest.virsh('save', path, '--parallel-channels', '4',
                             check=False)
    assert code and 'sparse' in said, said
    goes_on(guest)


@test('libvirt: a block device as the target', timeout=300,
      stock='failed to truncate')
def test_device(t):
    """Save to a partition or volume instead of a file."""
    device = t.loop(t.path('disk'), 512 * MIB)
    daemon = libvirt(t)
    guest = domain(t, daemon)
    for channels in CHANNELS:
        guest.virsh('save', device, *DIRECT, *channels)
        daemon.virsh('restore', device, *DIRECT, *channels)
        told_direct(guest)
        goes_on(guest)
    # libvirt does not remove a target that existed before
    small = t.loop(t.path('small'), 32 * MIB)
    code, said = guest.virsh('save', small, *DIRECT, check=False)
    assert code and 'RAM alone needs' in said, said
    assert os.path.exists(small), f'{small} was removed'
    goes_on(guest)
