# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests the parts of the benchmark that measure nothing."""

import contextlib
import ctypes
import errno
import io
import os
import re
import sys
import tempfile
import time
import unittest
import xml.dom.minidom
from contextlib import redirect_stderr
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__)))))

from bench import (conditions, instant, machine, measure, options, pictures,
                   probe, report, results, scenarios, sides, slowdisk, stats,
                   targets)

MIB = 1 << 20


def run(name, save, restore=1.0, scenario='random', data=1024 * MIB, **facts):
    """A run; `save` is seconds, or figures."""
    phases = {'save': save if isinstance(save, dict) else {'seconds': save},
              'restore': {'seconds': restore}}
    facts.setdefault('program', name.split()[0])
    return {'scenario': scenario, 'content': 'random', 'ram': 1024,
            'data': data, 'name': name, 'facts': facts, 'round': 0, **phases}


def direct(program, channels, save, **more):
    return run(f'{program} {channels} ch', save, program=program,
               channels=channels, direct=True, **more)


class Stats(unittest.TestCase):
    def test_rows_are_grouped(self):
        rows = stats.Rows([direct('ours', 1, 1.0), direct('ours', 4, 5.0),
                           direct('ours', 1, 3.0)])
        self.assertEqual([r.name for r in rows.rows],
                         ['ours 1 ch', 'ours 4 ch'])
        self.assertEqual(rows.rows[0].median('save'), 2.0)
        self.assertEqual(stats.best(rows.rows, 'save'), 2.0)
        found = stats.figures(rows.rows, 'save')
        self.assertEqual(stats.highest(found).median, 5.0)
        self.assertIsNone(stats.best([], 'save'))

    def test_engine_that_was_chosen_comes_first(self):
        runs = [direct('ours', 1, 9.0, engine='sync'),
                direct('ours', 1, 1.0, engine=None)]
        for i, one in enumerate(runs):
            one['name'] += str(i)
        self.assertEqual(stats.Rows(runs).ours('random', 'save')[0].name,
                         'ours 1 ch1')
        self.assertEqual(stats.Rows(runs[:1]).ours('random', 'save')[0].name,
                         'ours 1 ch0')


class Ratios(unittest.TestCase):
    @staticmethod
    def figure(name, *rounds, **more):
        """Of (session, round, seconds)."""
        runs = [{**direct(name, 1, seconds, **more), 'session': session,
                 'round': number} for session, number, seconds in rounds]
        return stats.Figure(stats.Rows(runs).rows[0], 'save')

    def test_rounds_are_paired(self):
        # A round in which all was slow changes nothing
        ours = self.figure('ours', (0, 0, 1.0), (0, 1, 5.0), (1, 0, 1.0))
        stock = self.figure('stock', (0, 0, 2.0), (0, 1, 10.0), (1, 0, 3.0),
                            (1, 1, 99.0))
        self.assertEqual(stats.ratio(stock, ours), (2.0, 2.0, 3.0, 3, True))
        self.assertEqual(stats.ratio(8, ours), (8.0, 1.6, 8.0, 3, True))
        self.assertIsNone(stats.ratio(None, ours))
        self.assertIsNone(stats.ratio(stock, None))

    def test_no_common_round(self):
        ours = self.figure('ours', (0, 0, 1.0), (0, 1, 3.0))
        for stock in (self.figure('stock', (1, 0, 4.0), (1, 1, 8.0)),
                      self.figure('stock', (0, 0, 4.0), (0, 1, 8.0),
                                  scenario='zero')):
            self.assertEqual(stats.ratio(stock, ours), (3, 3, 3, 0, False))

    def verdict_line(self, stock_session):
        runs = [{**direct(name, 1, {'seconds': 1.0, 'cpu': cpu}),
                 'session': session, 'round': number}
                for name, session, cpus in (('ours', 0, (1, 2)),
                                            ('stock', stock_session, (2, 6)))
                for number, cpu in enumerate(cpus)]
        rows = stats.Rows(runs)
        return next(x for x in report._verdict_table(rows).splitlines()
                    if 'save: CPU' in x), report.judgement(rows), \
            report._verdict_table(rows)

    def test_table(self):
        line, text, table = self.verdict_line(0)
        self.assertIn('| 2.50 (2.00-3.00) | reached |', line)
        self.assertNotIn('*', text)
        self.assertNotIn('quotient', table)

    def test_footnote(self):
        line, text, table = self.verdict_line(1)
        self.assertIn('| 2.67* | reached |', line)
        self.assertIn('\n* not measured in the same rounds', text)
        self.assertIn('\n\\* not measured in the same rounds', table)

    def test_rounds_of_emulators(self):
        runs = [direct('ours', 1, 1.0)] * 3 + [direct('stock', 1, 1.0)] * 2 + \
            [run('fio', 1.0)]
        self.assertEqual(stats.rounds(stats.Rows(runs).rows), 2)
        self.assertEqual(stats.rounds(stats.Rows(runs[-1:]).rows), 1)

    def test_sides_are_chosen_by_their_medians(self):
        low = self.figure('a', (0, 0, 1.0), (0, 1, 9.0), (0, 2, 2.0))
        high = self.figure('b', (0, 0, 3.0), (0, 1, 3.0), (0, 2, 3.0))
        self.assertIs(stats.lowest([high, low]), low)
        self.assertIs(stats.highest([high, low]), high)
        self.assertIsNone(stats.lowest([]))


