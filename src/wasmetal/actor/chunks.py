"""Chunks of a snapshot, addressed by their content: where they are put, and where they come from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol
from weakref import ref

from blake3 import blake3

from wasmetal.actor.threads import each
from wasmetal.errors import SnapshotError

if TYPE_CHECKING:
    from typing_extensions import Buffer

AT_ONCE: Final = 64 << 20
"""Bytes of a session's chunks that are copied together, or more if none has to be read: few copies are made, and the
rest is read meanwhile."""
THREADS: Final = min(8, os.cpu_count() or 1)
"""That read chunks and compute digests, which takes most of the time and releases the interpreter's lock."""


def digest_of(data: Buffer) -> str:
    """The digest by which a chunk is named: BLAKE3, 32 bytes in lower-case hexadecimal."""
    return blake3(data).hexdigest()


def digest_of_program(binary: Buffer) -> str:
    """The digest by which a program is named: SHA-256 of the module in binary, in lower-case hexadecimal."""
    return hashlib.sha256(binary).hexdigest()


def digests_of(several: Sequence[Buffer]) -> list[str]:
    """The digests of several chunks, computed on several threads."""
    return each(digest_of, several, THREADS)


def is_named(data: Buffer, digest: str) -> bool:
    """Whether a chunk has this name: its BLAKE3; or its SHA-256, as in snapshots of version 1 and those made of them.

    A name does not say which of the two it is: nobody can make bytes that have a given one.
    """
    return digest_of(data) == digest or hashlib.sha256(data).hexdigest() == digest


class ChunkSink(Protocol):
    """Takes the chunks of a snapshot that is being made."""

    def put(self, data: Buffer) -> str:
        """Keep the bytes; return their digest. The same bytes twice are one chunk.

        The bytes are read before the call returns: the caller may change them afterwards.
        """

    def put_several(self, several: Sequence[Buffer]) -> list[str]:
        """What :meth:`put` returns for each, whose digests are computed at the same time. Nobody changes them again."""

    def has(self, digest: str, size: int) -> bool:
        """Whether the ``size`` bytes with this digest are there, and are kept as if they had been put now.

        False only means that they must be put.
        """


class ChunkSource(Protocol):
    """Gives the chunks of a snapshot that is being thawed."""

    in_memory: bool
    """Whether the chunks are in this process's memory, and known to be right."""

    def get(self, digest: str, size: int) -> memoryview:
        """The ``size`` bytes with this digest, read-only. Raises SnapshotError if missing, or not of that digest."""

    def get_several(self, chunks: Sequence[tuple[str, int]]) -> list[memoryview]:
        """What :meth:`get` gives for each (digest, size). They may be read, and verified, at the same time."""


class MemoryChunks:
    """Chunks in this process's memory, for a snapshot that is thawed here; a sink and a source."""

    in_memory = True

    def __init__(self, earlier: MemoryChunks | None = None) -> None:
        """``earlier``: whose chunks are shared, those that :meth:`has` is asked for while they exist."""
        self._chunks: dict[str, memoryview] = {}
        self._earlier = ref(earlier) if earlier else None

    def put(self, data: Buffer) -> str:
        """A copy of the bytes is kept."""
        view = memoryview(data).cast("B")
        digest = digest_of(view)
        if digest not in self._chunks:
            self._chunks[digest] = memoryview(bytes(view))
        return digest

    def put_several(self, several: Sequence[Buffer]) -> list[str]:
        """See :class:`ChunkSink`. The bytes are kept as they are, without a copy."""
        digests = digests_of(several)
        for digest, data in zip(digests, several, strict=True):
            self._chunks.setdefault(digest, memoryview(data).cast("B").toreadonly())
        return digests

    def has(self, digest: str, size: int) -> bool:
        """See :class:`ChunkSink`."""
        earlier = self._earlier and self._earlier()
        if digest not in self._chunks and earlier and digest in earlier._chunks:
            self._chunks[digest] = earlier._chunks[digest]
        found = self._chunks.get(digest)
        return found is not None and found.nbytes == size

    def get(self, digest: str, size: int) -> memoryview:
        """See :class:`ChunkSource`. What :meth:`put` has kept needs no check of its digest."""
        chunk = self._chunks.get(digest)
        if chunk is None:
            raise SnapshotError(f"the snapshot's chunk {digest} is missing")
        if chunk.nbytes != size:
            raise SnapshotError(f"the snapshot's chunk {digest} has {chunk.nbytes} bytes; its manifest says {size}")
        return chunk

    def get_several(self, chunks: Sequence[tuple[str, int]]) -> list[memoryview]:
        """See :class:`ChunkSource`."""
        return [self.get(digest, size) for digest, size in chunks]

    @property
    def nbytes(self) -> int:
        """Bytes of all chunks."""
        return sum(chunk.nbytes for chunk in self._chunks.values())
