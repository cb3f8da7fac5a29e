"""The processor time that the host spends in one guest's calls."""

from __future__ import annotations

import time
from time import perf_counter

_LONG = 0.005
"""Seconds of one call after which the time is settled at once."""


class HostTime:
    """Counts the processor time of host functions, on the thread that calls them.

    To read a thread's processor time can cost as much as a short call. So only the clock is read at each call; every
    tick of the epoch, and after a long call, the thread's processor time is divided in the proportion of the clock's
    time inside of calls and outside.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Up to the last time that it was settled."""
        self.begun = 0.0
        """By the clock, when the call began that is under way; 0 between calls."""
        self._inside = self._since = self._processor = 0.0

    def __enter__(self) -> None:
        """A run begins, on a thread that has used no time yet."""
        self.begun = self._inside = self._processor = 0.0
        self._since = perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._inside:
            self.settle()

    def called(self, seconds: float) -> None:
        """A call took so long by the clock."""
        self.begun = 0.0
        self._inside += seconds
        if seconds > _LONG:
            self.settle()

    def look(self) -> None:
        """Settle, unless that was done a moment ago. Called on the thread of the run."""
        if perf_counter() - self._since > _LONG:
            self.settle()

    def settle(self) -> None:
        """Count what was used since the last time. Called on the thread of the run, also in the middle of a call."""
        now, processor = perf_counter(), time.thread_time()
        inside = self._inside
        if self.begun:
            inside += now - max(self.begun, self._since)
        if inside:
            share = inside / (now - self._since)
            self.seconds += min(share, 1.0) * max(processor - self._processor, 0.0)
        self._inside, self._since, self._processor = 0.0, now, processor
