# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line."""

import argparse
import os
import re
import shutil

from lab.reserve import reporting

from .emulators import ENGINES
from .scenarios import SCENARIOS

PROGRAMS = ('ours', 'stock', 'base', 'exec', 'fio', 'scan')


def number_list(text):
    """"1,4" as [1, 4]: numbers of channels, each once."""
    numbers = sorted({int(word) for word in text.split(',')})
    if not all(1 <= n <= 255 for n in numbers):
        raise argparse.ArgumentTypeError(f"'{text}': channels are 1 to 255")
    return numbers


def choice_list(choices):
    def parse(text):
        words = text.split(',')
        for word in words:
            if word not in choices:
                raise argparse.ArgumentTypeError(
                    f"there is no '{word}'; choose from {', '.join(choices)}")
        return list(dict.fromkeys(words))
    return parse


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not positive")
    return number


def _parser():
    parser = argparse.ArgumentParser(
        prog='./run bench', formatter_class=argparse.RawTextHelpFormatter,
        description=(
            'Measures saves to files and restores: ours, stock QEMU, exec: '
            'with a direct dd, and fio.\nAll sides take turns in each round. '
            'Needs root (to drop the page cache).\n\n'
            'Scenarios: ' + ', '.join(SCENARIOS) + ', or all\n'
            '(default: random).'))
    add = parser.add_argument
    add('scenarios', nargs='*', metavar='SCENARIO')
    add('--quick', action='store_true',
        help='1 GiB, few sides, at most two minutes')
    add('--figures', action='store_true',
        help='measure the figures in RESULTS.md, in about 20 minutes\n'
        '(--minutes): writes figures.json and pictures to\n'
        'bench/results/BASE, and the tables to bench/RESULTS.md')
    add('--ram', type=positive, metavar='MIB', help='default 4096')
    add('--rounds', type=positive, metavar='N', help='default 5')
    add('--minutes', type=float, metavar='N',
        help='start no round that would end later')
    add('--channels', type=number_list, metavar='LIST', help='default 1,2,4,8')
    add('--engines', type=choice_list(('auto',) + ENGINES), metavar='LIST',
        help='of ' + ', '.join(('auto',) + ENGINES) + '\ndefault: auto, and '
        'each one that can be selected in the emulator')
    add('--modes', type=choice_list(('direct', 'buffered')), metavar='LIST',
        help='default direct,buffered')
    add('--sides', type=choice_list(PROGRAMS), metavar='LIST',
        help='only these, of ' + ', '.join(PROGRAMS))
    add('--skip', type=re.compile, metavar='REGEXP',
        help="skip sides whose names match, such as 'buffered, 8 ch'")
    add('--any-load', action='store_true',
        help='also count runs during which something else was busy')
    add('--dir', default=os.getcwd(), metavar='DIR',
        help='directory to save to, whose disk is measured (default: here)')
    add('--images', metavar='DIR',
        help='keep the images that are restored, for another run')
    add('--json', metavar='FILE', help='write all figures')
    add('--append', action='store_true',
        help='add to the figures in that file, and report all of them')
    add('--replace', action='store_true',
        help='the same, but drop what that file has of the same scenarios')
    add('--from', dest='source', metavar='FILE',
        help='measure nothing, report the figures in a file')
    add('--pictures', metavar='DIR', help='write pictures to this directory')
    add('--markdown', metavar='FILE', help='write the tables of RESULTS.md')
    add('--readme', metavar='FILE',
        help='insert the tables into this page, between its marks')
    add('--base', metavar='BASE',
        help="the base that ours is built on (default: the demo's)")
    # Added by ./run
    for name in ('--qemu', '--stock', '--stock-lib', '--base-qemu',
                 '--firmware'):
        add(name, default='', help=argparse.SUPPRESS)
    return parser


QUICK = {'ram': 1024, 'rounds': 3, 'minutes': 1.6, 'channels': [1, 4],
         'engines': ['auto'], 'modes': ['direct']}
RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'results')
FIGURES = {'minutes': 20, 'channels': [1, 8], 'engines': ['auto'],
           'readme': os.path.join(os.path.dirname(RESULTS), 'RESULTS.md')}


def figures_files(base):
    """The output files for the figures of a base."""
    where = os.path.join(RESULTS, base)
    return {'json': os.path.join(where, 'figures.json'), 'pictures': where}


def pieces(setting, reclaims=None):
    """What --figures measures, in order: scenarios, special settings, rounds.
    The last one but `reclaimed` gets the remaining time; that one is measured
    once if none is left, and only if the outer host takes memory back (None:
    find out).  Ours is compared with its base, built with the same options, or,
    if the base has no mapped-ram, with the distribution's QEMU."""
    if reclaims is None:
        reclaims = reporting()
    base = setting.base
    other = 'base' if base and base.has_mapped_ram else 'stock'
    return [(names, {'programs': ['ours', other, 'exec', 'fio'], **changes},
             rounds) for names, changes, rounds in
            (*PIECES, *(RECLAIMED if reclaims else ()))]


PIECES = (
    (['fresh'], {'channels': [1, 2, 4, 8]}, 3),
    (['backends', 'tmpfs', 'live'], {}, 2),
    (['instant'], {'programs': ['ours', 'stock']}, 2),
    (['start'], {'programs': ['ours']}, 9),
    (['slow'], {}, 1),
    (['zero'], {'programs': ['ours', 'scan']}, 1),
    (['bandwidth', 'stall'], {}, 1),
    (['tcp'], {'programs': []}, 3),
    (['half-zero-64k', 'half-zero-8k'],
     {'programs': ['ours', 'fio'], 'direct': [True]}, 2),
    (['sizes'], {'channels': [1]}, 1),
    (['random'], {'skip': re.compile('ours.*buffered|'
                                     '(stock|base).*buffered, 8')}, 5),
)
RECLAIMED = ((['reclaimed'], {'channels': [1, 2, 4, 8]}, 2),)
DEFAULT = {'ram': 4096, 'rounds': 5, 'minutes': None,
           'channels': [1, 2, 4, 8], 'engines': None,
           'modes': ['direct', 'buffered']}


def _fill(args, values):
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def parse(argv=None):
    """The options, with all defaults in place."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.figures or args.readme) and not args.base:
        parser.error('--figures and --readme need --base, whose figures they '
                     'are')
    if args.quick:
        _fill(args, QUICK)
    if args.figures:
        _fill(args, {**FIGURES, **figures_files(args.base)})
    _fill(args, DEFAULT)
    scenarios_given = bool(args.scenarios)
    names = args.scenarios or ['random']
    if names == ['all']:
        names = list(SCENARIOS)
    for name in names:
        if name not in SCENARIOS:
            parser.error(f"there is no scenario '{name}'; choose from "
                         f"{', '.join(SCENARIOS)}")
    args.scenarios = list(dict.fromkeys(names))
    # None: those of pieces()
    args.pieces = None if args.figures and not scenarios_given else \
        [(args.scenarios, {}, args.rounds)]
    args.append |= args.replace
    if args.append and not args.json:
        parser.error('--append and --replace need --json, the file to add to')
    return args


def check_system(args, fail):
    """Reports what is missing before anything is measured."""
    for option, what in (('qemu', 'the emulator to measure'),
                         ('base', 'what the emulator is built on')):
        if not getattr(args, option):
            fail(f'--{option} is needed, {what}; "./run bench" knows it')
    if os.geteuid():
        fail('must be root, to drop the page cache')
    if args.figures:
        os.makedirs(os.path.dirname(args.json), exist_ok=True)
    for path in (args.json, args.markdown, args.readme):
        where = os.path.dirname(os.path.abspath(path or ''))
        if not os.access(where, os.W_OK):
            fail(f"'{path}': there is no directory {where} to write to")
    for program in ('fio', 'dd'):
        if not shutil.which(program):
            fail(f'there is no {program} here: install the package that has '
                 'it (fio, coreutils)')
