# SPDX-License-Identifier: GPL-2.0-or-later
"""Each message that the operators' page explains must exist in the sources, so
that a search for it succeeds, and the page must explain each error that the
sources report."""

import os
import re
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
PAGE = os.path.join(ROOT, 'docs', 'system', 'direct-io.rst')
# QEMU's own messages that an operator is likely to see first
OF_THE_BASE = {"Could not open '...': ...", "Could not create '...': ...",
               'Could not dup FD ...: ...',     # from 10.0 on
               'Capability mapped-ram is off, but received capability is on'}
# Errors that the page need not explain, and why
UNEXPLAINED = {
    'this host has no pread() and pwrite()': 'not on Linux',
    'this host has no fdsets': 'not on Linux',
    'userfaultfd is not available on this host': 'not on Linux',
    "...: the file is not seekable; capability 'mapped-ram' needs a file that "
    'is': 'the transport refuses such files earlier',
    '...: a depth of ... requests is too much, the limit is ...':
        'the parameter is checked when it is set',
    "Parameter 'x-direct-io-depth' expects a value between 1 and":
        'says what to set',
    'x-direct-io-depth': 'the same; the base has the rest of the message',
    '... is not a seekable file': 'the transport refuses such files earlier',
    "Capability 'mapped-ram' has no effect yet":
        'a later commit of the series removes it',
    "Capability 'mapped-ram' is not compatible with capability 'multifd'; "
    'turn one of them off': 'a later commit of the series removes it',
    '... does not support positioned I/O': "a caller's mistake",
    '...: negative offset ...': "a caller's mistake",
    '...: unable to get the flags of the descriptor':
        'impossible with an open descriptor',
}

_LITERAL = r'"(?:[^"\\\n]|\\.)*"'
_RUN = re.compile(rf'{_LITERAL}(?:\s*(?:{_LITERAL}|\bPRI[a-zA-Z0-9]+\b'
                  rf'|\b[A-Z][A-Z0-9_]+\b))*')
_MACRO = re.compile(rf'#define ([A-Z][A-Z0-9_]+) ({_LITERAL})')
_DIRECTIVE = re.compile(r'%[-+ #0]*\d*(?:\.\d+)?(?:hh|h|ll|l|z|j|t)?[a-zA-Z]')
_REPORT = re.compile(r'\b(?:error_setg|error_setg_errno|error_prepend'
                     r'|error_report|error_reportf_err|warn_report|info_report'
                     r'|queue_fail|qio_channel_file_io_error)\(')
_TOKEN = re.compile(rf'{_LITERAL}|[(),;]')


def sources():
    """The text of all C files that the series adds, and the lines that it adds
    to existing ones."""
    for directory in ('io', 'migration', 'util', 'compat', 'include'):
        for where, _, names in os.walk(os.path.join(ROOT, directory)):
            for name in names:
                if name.endswith(('.c', '.h', '.c.inc')):
                    with open(os.path.join(where, name),
                              encoding='utf-8') as f:
                        yield f.read()
    for where, _, names in os.walk(os.path.join(ROOT, 'series')):
        for name in names:
            if name.endswith('.patch'):
                with open(os.path.join(where, name), encoding='utf-8') as f:
                    yield ''.join(line[1:] for line in f
                                  if line.startswith('+'))


def constants(text, macros):
    """The string constants of a text, with ... in place of format
    directives."""
    for run in _RUN.finditer(text):
        parts = []
        for part in re.findall(rf'{_LITERAL}|\b[A-Z]\w+\b', run.group()):
            if part.startswith('PRI'):
                # The previous literal ends with the % of the directive
                parts.append('u')
            else:
                parts.append(macros.get(part, part).strip('"'))
        yield same(_DIRECTIVE.sub('...', ''.join(parts)))


def messages():
    """All string constants."""
    return {message for text in sources()
            for message in constants(text, dict(_MACRO.findall(text)))}


def errors():
    """The formats of all errors and warnings that are reported; those without
    words, such as "'...': ", are left out."""
    return {message for text in sources()
            for call in _REPORT.finditer(text)
            for message in constants(format_of(text, call.end()),
                                     dict(_MACRO.findall(text)))
            if len(re.findall('[A-Za-z]{2,}', message)) > 1}


def format_of(text, start):
    """The first argument with a string, of the call whose arguments begin at
    `start`; or '' if there is none."""
    depth, begin = 0, start
    for token in _TOKEN.finditer(text, start):
        if token.group() == '(':
            depth += 1
        elif token.group() in (')', ',', ';'):
            if depth == 0 or token.group() == ';':
                if '"' in text[begin:token.start()] or token.group() != ',':
                    return text[begin:token.start()]
                begin = token.end()
            elif token.group() == ')':
                depth -= 1
    return ''


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

    def test_errors_are_explained(self):
        quotes = {same(q) for q in quoted()}
        unexplained = {same(message) for message in UNEXPLAINED}
        found = errors()
        self.assertGreater(len(found), 80)
        self.assertEqual(unexplained - found, set(),
                         'no source reports these any more')
        for message in found - unexplained:
            with self.subTest(message):
                # The page may omit a variable beginning or end
                self.assertTrue(
                    any(message in quote or quote in message and
                        2 * len(quote) > len(message) for quote in quotes),
                    f'the page does not explain "{message}"')


if __name__ == '__main__':
    unittest.main()
