"""Covering a long range of bytes with several buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

B = TypeVar("B")


class Parts(Generic[B]):
    """A range of bytes in buffers of ``longest`` bytes each; the last may be shorter.

    A binding that no single buffer holds gets another buffer over the same bytes.
    """

    def __init__(self, nbytes: int, longest: int, granule: int, make: Callable[[int, int], B]) -> None:
        """``make(start, stop)`` makes a buffer of these bytes: multiples of ``granule``, as ``longest`` must be."""
        self._nbytes = nbytes
        self._longest = longest
        self._granule = granule
        self._make = make
        self.buffers: list[B] = []
        """Every buffer made so far; clear it to release them all."""
        self._others: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()

    def fill(self) -> None:
        """Make the buffers of the whole range. Raises what ``make`` raises."""
        for start in range(0, self._nbytes, self._longest):
            self.buffers.append(self._make(start, min(start + self._longest, self._nbytes)))

    def bind(self, offset: int, nbytes: int) -> tuple[B, int]:
        """The buffer that holds ``nbytes`` > 0 bytes at ``offset``, and their offset in it. Raises as ``make`` does."""
        part, start = divmod(offset, self._longest)
        if start + nbytes <= self._longest:
            return self.buffers[part], start
        start, stop = offset // self._granule * self._granule, -(-(offset + nbytes) // self._granule) * self._granule
        with self._lock:
            index = self._others.get((start, stop))
            if index is None:
                self.buffers.append(self._make(start, stop))
                index = self._others[start, stop] = len(self.buffers) - 1
            return self.buffers[index], offset - start
