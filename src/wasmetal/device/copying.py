"""Copies between the host and device memory, through a staging buffer if the host cannot see that memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from wasmetal.device.backend import Allocation, AnyBackend, Range
from wasmetal.device.base import Bytes, MemoryKind

CHUNK = 16 << 20
"""Size of the staging buffer in bytes."""


class Copier:
    """Synchronous copies, callable from any thread. A lock serializes the staged ones."""

    def __init__(self) -> None:
        self._staging: Allocation | None = None
        self._lock = threading.Lock()

    def copy_in(self, backend: AnyBackend, allocation: Allocation, offset: int, data: Bytes) -> None:
        """Copy host bytes into an allocation at ``offset``."""
        if allocation.address is not None:
            allocation.view()[offset : offset + data.size] = data
            return
        for part, staged, there in self._chunks(backend, allocation, offset, data):
            staged.allocation.view()[: part.size] = part
            backend.copy(staged, there)

    def copy_out(self, backend: AnyBackend, allocation: Allocation, offset: int, out: Bytes) -> None:
        """Copy an allocation's bytes at ``offset`` to the host."""
        if allocation.address is not None:
            out[:] = allocation.view()[offset : offset + out.size]
            return
        for part, staged, there in self._chunks(backend, allocation, offset, out):
            backend.copy(there, staged)
            part[:] = staged.allocation.view()[: part.size]

    def close(self) -> None:
        """Free the staging buffer."""
        self._staging = None

    def _chunks(
        self, backend: AnyBackend, allocation: Allocation, offset: int, data: Bytes
    ) -> Iterator[tuple[Bytes, Range[Allocation], Range[Allocation]]]:
        """Chunks of ``data``, each with its ranges of the staging buffer and of the allocation."""
        with self._lock:
            # The device may still be using the staging buffer of an interrupted copy, so it is not put back.
            staging, self._staging = self._staging or backend.allocate(CHUNK, MemoryKind.SHARED), None
            for start in range(0, data.size, CHUNK):
                part = data[start : start + CHUNK]
                yield part, Range(staging, 0, part.size), Range(allocation, offset + start, part.size)
            self._staging = staging
