# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules for imports between the repository's Python packages; part of
`./run lint`."""

import ast
import os

# package: those that it must not import
APART = {'lab': ('e2e', 'bench'), 'bench': ('e2e',), 'e2e': ('bench',)}


def complaints(root, paths):
    """A line for each forbidden import in the files `paths`."""
    for path in paths:
        package = path.split('/')[0]
        if package not in APART or not path.endswith('.py'):
            continue
        with open(os.path.join(root, path), 'rb') as f:
            text = f.read()
        try:
            names = list(_imported(root, path, ast.parse(text)))
        except (SyntaxError, ValueError) as err:
            yield f"'{path}' cannot be read as Python: {err}"
            continue
        for name in names:
            if name.split('.')[0] in APART[package]:
                yield (f"'{path}' may not import {name}: {package} has "
                       f'nothing to do with {name.split(".")[0]}; what both '
                       'need belongs to lab')
            elif package == 'e2e' and _is_test(path) and \
                    name.startswith('e2e.') and _is_test(name):
                yield (f"'{path}' may not import {name}: tests do not import "
                       'one another; what both need belongs to a module '
                       'without tests')


def _is_test(name):
    """Whether a path or a module is a test."""
    return name.removesuffix('.py').replace('/', '.').rpartition('.')[2] \
        .startswith('test_')


def _imported(root, path, tree):
    """The full names of the modules that a file imports."""
    here = path.split('/')[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = here[:len(here) + 1 - node.level] if node.level else []
            parts = start + (node.module.split('.') if node.module else [])
            if os.path.isdir(os.path.join(root, *parts)):
                # A name imported from a package may be a module
                yield from ('.'.join([*parts, alias.name])
                            for alias in node.names)
            else:
                yield '.'.join(parts)
