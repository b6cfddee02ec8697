# SPDX-License-Identifier: GPL-2.0-or-later
"""The time limit of `./run test`."""

import contextlib
import threading
import time

# When the limit is over, what runs may take so many more minutes
MARGIN = 6


class Clock:
    """Compares the time that work takes with the estimates.  Several threads
    may work."""

    def __init__(self, minutes=0, now=time.monotonic):
        """`minutes`: the limit; 0 for none."""
        self.limit = minutes
        self._now = now
        self._start = now()
        self._lock = threading.Lock()
        self._estimated = self._measured = 0

    def spent(self):
        return (self._now() - self._start) / 60

    def pace(self):
        """How much longer work takes here than estimated."""
        with self._lock:
            return max(1, self._measured / (self._estimated or 1))

    def enough_for(self, minutes, hopeful=False):
        """Whether work with this estimate ends before the limit, at the pace so
        far or, if `hopeful`, as estimated."""
        pace = 1 if hopeful else self.pace()
        return not self.limit or self.spent() + minutes * pace <= self.limit

    @contextlib.contextmanager
    def work(self, minutes):
        """Measure work with this estimate."""
        start = self._now()
        yield
        with self._lock:
            self._estimated += minutes
            self._measured += (self._now() - start) / 60

    @property
    def end(self):
        """When the last step must end, or None."""
        return self._start + 60 * (self.limit + MARGIN) if self.limit \
            else None
