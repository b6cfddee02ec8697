# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point: ./run bench --help."""

import os
import signal
import sys
import time

from lab import fs
from lab.vm import Emulator, NotQEMU

from . import conditions, machine, measure, pictures, report, results
from .emulators import probe
from .options import check_system, parse, pieces
from .place import Place
from .scenarios import Setting, plan
from .stats import Rows


def fail(text):
    sys.exit(f'bench: {text}')


def setting_of(args, place):
    """The emulators with their features, and the other settings of the
    sides."""
    def emulator(name, path, libs=''):
        return probe(Emulator(name, path, args.firmware, libs),
                     place.sockets) if path else None

    ours = emulator('ours', args.qemu)
    if not ours.has_mapped_ram:
        fail(f'{args.qemu} has no mapped-ram')
    # None: the emulator chooses
    engines = args.engines or ['auto', *ours.engines]
    wanted = [e for e in engines if e == 'auto' or e in ours.engines]
    for engine in set(engines) - set(wanted):
        measure.say(f'left out: this build can\'t be told to use {engine}')
    return Setting(ours, emulator('stock', args.stock, args.stock_lib),
                   emulator('base', args.base_qemu),
                   [None if e == 'auto' else e for e in wanted],
                   args.channels, [m == 'direct' for m in args.modes],
                   args.ram, args.sides, args.skip)


def session(args):
    return {'machine': machine.describe(args.dir), 'base': args.base,
            'when': time.strftime('%Y-%m-%d'), 'reserve': True,
            'any_load': args.any_load, 'runs': []}


def measure_all(args, setting, place, runs, keep):
    """Adds to `runs`, and calls keep() after each."""
    clock = measure.Clock(args.minutes)
    for names, changes, rounds in args.pieces or pieces(setting):
        tasks = plan(names, setting.but(**changes))
        if not tasks:
            fail('nothing is left to measure; name more --sides or --modes')
        measure.run(tasks, place, rounds, clock, runs, keep, args.any_load)


def measured(args):
    """Measures, and returns all sessions."""
    check_system(args, fail)
    fs.private_mounts()
    before = results.load(args.json) if args.append and \
        os.path.exists(args.json) else []
    if args.replace:
        before = results.without(before, args.scenarios)
    sessions = [*before, session(args)]
    place = Place(args.dir, args.images)

    def keep():
        if args.json:
            results.save(args.json, sessions)

    try:
        setting = setting_of(args, place)
        with conditions.reserving():
            measure_all(args, setting, place, sessions[-1]['runs'], keep)
    except KeyboardInterrupt:
        measure.say('interrupted; this is what there is:')
    finally:
        place.close()
    return sessions


def write(args, rows, figures):
    """Writes all requested output besides the report on the terminal."""
    if args.pictures:
        pictures.write(rows, args.pictures)
    if args.markdown:
        with open(args.markdown, 'w', encoding='utf-8') as f:
            f.write(figures)
    if args.readme:
        with open(args.readme, encoding='utf-8') as f:
            page = f.read()
        try:
            page = report.insert(page, figures, args.base)
        except ValueError as err:
            fail(f'{args.readme}: {err}')
        with open(args.readme, 'w', encoding='utf-8') as f:
            f.write(page)


def main():
    args = parse()
    # SIGTERM must not leave images, mounts and loop devices behind, either
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sessions = results.load(args.source) if args.source else \
            measured(args)
    except (results.Unusable, NotQEMU, OSError, RuntimeError) as err:
        fail(err)
    rows = Rows(results.runs(sessions))
    if not rows.rows:
        fail('nothing was measured')
    # First the files: whoever reads the output may close it early
    write(args, rows, report.markdown(rows, sessions))
    print(machine.sentence(sessions[-1]['machine']) + '\n')
    print(report.tables(rows))
    print(report.judgement(rows))
    print(report.disturbance_text(rows, sessions[-1]['machine']['cpus']))
    return 0


if __name__ == '__main__':
    sys.exit(main())
