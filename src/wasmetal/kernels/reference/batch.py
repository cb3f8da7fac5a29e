"""Batch metadata as kernels read it (``wasmetal.ops.batch``). Its words may be a guest's, so each is clamped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.catalog import NO_BATCH
from wasmetal.kernels.reference.scratch import steps
from wasmetal.kernels.reference.views import Bytes, words

_RUN = 4096
"""Most rows of a run."""
_REMEMBERED, _REMEMBERED_BYTES = 64, 4096
"""How many page tables a kernel remembers from one run to the next, and the size of the longest."""


def valid_rows(p: SimpleNamespace, batch: Bytes) -> Callable[[], int]:
    """How many of a kernel's rows are valid now: all of them without batch metadata."""
    if p.batch_offset == NO_BATCH:
        return lambda: int(p.rows)
    count, first, limit = words(batch, p.batch_offset, 1), p.batch_row, p.rows
    return lambda: min(max(count[0] - first, 0), limit)


class Rows:
    """The number of valid rows, and each one's position and sequence."""

    def __init__(self, p: SimpleNamespace, batch: Bytes):
        self.count = valid_rows(p, batch)
        """How many rows are valid now."""
        self._words = words(batch, p.batch_offset + 2 * p.batch_row, 2 + 2 * p.rows)
        self._pairs: NDArray[np.uint32] = np.frombuffer(self._words, np.uint32)[2:].reshape(-1, 2)

    def row(self, number: int) -> tuple[int, int]:
        """(position, sequence) of a row."""
        return self._words[2 + 2 * number], self._words[3 + 2 * number]

    def positions(self, which: slice) -> NDArray[np.int64]:
        """The positions of some rows."""
        return self._pairs[which, 0].astype(np.int64)

    def runs(self, count: int) -> Iterator[tuple[int, int, int, int]]:
        """The first ``count`` rows as runs of one sequence with consecutive positions, of at most _RUN rows.

        Each run is (first row, end, position of the first row, sequence).
        """
        for some in steps(count, _RUN):
            pairs = self._pairs[some].astype(np.int64)
            cuts = np.flatnonzero((np.diff(pairs[:, 0]) != 1) | (np.diff(pairs[:, 1]) != 0)) + 1
            first = 0
            for last in (*cuts.tolist(), len(pairs)):
                yield some.start + first, some.start + last, int(pairs[first, 0]), int(pairs[first, 1])
                first = last


class Sequences:
    """Maps positions of each sequence to slots of a pool of pages, each a run of ``page_size`` slots.

    A sequence has no more positions than its page table covers, and no more than the pool has slots.
    """

    def __init__(self, p: SimpleNamespace, sequences: Bytes):
        self.page_size: int = p.page_size
        self._entries: int = p.table_length
        self._longest = min(p.table_length, p.pages) * p.page_size
        self._last_sequence: int = p.sequence_count - 1
        self._last_page: int = p.pages - 1
        self._words = words(sequences, p.sequences_offset, p.sequence_count * (1 + p.table_length))
        self._seen: dict[int, tuple[bytes, int | None]] = {}

    def find(self, sequence: int) -> tuple[int, int]:
        """(page table, length) of a sequence, for the methods below."""
        at = min(sequence, self._last_sequence) * (1 + self._entries)
        return at + 1, min(self._words[at], self._longest)

    def slot(self, table: int, position: int) -> int:
        """The slot of one position, which is below the sequence's length."""
        page, within = divmod(position, self.page_size)
        return min(self._words[table + page], self._last_page) * self.page_size + within

    def slots(self, table: int, begin: int, end: int) -> slice | NDArray[np.int64]:
        """The slots of positions begin..end: a slice if the pages are consecutive, which saves a copy."""
        first = begin // self.page_size
        content = self._words[table + first : table + -(-end // self.page_size)].tobytes()
        begin, end = begin - first * self.page_size, end - first * self.page_size
        start = self._first_page(table + first, content)
        if start is not None:
            return slice(start * self.page_size + begin, start * self.page_size + end)
        positions = np.arange(begin, end)
        where: NDArray[np.int64] = self._clamped(content)[positions // self.page_size] * self.page_size
        return where + positions % self.page_size

    def _first_page(self, at: int, content: bytes) -> int | None:
        """The first of the pages that a part of a table names, if they are consecutive."""
        seen, first = self._seen.get(at, (b"", None))
        if seen != content:
            pages = self._clamped(content)
            first = int(pages[0]) if (np.diff(pages) == 1).all() else None
            if len(content) <= _REMEMBERED_BYTES:
                if len(self._seen) == _REMEMBERED:
                    self._seen.clear()
                self._seen[at] = content, first
        return first

    def _clamped(self, entries: bytes) -> NDArray[np.int64]:
        return np.minimum(np.frombuffer(entries, np.uint32).astype(np.int64), self._last_page)
