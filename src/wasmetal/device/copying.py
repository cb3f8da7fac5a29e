"""Copies between the host and device memory, through a staging buffer if the host cannot see that memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from wasmetal.device.backend import Allocation, AnyBackend, Range
from wasmetal.device.base import Bytes, MemoryKind

CHUNK = 16 << 20
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
        if all(allocation.address is not None for allocation in allocations):
            backend.copy_rows(allocations, offset, data)
        else:
            for row, allocation in enumerate(allocations):
                self.copy_in(backend, allocation, offset, [each[row] for each in data])
        return sum(each.size for each in data)

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

    def close(self) -> None:
        """Free the staging buffer."""
        self._staging = None

    def _chunks(
        self, backend: AnyBackend, allocation: Allocation, offset: int, nbytes: int
    ) -> Iterator[tuple[Range[Allocation], Range[Allocation]]]:
        """The ranges, of the staging buffer and of the allocation, of chunks of ``nbytes`` at ``offset``."""
        with self._lock:
            # The device may still be using the staging buffer of an interrupted copy, so it is not put back.
            staging, self._staging = self._staging or backend.allocate(CHUNK, MemoryKind.SHARED), None
            for start in range(0, nbytes, CHUNK):
                size = min(CHUNK, nbytes - start)
                yield Range(staging, 0, size), Range(allocation, offset + start, size)
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
