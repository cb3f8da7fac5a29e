"""Covering a long range with several buffers."""

from __future__ import annotations


class Parts:
    """A range of ``nbytes`` split into parts of ``longest`` bytes; the last may be shorter."""

    def __init__(self, nbytes: int, longest: int) -> None:
        self._nbytes = nbytes
        self._longest = longest

    def ranges(self) -> list[tuple[int, int]]:
        """Start and stop of each part, in bytes."""
        starts = range(0, self._nbytes, self._longest)
        return [(start, min(start + self._longest, self._nbytes)) for start in starts]

    def holding(self, offset: int, nbytes: int) -> int | None:
        """Index of the part that holds all ``nbytes`` > 0 at ``offset``; None if they span several parts."""
        part = offset // self._longest
        return part if (offset + nbytes - 1) // self._longest == part else None
