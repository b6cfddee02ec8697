# SPDX-License-Identifier: GPL-2.0-or-later
"""The table in series/README.md: the status of each slug on each base, and
what upstream has."""

import os

FATES = ('ours', 'adapted', '-')


def _cells(line):
    return [cell.strip() for cell in line.strip().strip('|').split('|')]


def read(root):
    """(bases, {slug: {base: fate, ..., 'upstream': text}}); no bases if there
    is no such table."""
    path = os.path.join(root, 'series', 'README.md')
    bases, rows = [], {}
    try:
        with open(path, encoding='utf-8') as f:
            lines = [x for x in f if x.startswith('|')]
    except FileNotFoundError:
        return bases, rows
    for line in lines:
        cells = _cells(line)
        if cells[0] == 'slug' and cells[-1] == 'upstream':
            bases = cells[1:-1]
        elif bases and not cells[0].startswith('--'):
            rows[cells[0]] = dict(zip([*bases, 'upstream'], cells[1:]))
    return bases, rows


def complaints(root, series, bases):
    """A line for each thing that is missing or wrong in the table."""
    columns, rows = read(root)
    where = 'series/README.md'
    said = []
    if columns != bases:
        said.append(f"{where}: the table's bases are "
                    f"{', '.join(columns) or 'none'}, not {', '.join(bases)}")
        return said
    for slug in series.slugs:
        row = rows.pop(slug.name, None)
        if row is None:
            said.append(f"{where} has no row for '{slug.name}'")
            continue
        if not row.get('upstream'):
            said.append(f"{where}: '{slug.name}' does not say what upstream "
                        'has')
        for base in bases:
            fate = row.get(base)
            if fate not in FATES or (fate == '-') == slug.on(base):
                said.append(f"{where}: '{slug.name}' is '{fate}' on {base}; "
                            'make it ours, adapted, or - if it is not for it')
    said += [f"{where} has a row for '{name}', which is no slug"
             for name in rows]
    return said
