"""Chunks of a snapshot, addressed by their content: where they are put, and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from wasmetal.errors import SnapshotError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ChunkSink(Protocol):
    """Takes the chunks of a snapshot that is being made."""

    def put(self, data: Buffer) -> str:
        """Keep the bytes; return the SHA-256 of them, in hexadecimal. The same bytes twice are one chunk.

        The bytes are read before the call returns: the caller may change them afterwards.
        """

    def has(self, digest: str, size: int) -> bool:
        """Whether the ``size`` bytes with this SHA-256 are there, and are kept as if they had been put now.

        False only means that they must be put.
        """


class ChunkSource(Protocol):
    """Gives the chunks of a snapshot that is being thawed."""

    def get(self, digest: str, size: int) -> memoryview:
        """The ``size`` bytes with this SHA-256, read-only. Raises SnapshotError if missing, or not of that digest."""

    def get_several(self, chunks: Sequence[tuple[str, int]]) -> list[memoryview]:
        """What :meth:`get` gives for each (digest, size). They may be read, and verified, at the same time."""


class MemoryChunks:
    """Chunks in this process's memory, for a snapshot that is thawed here; a sink and a source."""

    def __init__(self, earlier: MemoryChunks | None = None) -> None:
        """``earlier``: whose chunks are shared, those that :meth:`has` is asked for while they exist."""
        self._chunks: dict[str, bytes] = {}
        self._earlier = ref(earlier) if earlier else None

    def put(self, data: Buffer) -> str:
        """A copy of the bytes is kept."""
        view = memoryview(data).cast("B")
        digest = hashlib.sha256(view).hexdigest()
        if digest not in self._chunks:
            self._chunks[digest] = bytes(view)
        return digest

    def has(self, digest: str, size: int) -> bool:
        """See :class:`ChunkSink`."""
        earlier = self._earlier and self._earlier()
        if digest not in self._chunks and earlier and digest in earlier._chunks:
            self._chunks[digest] = earlier._chunks[digest]
        return len(self._chunks.get(digest, b"")) == size

    def get(self, digest: str, size: int) -> memoryview:
        """See :class:`ChunkSource`. What :meth:`put` has kept needs no check of its digest."""
        chunk = self._chunks.get(digest)
        if chunk is None:
            raise SnapshotError(f"the snapshot's chunk {digest} is missing")
        if len(chunk) != size:
            raise SnapshotError(f"the snapshot's chunk {digest} has {len(chunk)} bytes; its manifest says {size}")
        return memoryview(chunk)

    def get_several(self, chunks: Sequence[tuple[str, int]]) -> list[memoryview]:
        """See :class:`ChunkSource`."""
        return [self.get(digest, size) for digest, size in chunks]

    @property
    def nbytes(self) -> int:
        """Bytes of all chunks."""
        return sum(map(len, self._chunks.values()))
