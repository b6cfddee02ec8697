# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks for failed saves: the error gives the reason, the guest continues,
and nothing is left that looks like an image."""

import contextlib
import errno
import hashlib
import os

from lab.qmp import QMPError
from lab.vm import Mode

ALL_MODES = [Mode(0), Mode(1), Mode(4), Mode(1, True), Mode(4, True)]
SOME_MODES = [Mode(0), Mode(4), Mode(4, True)]
DIRTY = {'dirty': 32}
NO_SPACE = ('No space left', 'too small', 'is full')
TOO_LARGE = ('File too large', 'RLIMIT_FSIZE', 'file size limit')


@contextlib.contextmanager
def case(*what):
    """Adds `what` to the message of any failure in the block, also if the
    test's time is over."""
    try:
        yield
    except BaseException as err:
        err.args = (f'{", ".join(map(str, what))}: {err}', *err.args[1:])
        raise


def check_says(said, *words):
    """Checks that an error message contains each of `words`; for a tuple, one
    of its elements is enough."""
    for word in words:
        choice = word if isinstance(word, tuple) else (word,)
        assert any(w.lower() in said.lower() for w in choice), \
            f'the error "{said}" does not say "{choice[0]}"'


def check_error(info, *words):
    """Checks that the save failed with an error that contains all of
    `words`."""
    assert info['status'] == 'failed', \
        f'the save {info["status"]}, should have failed'
    check_says(info.get('error-desc') or '', *words)


@contextlib.contextmanager
def expect_error(otherwise, *words):
    """Expects that a command in the block is refused with an error that
    contains all of `words`; `otherwise` describes what happened if it is
    not."""
    try:
        yield
    except QMPError as err:
        check_says(err.desc, *words)
    else:
        raise AssertionError(otherwise)


def cause(number):
    """The alternative texts for an error number."""
    return {errno.ENOSPC: NO_SPACE, errno.EFBIG: TOO_LARGE}.get(
        number, os.strerror(number))


def never_stopped(vm):
    """Checks that there was no STOP event, so the failure was detected while
    the guest was running."""
    if vm.events('STOP'):
        raise AssertionError('the guest was stopped before the error')


def check_leftover(t, path, mode=Mode(2), ram=128, **kwargs):
    """Checks that the remains of a failed save cannot be restored."""
    if not os.path.exists(path):
        return
    dst = t.vm(incoming=True, ram=ram, **kwargs)
    if dst.try_load(f'file:{path}', mode) is None:
        raise AssertionError('what the failed save left can be restored')
    dst.kill()


def good_save(t, vm, mode=Mode(4, True)):
    """Checks that a save to a working target succeeds now; leaves the VM
    running."""
    path = t.path('good-image')
    vm.save(f'file:{path}', mode)
    want = vm.ram_hash()
    vm.command('cont')
    t.restores(f'file:{path}', want, mode, ram=vm.ram).kill()
    os.unlink(path)


def each(modes, function):
    """Calls function(mode) for each mode; an error names the mode that
    failed."""
    for mode in modes:
        with case(mode):
            function(mode)


def fdset_case(t, vm, uri, mode, *fds):
    vm.add_fds(3, *fds)
    info = vm.try_save(uri, mode)
    for entry in vm.command('query-fdsets'):
        vm.command('remove-fd', {'fdset-id': entry['fdset-id']})
    return info


def file_hash(path):
    """SHA-256 of a file."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


def chain_of(n):
    """The value that the Linux guest must have computed after round n."""
    chain = '0'
    for i in range(1, n + 1):
        chain = hashlib.sha256(f'{i} {chain}'.encode()).hexdigest()
    return chain


def check_chain(vm):
    good = 0
    for line in vm.serial():
        fields = line.split()
        if fields[:1] == ['BAD']:
            raise AssertionError(line)
        if fields[:1] == ['count'] and len(fields) == 4:
            assert fields[3] == chain_of(int(fields[1])), \
                f'the Linux guest computes wrong: {line}'
            good += 1
    assert good, 'the Linux guest said nothing'
