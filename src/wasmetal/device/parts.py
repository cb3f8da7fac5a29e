"""Showing a long range by several buffers, so that every binding is whole in one of them."""

from __future__ import annotations


class Parts:
    """A range of ``nbytes`` cut into parts of at most ``longest`` bytes, for bindings of at most ``binding`` bytes.

    Consecutive parts overlap by ``binding`` bytes, so that a binding is whole in the part that holds its first byte.
    ``longest`` and ``binding`` are multiples of the alignment that parts must begin at.
    """

    def __init__(self, nbytes: int, longest: int, binding: int) -> None:
        self._nbytes = nbytes
        self._longest = longest
        self._stride = longest - binding

    def __len__(self) -> int:
        beyond_first = max(0, self._nbytes - self._longest)
        return 1 - -beyond_first // self._stride

    def range(self, part: int) -> tuple[int, int]:
        """Where a part begins and ends."""
        start = part * self._stride
        return start, min(start + self._longest, self._nbytes)

    def holding(self, offset: int) -> int:
        """The part to bind from, for a binding that begins at an offset."""
        return min(offset // self._stride, len(self) - 1)
