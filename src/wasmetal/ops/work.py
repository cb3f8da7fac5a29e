"""How much work an op is, and how it is cut into slices.

The unit is the *operation*: roughly a multiply-add or a byte read or written, in which the overhead of rows, positions
and tiles is counted too. The costs are such that the CPU device and lavapipe do 10^9 operations a second or more on
each core, whatever the op and its shapes: mostly several times as many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

ROW = 1 << 16
"""Operations that a row costs besides its cells in kernels that look up its position and sequence."""
GROUP = 1 << 13
"""The same in other kernels with one group of threads per row."""
STRETCH = 32
"""Products of tiles cost as much as if k were this much longer."""
EXPONENTIAL = 16
"""Operations that an exponential costs."""


# Neither class is frozen: a frozen dataclass is three times as slow to create, and guests record many commands.


@dataclass(slots=True, eq=False)
class Part:
    """A part of an op: rows top..bottom and columns left..right."""

    top: int
    bottom: int
    left: int
    right: int
    work: int
    """In operations."""
    whole: bool = False
    """Whether it is all of the op."""

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.bottom - self.top

    @property
    def columns(self) -> int:
        """How many columns."""
        return self.right - self.left


class Rows(Protocol):
    """A tensor's rows."""

    def row_step(self) -> int:
        """After how many rows, at least, one is aligned as the first is."""


@dataclass(slots=True, eq=False)
class Work:
    """What an op computes: a matrix of cells of the same cost, which can be cut at multiples of the two steps."""

    rows: int
    columns: int
    cell: int
    """Operations per cell."""
    row: int = 0
    """Operations per row, besides."""
    row_step: int = 1
    column_step: int = 1
    aligned: Sequence[Rows] = ()
    """Rows are cut only where these are aligned."""

    @property
    def total(self) -> int:
        """Operations in all. Whole steps count."""
        return self._of(self.rows, self.columns)

    def cut(self, most: float) -> Iterable[Part]:
        """Cut into parts of at most ``most`` operations, if the steps allow it: whole rows, or else about square."""
        total = self.total
        return (Part(0, self.rows, 0, self.columns, total, True),) if total <= most else self._cut(most)

    def _cut(self, most: float) -> Iterator[Part]:
        columns, step = self.columns, self.row_step
        if self.rows > step:
            step = math.lcm(step, *[rows.row_step() for rows in self.aligned])
        if self._of(step, columns) > most:
            rows = max(step, min(self.rows, math.isqrt(int(most) // self.cell)))
            columns = max(1, int(most // self._of(rows, self.column_step))) * self.column_step
        rows = max(1, int(most // self._of(step, columns))) * step
        for top in range(0, self.rows, rows):
            bottom = min(top + rows, self.rows)
            for left in range(0, self.columns, columns):
                right = min(left + columns, self.columns)
                yield Part(top, bottom, left, right, self._of(bottom - top, right - left))

    def _of(self, rows: int, columns: int) -> int:
        rows = -(-rows // self.row_step) * self.row_step
        return rows * (self.row - columns // -self.column_step * self.column_step * self.cell)
