"""Copies between the host and device memory, through a staging buffer if the host cannot see that memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from wasmetal.device.backend import Allocation, AnyBackend, Range
from wasmetal.device.base import Bytes, MemoryKind
from wasmetal.device.rows import Rows

CHUNK = 32 << 20
"""Size of the staging buffer in bytes."""


class Copier:
    """Synchronous copies, callable from any thread. A lock serializes the staged ones."""

    def __init__(self) -> None:
        self._staging: Allocation | None = None
        self._lock = threading.Lock()

    def copy_in(self, backend: AnyBackend, allocation: Allocation, offset: int, data: Sequence[Bytes]) -> int:
        """Copy host bytes, one array after the other, into an allocation at ``offset``; return how many these were."""
        nbytes = sum(each.size for each in data)
        if allocation.address is not None:
            _join(data, allocation.view()[offset : offset + nbytes])
            return nbytes
        pieces = _pieces(data)
        for staged, there in self._chunks(backend, allocation, offset, nbytes):
            _join(next(pieces), staged.allocation.view()[: staged.nbytes])
            backend.copy(staged, there)
        return nbytes

    def copy_rows_in(
        self, backend: AnyBackend, allocations: Sequence[Allocation], offset: int, data: Sequence[Bytes]
    ) -> int:
        """Copy host arrays [len(allocations), n], row i of each, one after the other, into allocation i at ``offset``.

        Returns how many bytes these were.
        """
        rows = Rows(data)
        nbytes = rows.nbytes
        addresses = [each.address + offset for each in allocations if each.address is not None]
        if len(addresses) == len(allocations):
            rows.copy(0, addresses)
        elif 0 < nbytes <= CHUNK // 2:
            self._stage_rows(backend, [Range(allocation, offset, nbytes) for allocation in allocations], rows)
        else:
            for row, allocation in enumerate(allocations):
                self.copy_in(backend, allocation, offset, [each[row] for each in data])
        return len(allocations) * nbytes

    def copy_out(self, backend: AnyBackend, allocation: Allocation, offset: int, out: Bytes) -> None:
        """Copy an allocation's bytes at ``offset`` to the host."""
        if allocation.address is not None:
            out[:] = allocation.view()[offset : offset + out.size]
            return
        begin = 0
        for staged, there in self._chunks(backend, allocation, offset, out.size):
            backend.copy(there, staged)
            out[begin : begin + staged.nbytes] = staged.allocation.view()[: staged.nbytes]
            begin += staged.nbytes

    def copy_rows_out(
        self, backend: AnyBackend, allocations: Sequence[Allocation], offset: int, out: Sequence[Bytes]
    ) -> int:
        """The reverse of :meth:`copy_rows_in`: fill host arrays. Returns how many bytes these have."""
        rows = Rows(out)
        nbytes = rows.nbytes
        addresses = [each.address + offset for each in allocations if each.address is not None]
        if len(addresses) == len(allocations):
            rows.fill(0, addresses)
        elif 0 < nbytes <= CHUNK // 2:
            self._unstage_rows(backend, [Range(allocation, offset, nbytes) for allocation in allocations], rows)
        else:
            for row, allocation in enumerate(allocations):
                begin = offset
                for each in out:
                    self.copy_out(backend, allocation, begin, each[row])
                    begin += each.shape[1]
        return len(allocations) * nbytes

    def close(self) -> None:
        """Free the staging buffer."""
        self._staging = None

    def _stage_rows(self, backend: AnyBackend, targets: Sequence[Range[Allocation]], rows: Rows) -> None:
        """Rows go through one half of the staging buffer while the device copies those in the other."""
        nbytes = rows.nbytes
        at_once = CHUNK // 2 // nbytes
        begun: deque[Callable[[], None]] = deque()
        with self._taken(backend) as staging:
            assert staging.address is not None
            try:
                for number, first in enumerate(range(0, len(targets), at_once)):
                    if len(begun) == 2:
                        begun.popleft()()
                    some = targets[first : first + at_once]
                    begin = number % 2 * (CHUNK // 2)
                    staged = [Range(staging, begin + row * nbytes, nbytes) for row in range(len(some))]
                    rows.copy(first, [staging.address + each.offset for each in staged])
                    begun.append(backend.begin_copies(list(zip(staged, some, strict=True))))
            finally:
                while begun:
                    begun.popleft()()

    def _unstage_rows(self, backend: AnyBackend, sources: Sequence[Range[Allocation]], rows: Rows) -> None:
        """The device copies rows to one half of the staging buffer while those in the other are taken from there."""
        nbytes = rows.nbytes
        at_once = CHUNK // 2 // nbytes
        begun: deque[tuple[Callable[[], None], int, list[int]]] = deque()

        def take() -> None:
            wait, first, addresses = begun.popleft()
            wait()
            rows.fill(first, addresses)

        with self._taken(backend) as staging:
            assert staging.address is not None
            try:
                for number, first in enumerate(range(0, len(sources), at_once)):
                    some = sources[first : first + at_once]
                    begin = number % 2 * (CHUNK // 2)
                    staged = [Range(staging, begin + row * nbytes, nbytes) for row in range(len(some))]
                    wait = backend.begin_copies(list(zip(some, staged, strict=True)))
                    begun.append((wait, first, [staging.address + each.offset for each in staged]))
                    if len(begun) == 2:
                        take()
                while begun:
                    take()
            finally:
                for wait, _, _ in begun:
                    wait()

    def _chunks(
        self, backend: AnyBackend, allocation: Allocation, offset: int, nbytes: int
    ) -> Iterator[tuple[Range[Allocation], Range[Allocation]]]:
        """The ranges, of the staging buffer and of the allocation, of chunks of ``nbytes`` at ``offset``."""
        with self._taken(backend) as staging:
            for start in range(0, nbytes, CHUNK):
                size = min(CHUNK, nbytes - start)
                yield Range(staging, 0, size), Range(allocation, offset + start, size)

    @contextmanager
    def _taken(self, backend: AnyBackend) -> Iterator[Allocation]:
        """The staging buffer. If a copy is interrupted, the device may still be using it, so it is not put back."""
        with self._lock:
            staging, self._staging = self._staging or backend.allocate(CHUNK, MemoryKind.SHARED), None
            yield staging
            self._staging = staging


def _pieces(data: Sequence[Bytes]) -> Iterator[list[Bytes]]:
    """Arrays, one after the other, cut into lists of CHUNK bytes together; the last may have fewer."""
    piece: list[Bytes] = []
    room = CHUNK
    for each in data:
        rest = each
        while rest.size >= room:
            yield [*piece, rest[:room]]
            piece, rest, room = [], rest[room:], CHUNK
        piece.append(rest)
        room -= rest.size
    yield piece


def _join(data: Sequence[Bytes], out: Bytes) -> None:
    """Copy arrays into one, one after the other."""
    if len(data) == 1:
        out[:] = data[0]
    elif data:
        np.concatenate(data, out=out)
