# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the unittest tests of a directory and write TAP, like the other tests of
this repository: `python3 -m qdio.tap DIRECTORY`."""

import sys
import unittest


class _Result(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.number = 0

    def _line(self, ok, test, remark='', said=''):
        self.number += 1
        print(f"{'ok' if ok else 'not ok'} {self.number} - {test.id()}"
              f"{remark}", flush=True)
        for line in said.splitlines():
            print('# ' + line)

    def addSuccess(self, test):
        self._line(True, test)

    def addSkip(self, test, reason):
        self._line(True, test, f' # SKIP {reason}')

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._line(False, test, said=self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self._line(False, test, said=self.errors[-1][1])

    def addSubTest(self, test, subtest, err):
        if err:
            super().addSubTest(test, subtest, err)
            said = (self.errors + self.failures)[-1][1]
            self._line(False, subtest, said=said)


def main(directory):
    result = _Result()
    tests = unittest.defaultTestLoader.discover(directory)
    print(f'1..{tests.countTestCases()}')
    tests.run(result)
    return 0 if result.wasSuccessful() and result.number else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
