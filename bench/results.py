# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of results: sessions, each with its machine, versions and runs."""

import json
import os

from .stats import disturbed

VERSION = 1


class Unusable(Exception):
    """The file is not a file of results."""


def load(path):
    """The sessions in a file."""
    try:
        with open(path, encoding='utf-8') as f:
            data = json.load(f)
        if data['version'] != VERSION:
            raise Unusable(f'{path}: has version {data["version"]} of the '
                           f'format, not {VERSION}; measure anew')
        return data['sessions']
    except (ValueError, KeyError, TypeError):
        raise Unusable(f'{path}: is no file of results') from None


def save(path, sessions):
    """Rewrites the file atomically."""
    with open(path + '.new', 'w', encoding='utf-8') as f:
        f.write(dump(sessions))
    os.replace(path + '.new', path)


def dump(sessions):
    """JSON with one line for each run, so that diffs are readable."""
    parts = []
    for session in sessions:
        head = json.dumps({k: v for k, v in session.items() if k != 'runs'},
                          indent=1, sort_keys=True)
        runs = ',\n'.join(json.dumps(_rounded(run), sort_keys=True)
                          for run in session['runs'])
        parts.append(f'{head[:-2]},\n "runs": [\n{runs}\n]\n}}')
    return f'{{"version": {VERSION}, "sessions": [\n' + ',\n'.join(parts) \
        + '\n]}\n'


def _rounded(value):
    """Rounds figures to four decimal places."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return value


def without(sessions, scenarios):
    """The sessions without the runs of some scenarios."""
    rest = [{**session, 'runs': [run for run in session['runs']
                                 if run['scenario'] not in scenarios]}
            for session in sessions]
    return [session for session in rest if session['runs']]


def runs(sessions):
    """The runs that count, each with the number of its session."""
    return [{**run, 'session': number}
            for number, session in enumerate(sessions)
            for run in session['runs']
            if session.get('any_load') or
            not disturbed(run, session.get('machine', {}).get('cpus', 1))]