class Targets(unittest.TestCase):
    def verdict(self, runs, word):
        found = [v for v in targets.verdicts(stats.Rows(runs))
                 if word in v.text]
        self.assertEqual(len(found), 1, word)
        return found[0]

    def test_save_rate_counts_the_worst_of_ours(self):
        fio = run('fio', 2.0, program='fio', final=False)
        runs = [fio, direct('ours', 1, 2.0), direct('ours', 8, 4.0)]
        verdict = self.verdict(runs, 'save: rate')
        self.assertEqual(verdict.value, 0.5)
        self.assertFalse(targets.reached(verdict))
        self.assertTrue(targets.reached(self.verdict(runs[:2], 'save: rate')))

    def test_saves_are_compared_with_the_faster_fio(self):
        final = run('fio f', 1.0, program='fio', final=True)
        fresh = run('fio', 2.0, program='fio', final=False)
        ours = direct('ours', 1, 4.0)
        for runs, value in (([final, ours], 0.25), ([fresh, ours], 0.5),
                            ([fresh, final, ours], 0.25)):
            self.assertEqual(self.verdict(runs, 'save: rate').value, value)
            line = next(x for x in report.tables(stats.Rows(runs)).splitlines()
                        if x.startswith('  ours'))
            self.assertEqual(line.split()[-1], f'{value:.2f}')

    def test_random_is_measured_with_all_files(self):
        one = setting()
        changes = next(changes for names, changes, _ in options.PIECES
                       if names == ['random'])
        names = [t.side.name for t in
                 scenarios.plan(['random'], one.but(**changes))]
        self.assertIn('fio, file of final size', names)

    def test_resources_count_the_worst_round(self):
        runs = [direct('ours', 2, {'seconds': 1, 'cached': c * MIB,
                                   'memory': 8 * MIB, 'qmp': 0.01})
                for c in (1, 9)]
        verdict = self.verdict(runs, 'save: most of the file')
        self.assertEqual(verdict.value, 9)
        self.assertFalse(targets.reached(verdict))
        self.assertEqual(self.verdict(runs, 'own memory').value, 4)
        self.assertAlmostEqual(self.verdict(runs, 'QMP').value, 10)

    def test_work_of_the_kernel_counts(self):
        def saved(program, **figures):
            return {**direct(program, 1, {'seconds': 1, **figures},
                             scenario='fresh'),
                    'restore': {'seconds': 1, 'cpu': 1}}

        text = 'save, 1 channel: CPU time of the whole machine'
        runs = [saved('ours', cpu=0.1, machine_cpu=0.4),
                saved('stock', cpu=0.9, machine_cpu=1.0)]
        self.assertEqual(self.verdict(runs, text).value, 2.5)
        # Earlier figures
        runs = [saved('ours', cpu=0.1), saved('stock', cpu=0.9)]
        self.assertFalse([v for v in targets.verdicts(stats.Rows(runs))
                          if text in v.text])

    def test_a_file_on_tmpfs_may_be_in_the_page_cache(self):
        runs = [direct('ours', 1, {'seconds': 1, 'cached': c * MIB},
                       scenario=scenario)
                for c, scenario in ((2, 'random'), (2048, 'tmpfs'))]
        self.assertEqual(self.verdict(runs, 'save: most of the file').value, 2)

    def test_the_start_is_compared_in_many_rounds_if_there_are_any(self):
        def started(scenario, ram, *times):
            return [{**run(f'ours {ram}', 1, scenario=scenario,
                           program='ours', instant=True), 'ram': ram,
                     'restore': {'running': time, 'first': 2 * time,
                                 'seconds': 1}}
                    for time in times]

        runs = started('instant', 1024, 0.01) + started('instant', 4096, 0.02)
        text = 'until the guest may run'
        self.assertEqual(self.verdict(runs, text).value, 2)
        runs += started('start', 1024, 0.01, 0.01, 0.03) + \
            started('start', 4096, 0.012, 0.011, 0.013)
        self.assertAlmostEqual(self.verdict(runs, text).value, 1.2)
        self.assertEqual(self.verdict(runs, 'first sign of').value, 0.024)
        self.assertAlmostEqual(self.verdict(runs, 'its first sign').value, 1.2)

    def test_numbers_of_channels(self):
        runs = [direct(program, channels, 1.0, scenario='tcp')
                for program in ('ours', 'base') for channels in (0, 1, 8)]
        for text in ('TCP, no channels: ', 'TCP, 1 channel: ',
                     'TCP, 8 channels: '):
            self.assertEqual(self.verdict(runs, text).value, 1)

    def test_bandwidth(self):
        for seconds, off in ((10.0, 0), (8.0, 25), (12.5, 20)):
            one = direct('ours', 1, seconds, scenario='bandwidth',
                         data=scenarios.LIMIT * 10)
            self.assertAlmostEqual(
                self.verdict([one], 'max-bandwidth').value, off)

    def test_slow_disk_compares_rates(self):
        ours = direct('ours', 1, 8.0, scenario='slow')
        stock = direct('stock', 1, 20.0, scenario='slow', legacy=False)
        stock['ram'] = 64
        verdict = self.verdict([ours, stock], "slow disk: rate, of stock's")
        self.assertEqual(verdict.value, 20 / 64 / (8 / 1024))

    def test_half_zero_is_compared_with_fio_on_the_same_runs(self):
        scenario = 'half-zero-64k'
        runs = [run('fio', 3.0, scenario=scenario, program='fio'),
                direct('ours', 1, 2.0, scenario=scenario),
                direct('ours', 8, 4.0, scenario=scenario)]
        self.assertEqual(self.verdict(runs, 'save of half zero').value, 0.75)

    def test_the_base_counts_as_stock(self):
        runs = [direct('ours', 1, {'seconds': 1, 'cpu': 1}),
                direct('base', 1, {'seconds': 1, 'cpu': 3})]
        self.assertEqual(self.verdict(runs, 'save: CPU time').value, 3)

    def test_nothing_is_said_of_what_was_not_measured(self):
        self.assertEqual(targets.verdicts(stats.Rows([run('fio', 1.0)])), [])


