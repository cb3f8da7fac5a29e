"""Hazards between dispatches: two that touch the same byte, at least one of them writing it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator

from wasmetal.kernels.catalog import Access

Touch = tuple[Access, Hashable, int, int]
"""An access to a byte range: access, address space, start, stop. Ranges in different spaces never overlap."""


class RangeSet:
    """A set of integers kept as sorted, disjoint half-open ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._stops, strict=True)

    def add(self, start: int, stop: int) -> None:
        """Add every integer in [start, stop); adjacent and overlapping ranges are merged."""
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def meets(self, start: int, stop: int) -> bool:
        """Whether any integer in [start, stop) is in the set."""
        at = bisect_right(self._stops, start)
        return at < len(self._starts) and self._starts[at] < stop


class Footprint:
    """The byte ranges that some dispatches read and write."""

    def __init__(self) -> None:
        self._read: defaultdict[Hashable, RangeSet] = defaultdict(RangeSet)
        self._written: defaultdict[Hashable, RangeSet] = defaultdict(RangeSet)

    def __iter__(self) -> Iterator[Touch]:
        for access, sets in ((Access.READ, self._read), (Access.WRITE, self._written)):
            for space, ranges in sets.items():
                for start, stop in ranges:
                    yield access, space, start, stop

    def add(self, touches: Iterable[Touch]) -> None:
        """Add the accesses of another dispatch."""
        for access, space, start, stop in touches:
            if access is not Access.WRITE:
                self._read[space].add(start, stop)
            if access is not Access.READ:
                self._written[space].add(start, stop)

    def conflicts(self, touches: Iterable[Touch]) -> bool:
        """Whether there is a hazard between these dispatches and one with the accesses ``touches``."""
        return any(self._conflict(*touch) for touch in touches)

    def _conflict(self, access: Access, space: Hashable, start: int, stop: int) -> bool:
        if space in self._written and self._written[space].meets(start, stop):
            return True
        return access is not Access.READ and space in self._read and self._read[space].meets(start, stop)


class Hazards:
    """The byte ranges that have been read and written since the last barrier."""

    def __init__(self) -> None:
        self._since = Footprint()

    def needs_barrier(self, touches: Iterable[Touch]) -> bool:
        """Add the accesses of the next dispatch; return whether it needs a barrier, which clears the earlier ones."""
        touches = list(touches)
        hazard = self._since.conflicts(touches)
        if hazard:
            self._since = Footprint()
        self._since.add(touches)
        return hazard
