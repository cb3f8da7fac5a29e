"""Chunks as they are stored, in a file or an object each, and what is checked before one is given out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from wasmetal.actor.chunks import is_named
from wasmetal.actor.store import compression
from wasmetal.actor.store.verified import Verified
from wasmetal.errors import SnapshotError
from wasmetal.memory.mapped import map_file

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAPPED: Final = 64 << 10
"""Bytes from which a chunk is mapped and not read: what is smaller costs more to map than to copy."""


def as_bytes(data: Buffer) -> memoryview:
    """The bytes of a contiguous buffer, uint8 of shape [n], not copied."""
    return memoryview(data).cast("B")


def check(data: memoryview | bytes | bytearray, digest: str) -> memoryview:
    """The chunk, read-only. Raises SnapshotError if it has another digest."""
    if not is_named(data, digest):
        raise SnapshotError(f"the snapshot's chunk {digest} is damaged: its digest differs")
    return memoryview(data).toreadonly()


def missing(digest: str) -> SnapshotError:
    """The error for a chunk that is not there."""
    return SnapshotError(f"the snapshot's chunk {digest} is missing")


def wrong_size(digest: str, found: int, size: int) -> SnapshotError:
    """The error for a chunk that has another number of bytes than its manifest says."""
    return SnapshotError(f"the snapshot's chunk {digest} has {found} bytes; its manifest says {size}")


def read_file(path: str, digest: str, size: int, verified: Verified | None = None) -> memoryview:
    """A chunk that lies in a file as it is; mapped, if it is large. Raises SnapshotError if it is another; OSError.

    ``verified``: large files that need not be verified again.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if (found := os.fstat(descriptor)).st_size != size:
            raise wrong_size(digest, found.st_size, size)
        if size < MAPPED:
            return check(_read(descriptor, size), digest)
        mapped = map_file(descriptor, size).data
        if verified is not None and verified.has(digest, found):
            return mapped.toreadonly()
        check(mapped, digest)
        if verified is not None:
            verified.add(digest, found)
        return mapped.toreadonly()
    finally:
        os.close(descriptor)


def read_compressed(path: str, digest: str, size: int) -> memoryview:
    """A chunk that lies in a file compressed. Raises SnapshotError if it is not this one; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if (found := os.fstat(descriptor).st_size) > compression.MOST:
            raise SnapshotError(f"the snapshot's chunk {digest} has {found} compressed bytes, more than any chunk")
        return check(compression.decompressed(_read(descriptor, found), digest, size), digest)
    finally:
        os.close(descriptor)


def _read(descriptor: int, size: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False, buffering=0) as file:
        return file.read(size) if size else b""