class Results(unittest.TestCase):
    def setUp(self):
        where = tempfile.TemporaryDirectory()
        self.addCleanup(where.cleanup)
        self.path = os.path.join(where.name, 'results.json')

    def test_comes_back(self):
        sessions = [{'machine': {'cpus': 2}, 'when': 'now',
                     'runs': [direct('ours', 1, 1.5)]},
                    {'machine': {}, 'when': 'later', 'runs': []}]
        results.save(self.path, sessions)
        self.assertEqual(results.load(self.path), sessions)

    def test_without(self):
        sessions = [{'when': 'x', 'runs': [{'scenario': 'fresh'},
                                           {'scenario': 'live'}]},
                    {'when': 'y', 'runs': [{'scenario': 'live'}]}]
        self.assertEqual(results.without(sessions, ['live']),
                         [{'when': 'x', 'runs': [{'scenario': 'fresh'}]}])
        self.assertEqual(len(sessions[0]['runs']), 2)

    def test_runs_that_were_disturbed(self):
        def one(machine_cpu, **more):
            return {**direct('ours', 1, {'seconds': 10, 'cpu': 1,
                                         'machine_cpu': machine_cpu}), **more}

        runs = [one(2), one(9), one(9, alone=False), one(9, scenario='slow'),
                one(9, scenario='slow', alone=True)]
        sessions = [{'machine': {'cpus': 2}, 'runs': []},
                    {'machine': {'cpus': 2}, 'runs': runs}]
        self.assertEqual(results.runs(sessions), [
            {**runs[i], 'session': 1} for i in (0, 2, 3)])
        sessions[1]['any_load'] = True
        self.assertEqual(len(results.runs(sessions)), 5)

    def test_figures_are_short(self):
        results.save(self.path, [{'runs': [run('a', 1 / 3)], 'when': 'x'}])
        self.assertEqual(results.runs(results.load(self.path))[0]['save'],
                         {'seconds': 0.3333})

    def test_other_files(self):
        for text in ('', '{}', '[]', '{"version": 99, "sessions": []}'):
            with open(self.path, 'w') as f:
                f.write(text)
            with self.assertRaises(results.Unusable):
                results.load(self.path)


