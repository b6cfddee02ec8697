# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of `./run`."""

import argparse
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys

from . import config
from .host import NO_INSTALL
from .say import Failure, Fault, end_steps, note

HELP = """\
usage: ./run COMMAND [OPTION...]

  demo     build QEMU with the series, boot a guest, save and restore it
           buffered and direct, and compare the cost
           [--base B] [--emulator PATH|stock] [--verbose]
  test     a selection of the tests, on the base of the demo: 15 minutes
           [--all]: all parts on all bases, all end-to-end tests on 7.2:
           an hour
           [--base B] [--only PART,...] [--list]
  packages name the packages that are missing here, and install nothing

  bench    compare saves and restores with stock QEMU and fio
           [SCENARIO...] [--quick] [OPTION...]; "./run bench --help" lists
           them
  libvirt  compare virsh save and restore --bypass-cache with stock QEMU and
           ours  [--base B] [--ram MIB] [--rounds N] [--dir DIR]

  build    build one base with the series         --base B [--pristine]
  where    print the path of the built emulator   --base B
  install  install the emulator and its firmware  --base B --prefix DIR
           [--destdir DIR]
  deb      create Debian's source package with the series in debian/patches,
           ready for dpkg-buildpackage            --base B [--output DIR]
  fetch    fetch and unpack stock | kernel | firmware | libvirt, and print
           its path

  base B       fetch and import the source of a base   [--update]
  apply B      make the series' commits on a base      [--discard]
  refresh B    import commits into this repository     [--tree DIR] [--rev R]
  emit B       write patches for git am                [--output DIR]
               [--signoff 'NAME <ADDRESS>']
  release V    write all files of a release, reproducibly
               [--output DIR]
  walk B       build and test each commit alone        [--no-build] [SLUG...]
  lint         check the repository's rules
  canary [NAME]
               show which hooks apply to a QEMU that is not a base yet

  help     print this

Commands that take a base, except bench: --source PATH uses your own QEMU source
(a checkout or another directory, a tarball, a .dsc) in place of Debian's
package; test then needs --base.  All commands: --no-install installs no
packages, but lists the missing ones.  The demo's base is {demo} here.
B is one of: {bases}.
Sources, trees, builds and logs are kept in {cache}
(QDIO_CACHE, XDG_CACHE_HOME).
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Fault(f"{message}; see './run help'")


def _parser():
    parser = _Parser(prog='./run', add_help=False)
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')

    def command(name, base=None):
        sub = commands.add_parser(name, add_help=False)
        sub.add_argument('--source')
        if base == 'option':
            sub.add_argument('--base', dest='base_option')
        if base:
            sub.add_argument('base', nargs='?')
            if base != 'option':
                sub.add_argument('--base', dest='base_option')
        sub.add_argument('-h', '--help', action='store_true')
        return sub

    command('help')
    demo = command('demo', 'option')
    demo.add_argument('--emulator')
    demo.add_argument('--verbose', action='store_true')
    test = command('test', 'option')
    test.add_argument('--only', action='append')
    test.add_argument('--list', action='store_true')
    test.add_argument('--all', action='store_true')
    command('build', 'option').add_argument('--pristine', action='store_true')
    command('where', 'option')
    command('deb', 'option').add_argument('--output')
    install = command('install', 'option')
    install.add_argument('--prefix')
    install.add_argument('--destdir', default='')
    command('base', 'name').add_argument('--update', action='store_true')
    command('apply', 'name').add_argument('--discard', action='store_true')
    refresh = command('refresh', 'name')
    refresh.add_argument('--tree')
    refresh.add_argument('--rev')
    emit = command('emit', 'name')
    emit.add_argument('--output')
    emit.add_argument('--signoff')
    release = command('release')
    release.add_argument('version', nargs='?')
    release.add_argument('--output')
    walk = command('walk', 'name')
    walk.add_argument('slugs', nargs='*')
    walk.add_argument('--no-build', action='store_true')
    command('lint')
    command('packages')
    command('canary').add_argument('name', nargs='?')
    command('fetch').add_argument('what', choices=('stock', 'kernel',
                                                   'firmware', 'libvirt'))
    libvirt = command('libvirt', 'option')
    libvirt.add_argument('--ram', default='1024')
    libvirt.add_argument('--rounds', default='3')
    libvirt.add_argument('--dir')
    return parser


def _base_of(args):
    name = getattr(args, 'base_option', None) or getattr(args, 'base', None)
    if not name:
        names = ', '.join(config.base_names())
        raise Fault(f"which base? './run {args.command} BASE', BASE one of "
                    f'{names}')
    return config.get_base(name)


def _tree_of(args):
    from .bases import Tree
    return Tree(_base_of(args), args.source)


def _series():
    from .series import Series
    return Series(config.ROOT)


def _ready():
    """Do what every command that builds or fetches needs."""
    from .apt import install_needed
    config.check_space()
    install_needed()


def _prepared(args, update=False):
    """The tree of the named base, fetched if necessary."""
    tree = _tree_of(args)
    if not tree.exists() and not tree.source:
        from .apt import install_needed
        install_needed()
    tree.ensure(update)
    return tree


def cmd_base(args):
    tree = _tree_of(args)
    with tree.locked():
        _prepared(args, args.update)
    print(tree.src)


def cmd_apply(args):
    from .apply import apply
    tree = _tree_of(args)
    with tree.locked():
        tree = _prepared(args)
        commits = apply(_series(), tree.base.name, tree,
                        'discard' if args.discard else 'refuse')
    for slug, commit in commits:
        print(commit[:12], slug.name)
    note(f'{len(commits)} commits on QEMU {tree.base.name} in {tree.src}')


def cmd_refresh(args):
    from .refresh import refresh, refresh_applied
    tree = _tree_of(args)
    base = tree.base.name
    if args.tree and not os.path.isdir(args.tree):
        raise Fault(f'--tree {args.tree}: there is no such directory')
    if not args.tree and not tree.exists():
        raise Fault(f'there is no applied tree; "./run apply {base}" makes '
                    'one')
    if args.tree or args.rev:
        changed = refresh(config.ROOT, base, args.tree or tree.src, args.rev)
    else:
        with tree.locked():
            changed = refresh_applied(config.ROOT, tree)
    for path in changed:
        print(path)
    note(f'{len(changed)} files changed' if changed else 'nothing changed')


def cmd_emit(args):
    from .emit import check_signoff, emit, own_signoff
    tree = _tree_of(args)
    signoff = check_signoff(args.signoff) if args.signoff else own_signoff()
    with tree.locked():
        tree = _prepared(args)
        directory = os.path.abspath(args.output or os.path.join(
            config.cache(), 'emit', tree.name))
        if not args.output:
            shutil.rmtree(directory, ignore_errors=True)
        patches = emit(_series(), tree.base.name, tree, directory, signoff)
    for path in patches:
        print(path)
    note(f'on a pristine tree: git am {directory}/*.patch')


def cmd_release(args):
    from .release import release
    _ready()
    print(release(_series(), args.version, args.output))


def cmd_walk(args):
    from .report import Report
    from .walk import walk_builds, walk_patches
    series = _series()
    for name in args.slugs:
        if not series.slug(name):
            raise Fault(f"there is no slug '{name}'; series/order names them")
    if not args.no_build:
        _ready()
    tree = _tree_of(args)
    report = Report()
    with tree.locked():
        tree = _prepared(args)
        walk_patches(series, tree.base.name, tree, report)
        if not args.no_build:
            walk_builds(series, tree.base, tree, report, args.slugs)
    return report.close()


def cmd_lint(args):
    from .bases import Tree
    from .lint import Lint
    trees = [Tree(config.get_base(n)) for n in config.base_names()]
    known = [t for t in trees if t.exists()]
    for tree in trees:
        if not tree.exists():
            note(f'without QEMU {tree.base.name}: "./run base '
                 f'{tree.base.name}" fetches it')
    complaints = Lint(config.ROOT, known).run()
    for text in complaints:
        print(text)
    note(f'{len(complaints)} complaints' if complaints else 'nothing to '
         'complain about')
    return 1 if complaints else 0


def cmd_canary(args):
    from . import canary
    names = canary.canary_names(config.ROOT)
    name = args.name or (names[-1] if names else '')
    if name not in names:
        raise Fault(f"there is no canary '{name}'; bases/*.canary are: "
                    f"{', '.join(names)}")
    config.usable_cache()
    return canary.run(config.ROOT, _series(), name, args.source)


def cmd_build(args):
    from .apply import applied_tree
    from .build import EMULATOR, built, pristine
    _ready()
    tree = _tree_of(args)
    if args.pristine:
        with tree.locked():
            tree = _prepared(args)
            build = pristine(tree)
    else:
        tree = applied_tree(tree)
        with tree.locked():
            build = built(tree, [EMULATOR])
    note(f'built {build.emulator}')


def cmd_where(args):
    from .build import of_tree
    print(of_tree(_tree_of(args)).where())


def cmd_install(args):
    from .apply import applied_tree
    from .install import install, writable
    tree = _tree_of(args)
    if not args.prefix:
        raise Fault('install where? --prefix DIR names the directory that '
                    'gets bin/ and share/, such as /opt/qemu-direct-io')
    where = writable(args.prefix, args.destdir)
    _ready()
    applied_tree(tree)
    with tree.locked():
        print(install(tree, where))


def cmd_deb(args):
    from .deb import check_empty, make_package
    tree = _tree_of(args)
    output = os.path.abspath(args.output or os.path.join(
        config.cache(), 'deb', tree.name))
    if not args.output:
        shutil.rmtree(output, ignore_errors=True)
    check_empty(output)
    with tree.locked():
        tree = _prepared(args)
        unpacked, dsc = make_package(_series(), tree, output)
    print(dsc)
    note(f'to build it: cd {unpacked} && dpkg-buildpackage -us -uc -b')


def cmd_fetch(args):
    from . import fetch
    _ready()
    print(getattr(fetch, args.what)())


def cmd_demo(args):
    from .demo import demo
    from .host import demo_base
    if not args.base and not args.base_option:
        args.base = demo_base()
    return demo(args)


def cmd_bench(options):
    """Pass the benchmark's own options through unchanged; only provide what
    they require."""
    from . import fetch
    from .apply import applied_tree
    from .apt import install_needed
    from .bases import Tree
    from .build import EMULATOR, built, environment, pristine
    from .host import demo_base
    parser = _Parser(add_help=False)
    parser.add_argument('--base', default=demo_base())
    parser.add_argument('--emulator')
    parser.add_argument('--from', dest='source')
    args, rest = parser.parse_known_args(options)
    needs = ['--dir', os.getcwd()]
    if not {'-h', '--help'} & set(options) and not args.source:
        base = config.get_base(args.base)
        config.check_space()
        install_needed(('fio',))
        tree = Tree(base)
        ours = args.emulator
        if not ours:
            applied_tree(tree)
            with tree.locked():
                ours = built(tree, [EMULATOR]).emulator
        needs += ['--qemu', ours, '--stock', fetch.stock_emulator(),
                  '--stock-lib', fetch.stock_libraries(),
                  '--firmware', ':'.join(fetch.firmware_directories())]
        # Also the base itself, if it has mapped-ram or sockets are measured
        if base.mapped_ram or {'tcp', 'all', '--figures'} & set(rest):
            with tree.locked():
                tree.ensure()
                needs += ['--base-qemu', pristine(tree).emulator]
    source = ['--from', args.source] if args.source else []
    return subprocess.run([sys.executable, '-m', 'bench', '--base', args.base,
                           *needs, *source, *rest],
                          env=dict(environment(), PYTHONPATH=config.ROOT,
                                   PYTHONDONTWRITEBYTECODE='1')).returncode


def cmd_libvirt(args):
    """Show the cost of virsh save and restore, with stock QEMU and ours."""
    from . import fetch
    from .apply import applied_tree
    from .apt import install_needed
    from .bases import Tree
    from .build import EMULATOR, built, environment
    from .host import demo_base
    if os.geteuid():
        raise Fault('libvirtd and the page cache need root; run it as root')
    config.check_space()
    install_needed()
    name = args.base or args.base_option or demo_base()
    tree = applied_tree(Tree(config.get_base(name), args.source))
    with tree.locked():
        ours = built(tree, [EMULATOR]).emulator
    return subprocess.run(
        [sys.executable, '-m', 'e2e.libvirt', '--qemu', ours, '--stock',
         fetch.stock_emulator(), '--stock-lib', fetch.stock_libraries(),
         '--firmware', ':'.join(fetch.firmware_directories()),
         '--libvirt', fetch.libvirt(), '--ram', args.ram, '--rounds',
         args.rounds, '--dir', args.dir or os.getcwd()],
        env=dict(environment(), PYTHONPATH=config.ROOT,
                 PYTHONDONTWRITEBYTECODE='1')).returncode


def cmd_packages(args):
    """Print what root has to install; exit code 1 if there is anything."""
    from .apt import missing_packages
    from .host import this_host
    wanted = missing_packages(this_host())
    print('apt-get install --no-install-recommends ' + ' '.join(wanted)
          if wanted else 'nothing is missing')
    return 1 if wanted else 0


def cmd_test(args):
    from .testing import main as test
    return test(args)


def help_text():
    from .host import demo_base
    return HELP.format(demo=demo_base(), bases=', '.join(config.base_names()),
                       cache=config.cache())


def _command(argv):
    """Run a command.  Returns the exit code."""
    if not argv or argv[0] in ('help', '-h', '--help'):
        print(help_text(), end='')
        return 0 if argv else 2
    if 'cmd_' + argv[0] not in globals():
        raise Fault(f"there is no command '{argv[0]}'; './run help' lists "
                    'them')
    if '--no-install' in argv:
        argv = [x for x in argv if x != '--no-install']
        os.environ[NO_INSTALL] = '1'
    if argv[0] == 'bench':
        return cmd_bench(argv[1:])
    args = _parser().parse_args(argv)
    if args.help:
        print(help_text(), end='')
        return 0
    if args.source and not os.path.exists(args.source):
        raise Fault(f'--source {args.source}: there is no such file or '
                    'directory')
    return globals()['cmd_' + args.command](args) or 0


def main(argv):
    # On a signal, steps must terminate the processes that they started, even
    # in the background, where shells start programs with SIGINT ignored
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = _explained(argv)
        # Find out now, not at Python's exit, whether somebody reads it
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        end_steps()
        return _unread()


def _unread():
    """Drop the output that nobody reads, for example after "| head".  Returns
    the exit code that a shell shows for SIGPIPE."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
        os.dup2(null, stream.fileno())
    return 128 + signal.SIGPIPE


def _explained(argv):
    """Run a command, and print what is wrong in one line.  Returns the exit
    code."""
    try:
        return _command(argv)
    except BrokenPipeError:
        raise
    except Fault as err:
        print(f'run: {err}', file=sys.stderr)
        return 2
    except Failure as err:
        print(f'run: {err}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('run: interrupted', file=sys.stderr)
        return 130
    except OSError as err:
        what = 'make room, or set QDIO_CACHE to a directory on a larger disk' \
            if err.errno == errno.ENOSPC else \
            'check that it exists and that you may access it'
        print(f'run: {err.filename}: {err.strerror}; {what}', file=sys.stderr)
        return 2
