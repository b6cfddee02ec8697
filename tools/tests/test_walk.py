# SPDX-License-Identifier: GPL-2.0-or-later
"""checkpatch.pl's complaint about new files is recognized in each wording."""

import os
import sys
import types
import unittest
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from qdio import walk                                   # noqa: E402

OLD = ('WARNING: added, moved or deleted file(s), does MAINTAINERS need '
       'updating?\n#12: \nnew file mode 100644\n')
NEW = ('WARNING: added, moved or deleted file(s):\n\n  io/one.c\n  io/two.c\n\n'
       'Does MAINTAINERS need updating?\n')
TOTAL = '\ntotal: 0 errors, 1 warnings, 9 lines checked\n'


class Checkpatch(unittest.TestCase):
    def said(self, output):
        git = types.SimpleNamespace(raw=lambda *_: b'', directory='/')
        done = types.SimpleNamespace(stdout=output.encode(), stderr=b'',
                                     returncode=1)
        with mock.patch.object(walk.subprocess, 'run', return_value=done):
            return walk.checkpatch(git, 'HEAD')

    def test_new_files(self):
        self.assertEqual(self.said(OLD + TOTAL), [])
        self.assertEqual(self.said(NEW + TOTAL), [])

    def test_something_else(self):
        error = 'ERROR: trailing whitespace\n#3: FILE: io/one.c:4:\n'
        for known in (OLD, NEW):
            for output in (known + '\n' + error, error + '\n' + known):
                self.assertEqual(self.said(output + TOTAL)[0].splitlines()[0],
                                 'ERROR: trailing whitespace')
                self.assertEqual(len(self.said(output + TOTAL)), 1)


if __name__ == '__main__':
    unittest.main()