class Report(unittest.TestCase):
    RUNS = [run('fio, fresh file', {'seconds': 2.0, 'cpu': 0.1},
                program='fio', final=False),
            direct('ours', 1, {'seconds': 1.0, 'cpu': 0.25,
                               'machine_cpu': 0.3, 'cached': MIB // 2}),
            direct('ours', 1, {'seconds': 3.0, 'cpu': 0.75,
                               'machine_cpu': 0.9, 'cached': MIB})]

    def test_table(self):
        text = report.tables(stats.Rows(self.RUNS))
        line = next(x for x in text.splitlines() if 'ours' in x)
        self.assertEqual(line.split(), ['ours', '1', 'ch', '2.00',
                                        '(1.00-3.00)', '0.50', '(0.25-0.75)',
                                        '0.60', '(0.30-0.90)', '1.0', '1.00'])
        self.assertNotIn('QMP', text)           # no row has that figure

    def test_title_of_reclaimed(self):
        runs = [direct('ours', 1, 1.0, scenario='reclaimed')]
        self.assertIn('Random RAM, restored into memory that the outer',
                      report.tables(stats.Rows(runs)))
        runs.append(direct('ours', 1, 1.0, scenario='fresh'))
        self.assertIn('The same, into memory that the outer',
                      report.tables(stats.Rows(runs)))

    def test_judgement(self):
        self.assertRegex(report.judgement(stats.Rows(self.RUNS)),
                         r'save: rate, .* at least 0.9 +1.00 +reached')

    def test_markdown(self):
        session = {'machine': {
            'cpus': 2, 'cpu': 'One', 'memory': 24 << 30, 'filesystem': 'ext4',
            'disk': {'kind': 'virtio'}, 'kernel': '6.1', 'fio': 'fio-3'}}
        text = report.markdown(stats.Rows(self.RUNS), [session])
        self.assertIn('2 CPUs (One), 24 GiB of memory, ext4 on a virtio', text)
        self.assertIn('| ours 1 ch | 2.00 (1.00-3.00) |', text)
        widths = {line.count('|') for line in text.splitlines()
                  if line.startswith('|')}
        self.assertEqual(widths, {5, 9})

    def test_figures_are_put_into_a_page(self):
        page = ''.join(f'a\n<!-- figures {base} -->\nold {base}\n{report.END}'
                       for base in ('7.2', '10.0')) + '\nb\n'
        for base in ('7.2', '10.0'):
            self.assertEqual(report.insert(page, 'new', base),
                             page.replace(f'old {base}', 'new'))
        with self.assertRaises(ValueError):
            report.insert('a\n', 'new', '7.2')

    def test_disturbance(self):
        runs = [direct('ours', 1, {'seconds': 2.0, 'cpu': 0.5,
                                   'machine_cpu': machine})
                for machine in (0.5, 2.5)]
        self.assertEqual(report.disturbance(stats.Rows(runs), 2), 0.25)
        self.assertIn('took 25%',
                      report.disturbance_text(stats.Rows(runs), 2))
        rows = stats.Rows([direct('ours', 1, 1.0)])
        self.assertIsNone(report.disturbance(rows, 2))
        self.assertEqual(report.disturbance_text(rows, 2), '')

    def test_pictures(self):
        found = pictures.draw(stats.Rows(self.RUNS))
        self.assertEqual(sorted(found), ['cache.svg', 'cpu.svg',
                                         'throughput.svg'])
        for svg in found.values():
            xml.dom.minidom.parseString(svg)
        # 1024 MiB in 2 s
        self.assertIn('>512<', found['throughput.svg'])
        self.assertEqual(found['throughput.svg'].count('<path'), 4)
        self.assertEqual(pictures.draw(stats.Rows([])), {})

    def test_labels_are_escaped(self):
        svg = pictures.draw(stats.Rows([run('a <b> & c', 1.0)]))
        self.assertIn('a &lt;b&gt; &amp; c', svg['throughput.svg'])


class Emulator:
    version = '1.0'

    def __init__(self, has_mapped_ram=True):
        self.has_mapped_ram = has_mapped_ram


def setting(programs=None, engines=(None,), channels=(1, 8), direct=(True,),
            base=None, skip=None):
    return scenarios.Setting(Emulator(), Emulator(), base, list(engines),
                             list(channels), list(direct), 4096, programs, skip)


class Conditions(unittest.TestCase):
    class Reserve:
        def __init__(self):
            self.said = []

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def hold(self, *mib):
            self.said.append(mib)

        def let_go(self):
            self.said.append('go')

    def setUp(self):
        self.reserve = self.Reserve()
        for where, name, value in (
                (conditions.reserve, 'Reserve', lambda: self.reserve),
                (conditions, 'drop_caches', lambda: None),
                (conditions.time, 'sleep', self.reserve.said.append)):
            patch = mock.patch.object(where, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def said(self, memory):
        with conditions.reserving():
            conditions.prepare(1000, memory)
            conditions.ready(1000, memory)
        return self.reserve.said

    def test_memory_is_used_beforehand(self):
        self.assertEqual(self.said('fresh'), [(1406, 0), (1406,), 'go'])

    def test_room_for_memory_that_is_used_at_the_start(self):
        self.assertEqual(self.said('touched'), [(1406, 1000), (1406,), 'go'])

    def test_reclaimed_memory(self):
        self.assertEqual(self.said('reclaimed'),
                         [(0,), conditions.RECLAIM_SECONDS])


class Selection(unittest.TestCase):
    def names(self, *scenario, **kw):
        return [t.side.name for t in scenarios.plan(scenario, setting(**kw))]

    def test_all_sides(self):
        names = self.names('random', engines=('io_uring', 'sync'),
                           direct=(True, False))
        self.assertEqual(names, [
            'fio, fresh file', 'fio, fresh file, huge pages',
            'fio, file of final size',
            'ours 1.0, direct, io_uring, 1 ch', 'ours 1.0, direct, sync, 1 ch',
            'stock 1.0, direct, 1 ch', 'ours 1.0, buffered, 1 ch',
            'stock 1.0, buffered, 1 ch', 'ours 1.0, direct, io_uring, 8 ch',
            'ours 1.0, direct, sync, 8 ch', 'stock 1.0, direct, 8 ch',
            'ours 1.0, buffered, 8 ch', 'stock 1.0, buffered, 8 ch',
            'exec 1.0, exec: direct dd'])

    def test_chosen_sides(self):
        self.assertEqual(self.names('random', programs=['ours', 'fio'],
                                    channels=(1,)),
                         ['fio, fresh file', 'fio, fresh file, huge pages',
                          'fio, file of final size',
                          'ours 1.0, direct, 1 ch'])

    def test_fio_does_the_same_runs_as_the_guest(self):
        task, = scenarios.plan(['half-zero-8k'], setting(programs=['fio']))
        said = task.side.amount('write', task.content, 4096)
        for word in ('--rw=write:8192', '--bs=8192', '--offset=4096',
                     f'--size={task.content.ram}M',
                     f'--io_size={task.content.ram << 19}'):
            self.assertIn(word, said)

    def test_skipped_sides(self):
        names = self.names('random', direct=(True, False),
                           skip=re.compile('fio|exec|buffered, 8'))
        self.assertEqual(len(names), 6)
        self.assertNotIn('ours 1.0, buffered, 8 ch', names)

    def test_base_takes_part_if_it_can(self):
        self.assertIn('base 1.0, direct, 1 ch',
                      self.names('random', base=Emulator()))
        self.assertNotIn('base 1.0, direct, 1 ch',
                         self.names('random', base=Emulator(False)))
        self.assertIn('base 1.0, buffered, no multifd',
                      self.names('tcp', base=Emulator(False)))

    def test_every_scenario_has_a_title_and_tasks(self):
        self.assertEqual(set(report.TITLES), set(scenarios.SCENARIOS))
        for name in scenarios.SCENARIOS:
            tasks = scenarios.plan([name], setting())
            self.assertTrue(tasks, name)
            self.assertEqual({t.scenario for t in tasks}, {name})
            sides = [(t.side.name, t.content.name) for t in tasks]
            self.assertEqual(len(sides), len(set(sides)), name)

    def test_order_keeps_all(self):
        tasks = list(range(7))
        seen = [scenarios.order(tasks, n) for n in range(5)]
        for one in seen:
            self.assertEqual(sorted(one), tasks)
        self.assertNotEqual(seen[0], seen[1])
        self.assertEqual(scenarios.order([], 3), [])

    def test_order_changes_sides(self):
        pair = [scenarios.order(['ours', 'base'], n)[0] for n in range(4)]
        self.assertEqual(sorted(pair), ['base', 'base', 'ours', 'ours'])
        seen = [scenarios.order(list('abcd'), n) for n in range(4)]
        first = [one.index('c') < one.index('d') for one in seen]
        self.assertEqual(sum(first), 2)

    def test_room(self):
        task = scenarios.plan(['random'], setting())[0]
        gib = 1 << 30

        def lacks(available, free, has_image=False):
            return measure.lacks(task, '/', has_image, available * gib,
                                 free * gib)

        self.assertIsNone(lacks(6.4, 11))
        self.assertIn('memory', lacks(6.2, 11))     # what is held
        self.assertIsNone(lacks(7, 11))
        self.assertIn('memory', lacks(5, 11))
        self.assertIn('space', lacks(7, 9))
        self.assertIsNone(lacks(7, 9, has_image=True))
        self.assertIn('space', lacks(7, 5, has_image=True))

    def test_a_busy_machine_is_noticed(self):
        class Side:
            works_alone = True
            name = 'side'

            def __init__(self, *busy):
                self.busy = list(busy)

            def run(self, place, content):
                return {'save': {'seconds': 10, 'cpu': 1,
                                 'machine_cpu': 1 + self.busy.pop(0)}}

        def result(side):
            task = scenarios.Task('fresh', side, None)
            with redirect_stderr(io.StringIO()):
                return measure.undisturbed(task, None, 2)

        side = Side(8, 1)
        self.assertEqual(result(side)['save']['machine_cpu'], 2)
        self.assertEqual(side.busy, [])
        self.assertIsNone(result(Side(8, 8, 8)))
        side = Side(8)
        side.works_alone = False
        self.assertIsNotNone(result(side))

    def test_limits_are_checked_as_well(self):
        for one in (sides.Fio(), sides.Scan(1), sides.Populate()):
            self.assertTrue(one.works_alone)

    def test_a_busy_machine_spoils_the_round(self):
        class Side:
            works_alone = True

            def __init__(self, name, *busy):
                self.name = name
                self.busy = list(busy)

            def facts(self):
                return {}

            def run(self, place, content):
                return {'save': {'seconds': 10, 'cpu': 1,
                                 'machine_cpu': 1 + self.busy.pop(0)}}

        content = scenarios.Content('random', 1)
        tasks = [scenarios.Task(scenario, side, content)
                 for scenario, side in (
                     ('random', Side('a', 0, 0)), ('fresh', Side('b', 0, 0)),
                     ('random', Side('c', 9, 9, 9, 0)),
                     ('random', Side('d', 0)))]
        runs = []
        with redirect_stderr(io.StringIO()), \
                mock.patch.object(measure, 'lacks', lambda *_: None), \
                mock.patch.object(measure, 'order', lambda tasks, _: tasks), \
                mock.patch.object(measure.os, 'cpu_count', lambda: 2):
            measure.run(tasks, mock.Mock(), 2, measure.Clock(None), runs)
        self.assertEqual([(run['round'], run['name']) for run in runs],
                         [(0, 'b'), (1, 'a'), (1, 'b'), (1, 'c'), (1, 'd')])

    def test_a_side_that_lacks_something_is_left_out(self):
        class Side(sides.Side):
            name = 'side'

            def run(self, place, content):
                with mock.patch.object(
                        sides, 'huge_pages',
                        lambda _: contextlib.nullcontext(False)):
                    with sides.pages_for(32):
                        self.fail('it went on')

        task = scenarios.Task('backends', Side(),
                              scenarios.Content('random', 1))
        runs = []
        with redirect_stderr(io.StringIO()) as said, \
                mock.patch.object(measure, 'lacks', lambda *_: None):
            measure.run([task], mock.Mock(), 1, measure.Clock(None), runs)
        self.assertEqual(runs, [])
        self.assertIn('left out, not 32 MiB of huge pages', said.getvalue())

    def test_memory_that_cannot_be_used(self):
        class Libc:
            def __init__(self, *_, **__):
                self.madvise = lambda *_: ctypes.set_errno(errno.ENOMEM) or -1

        Libc.madvise = None
        with mock.patch.object(sides.ctypes, 'CDLL', Libc), \
                mock.patch.object(sides, 'conditions'), \
                self.assertRaisesRegex(sides.Lacking, 'Cannot allocate'):
            sides.Populate().run(None, scenarios.Content('random', 4))

    def test_fio_without_io_uring(self):
        for why, engine in (('', 'io_uring'), ('no', 'libaio')):
            with mock.patch.object(sides, 'io_uring_error', lambda: why):
                self.assertEqual(sides.Fio().facts()['ioengine'], engine)

    def test_fio_counts_no_work_before_and_after_its_job(self):
        def run(argv, cwd, **_):
            # 100 ticks before the job, 50 during it
            for when, busy in (('prerun', 100), ('postrun', 150)):
                with open(f'{cwd}/limit.{when}.txt', 'w') as f:
                    f.write(f'cpu {busy} 0 0 7 0 0 0 0 0 0\n')
            return mock.Mock(stdout='note\n{"jobs": [{"job_runtime": 2000, '
                             '"usr_cpu": 5, "sys_cpu": 10}]}')

        with tempfile.NamedTemporaryFile() as f, \
                mock.patch.object(sides.subprocess, 'run', run), \
                mock.patch.object(sides.conditions, 'ready'):
            found = sides.Fio().job(f.name, 'write',
                                    scenarios.Content('random', 1))
        self.assertAlmostEqual(found['cpu'], 0.3)
        self.assertEqual(found['machine_cpu'], 50 / os.sysconf('SC_CLK_TCK'))

    def test_instant_restores_that_fail(self):
        vm = mock.Mock()
        vm.name = 'x'
        for said in ({}, {'status': 'active'}, {'status': 'completed'}):
            vm.migration.return_value = said
            self.assertEqual(instant.status(vm), said.get('status'))
        vm.migration.return_value = {'status': 'failed', 'error-desc': 'why'}
        for wait in (instant.Instant.resume, instant.Instant.watch_paused):
            with self.assertRaisesRegex(RuntimeError, 'x: restore failed: w'):
                wait(vm, 0)
        vm.raise_if_dead.side_effect = EOFError
        with self.assertRaises(EOFError):
            instant.Instant.resume(vm, 0)

    def test_clock(self):
        now = [100]
        clock = measure.Clock(2, lambda: now[0])
        self.assertTrue(clock.fits(120))
        now[0] = 200
        self.assertTrue(clock.fits(20))
        self.assertFalse(clock.fits(21))
        self.assertTrue(measure.Clock(None).fits(1e9))

    def test_reclaimed_is_like_fresh(self):
        found = [scenarios.plan([name], setting())
                 for name in ('fresh', 'reclaimed')]
        self.assertEqual(*[[t.side.name for t in tasks] for tasks in found])
        self.assertEqual([{t.side.memory for t in tasks[1:]}
                          for tasks in found], [{'fresh'}, {'reclaimed'}])

    def test_reclaimed_is_measured_where_there_is_such_a_host(self):
        names = [[piece[0] for piece in options.pieces(setting(), reclaims)]
                 for reclaims in (False, True)]
        self.assertNotIn(['reclaimed'], names[0])
        self.assertEqual(names[1], [*names[0], ['reclaimed']])

    def test_pieces_name_what_there_is(self):
        for base, other in ((None, 'stock'), (Emulator(False), 'stock'),
                            (Emulator(), 'base')):
            one = setting(base=base)
            for names, changes, rounds in options.pieces(one):
                tasks = scenarios.plan(names, one.but(**changes))
                self.assertTrue(tasks)
                self.assertGreater(rounds, 0)
            found = {t.side.facts()['program'] for t in tasks}
            self.assertEqual(found & {'stock', 'base'}, {other})


class Options(unittest.TestCase):
    def refused(self, *argv):
        with redirect_stderr(io.StringIO()) as said, \
                self.assertRaises(SystemExit):
            options.parse(argv)
        return said.getvalue()

    def test_defaults(self):
        args = options.parse([])
        self.assertEqual((args.ram, args.rounds, args.channels, args.modes),
                         (4096, 5, [1, 2, 4, 8], ['direct', 'buffered']))
        self.assertEqual(args.scenarios, ['random'])

    def test_quick_can_be_changed(self):
        args = options.parse(['--quick', '--ram', '64'])
        self.assertEqual((args.ram, args.rounds, args.minutes), (64, 3, 1.6))

    def test_figures_of_bases_lie_apart(self):
        for base in ('1.0', '2.0'):
            args = options.parse(['--figures', '--base', base])
            self.assertTrue(args.pictures.endswith(f'bench/results/{base}'))
            self.assertEqual(args.json, args.pictures + '/figures.json')

    def test_figures_have_pieces_of_their_own(self):
        def pieces(*argv):
            return options.parse(['--base', '7.2', *argv]).pieces

        self.assertIsNone(pieces('--figures'))
        self.assertEqual(pieces('--figures', 'slow', '--rounds', '2'),
                         [(['slow'], {}, 2)])
        self.assertEqual(pieces(), [(['random'], {}, 5)])

    def test_lists(self):
        args = options.parse(['slow', 'slow', '--channels', '8,1,8',
                              '--sides', 'ours,fio'])
        self.assertEqual((args.scenarios, args.channels, args.sides),
                         (['slow'], [1, 8], ['ours', 'fio']))
        self.assertEqual(options.parse(['all']).scenarios,
                         list(scenarios.SCENARIOS))

    def test_replace(self):
        args = options.parse(['--replace', '--json', 'x.json'])
        self.assertTrue(args.append)
        self.assertIn('--json', self.refused('--replace'))

    def test_nonsense(self):
        self.assertIn("no scenario 'fast'", self.refused('fast'))
        self.assertIn("no 'uring'", self.refused('--engines', 'uring'))
        self.assertIn('1 to 255', self.refused('--channels', '0'))
        self.assertIn('not positive', self.refused('--ram', '0'))
        self.assertIn('--json', self.refused('--append'))
        for argv in (['--figures'], ['--readme', 'RESULTS.md']):
            self.assertIn('need --base', self.refused(*argv))


class Probe(unittest.TestCase):
    def setUp(self):
        self.file = tempfile.NamedTemporaryFile(dir=os.path.dirname(
            os.path.abspath(__file__)))
        self.addCleanup(self.file.close)
        self.file.write(bytes(1 << 16))
        self.file.flush()

    def test_figures(self):
        self.assertEqual(probe.figures([3, 1, 2]),
                         {'probe-median': 2, 'probe-p99': 2})
        self.assertEqual(probe.figures([]), {})

    def test_process(self):
        one = probe.Probe(self.file.name)
        one.begin()
        time.sleep(0.2)
        one.close()
        one.close()
        found = one.figures()
        self.assertLess(0, found['probe-median'])
        self.assertLessEqual(found['probe-median'], found['probe-p99'])

    def test_process_that_never_begins(self):
        one = probe.Probe(self.file.name)
        one.close()
        self.assertEqual(one.figures(), {})

    def test_process_that_hardly_runs(self):
        one = probe.Probe(self.file.name)
        one.begin()
        self.assertIn('probe-p99', one.figures())

    def test_sigterm(self):
        one = probe.Probe(self.file.name)
        one.begin()
        time.sleep(0.1)
        one._process.terminate()
        one._process.wait()
        one.close()
        self.assertIn('probe-p99', one.figures())


class Live(unittest.TestCase):
    def side(self, seconds, rate=64 * 4096 * 10):
        """A guest whose rounds take seconds(pause)."""
        emulator = Emulator()
        emulator.path = str(id(self))

        class Side(sides.Live):
            COSTS = {}
            booted = []

            def boot(self, place, ram, pause):
                self.booted.append(pause)
                vm = mock.Mock()
                vm.pause, vm.ram = pause, ram
                return vm

            def round_seconds(self, vm):
                return seconds(vm)

        return Side('ours', emulator, 1, True, rate=rate)

    def test_the_rate_is_corrected(self):
        # 0.1 s is wanted; in a larger guest an idle loop takes longer
        side = self.side(lambda vm: 0.05 + vm.pause * 1e-6 *
                         (1 if vm.ram == 128 else 1.5))
        vm, rate = side.at_rate(None, 1024)
        self.assertEqual(side.booted[2], 50000)
        self.assertGreater(len(side.booted), 3)
        self.assertLess(abs(rate / side.rate - 1), 0.1)
        # Once for an emulator
        side.at_rate(None, 1024)
        self.assertEqual(side.booted.count(side.LOOPS), 1)
        side.emulator.path = 'another'
        side.at_rate(None, 1024)
        self.assertEqual(side.booted.count(side.LOOPS), 2)

    def test_a_guest_that_cannot_be_faster(self):
        side = self.side(lambda vm: 0.2 + vm.pause * 1e-6)
        vm, rate = side.at_rate(None, 1024)
        self.assertEqual(side.booted[2:], [0])
        self.assertFalse(vm.kill.called)

    def test_the_rate_is_shown(self):
        one = direct('ours', 1, {'seconds': 1.0, 'downtime': 0.1, 'passes': 2,
                                 'file': MIB, 'dirtied': 99.6e6},
                     scenario='live')
        self.assertIn('| ours 1 ch | 100 (100-100) | 1.00 (1.00-1.00) |',
                      report._live_table(stats.Rows([one]).rows))


class Files(unittest.TestCase):
    """Parsing of the kernel's files."""

    def test_machine(self):
        mounts = '/dev/vda1 / ext4 rw 0 0\n/dev/sdb /srv xfs rw 0 0\n' \
                 'tmpfs /srvx tmpfs rw 0 0\n'
        self.assertEqual(machine.mount_of('/srv/a', mounts),
                         ('/dev/sdb', 'xfs'))
        self.assertEqual(machine.mount_of('/home', mounts),
                         ('/dev/vda1', 'ext4'))
        self.assertEqual(machine.cpu_model('x: y\nmodel name\t: A B\n'), 'A B')


class Disk(unittest.TestCase):
    """100 bytes pass per second, a rotation takes 4 seconds."""

    def setUp(self):
        self.model = slowdisk.Model(rate=100.0, seek=3.0, turn=4.0)

    def write(self, offset, size, arrived):
        return self.model.serve(offset, size, arrived, True)

    def read(self, offset, size, arrived):
        return self.model.serve(offset, size, arrived, False)

    def test_queued_writes_in_sequence(self):
        self.assertEqual(self.write(0, 100, 0), 1)
        self.assertEqual(self.write(100, 100, 0.5), 2)
        self.assertEqual(self.write(250, 50, 0.5), 3)       # over a gap
        self.assertEqual(self.model.seeks, 0)

    def test_a_write_that_comes_late_loses_a_rotation(self):
        self.write(0, 100, 0)
        self.assertAlmostEqual(self.write(100, 100, 1.5), 1 + 4 + 1)

    def test_elsewhere(self):
        # After the seek, at 3 s, byte 1000 = 2 rotations and a half is about
        # to come by: at 6 s
        self.assertAlmostEqual(self.write(1000, 100, 0), 6 + 1)
        # Back to byte 0, a half rotation further: done at 7, there at 10, and
        # 0 passes at 8, 12
        self.assertAlmostEqual(self.write(0, 100, 0), 12 + 1)
        self.assertEqual((self.model.seeks, self.model.requests), (2, 2))

    def test_reads_go_ahead(self):
        self.read(0, 100, 0)
        self.assertEqual(self.read(100, 100, 1.5), 2.5)
        self.assertEqual(self.read(300, 100, 9), 11)
        self.assertGreater(self.read(0, 100, 11), 11 + 3)

    def test_nearest_ahead_is_next(self):
        self.model.head = 50
        self.assertEqual(self.model.nearest([10, 90, 60, 5]), 2)
        self.assertEqual(self.model.nearest([10, 49, 5]), 2)

    def test_a_disk_without_a_model_costs_nothing(self):
        model = slowdisk.Model(rate=0, seek=0, turn=0)
        self.assertEqual(model.serve(1 << 30, 4096, 5, True), 5)
        self.assertEqual(model.serve(0, 4096, 4, False), 5)


if __name__ == '__main__':
    unittest.main()
