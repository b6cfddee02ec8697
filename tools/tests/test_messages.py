# SPDX-License-Identifier: GPL-2.0-or-later
"""Each message that the operators' page explains must exist in the sources, so
that a search for it succeeds."""

import glob
import os
import re
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
PAGE = os.path.join(ROOT, 'docs', 'system', 'direct-io.rst')
# QEMU's own messages that an operator is likely to see first
OF_THE_BASE = {"Could not open '...': ...", "Could not create '...': ..."}

_LITERAL = r'"(?:[^"\\\n]|\\.)*"'
_RUN = re.compile(rf'{_LITERAL}(?:\s*(?:{_LITERAL}|\bPRI[a-zA-Z0-9]+\b'
                  rf'|\b[A-Z][A-Z0-9_]+\b))*')
_MACRO = re.compile(rf'#define ([A-Z][A-Z0-9_]+) ({_LITERAL})')
_DIRECTIVE = re.compile(r'%[-+ #0]*\d*(?:\.\d+)?(?:hh|h|ll|l|z|j|t)?[a-zA-Z]')


def sources():
    """The text of all C files that the series adds, and the lines that it adds
    to existing ones."""
    for directory in ('io', 'migration', 'util', 'compat'):
        for path in glob.glob(os.path.join(ROOT, directory, '**', '*.c'),
                              recursive=True):
            with open(path, encoding='utf-8') as f:
                yield f.read()
    for path in glob.glob(os.path.join(ROOT, 'series', '*', '*.patch')):
        with open(path, encoding='utf-8') as f:
            yield ''.join(line[1:] for line in f if line.startswith('+'))


def messages():
    """All string constants, with ... in place of format directives."""
    found = set()
    for text in sources():
        macros = dict(_MACRO.findall(text))
        for run in _RUN.finditer(text):
            parts = []
            for part in re.findall(rf'{_LITERAL}|\b[A-Z]\w+\b', run.group()):
                if part.startswith('PRI'):
                    # The previous literal ends with the % of the directive
                    parts.append('u')
                else:
                    parts.append(macros.get(part, part).strip('"'))
            found.add(same(_DIRECTIVE.sub('...', ''.join(parts))))
    return found


def same(text):
    """Merge adjacent variable parts into one."""
    return re.sub(r'\.\.\.[. ]*', '...', re.sub(r'\\n', '', text)).strip()


def quoted():
    """The messages that the page quotes: the terms of its lists."""
    with open(PAGE, encoding='utf-8') as f:
        text = f.read()
    for _, line in re.findall(r'(?m)^( *)(``.*)\n(?=\1 +\S|\n\1 )',
                                   text):
        yield from re.findall(r'``(.+?)``(?:,|$| or )', line)


class Messages(unittest.TestCase):
    def test_quoted_messages_exist(self):
        known = messages()
        quotes = [q for q in quoted() if q not in OF_THE_BASE]
        self.assertGreater(len(quotes), 50)
        for quote in quotes:
            with self.subTest(quote):
                look = same(quote)
                self.assertTrue(
                    any(look in have or (len(have) > 8 and have == look)
                        for have in known),
                    f'no source has the message "{quote}"')


if __name__ == '__main__':
    unittest.main()
