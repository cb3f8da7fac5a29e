"""A manifest as bytes: JSON, of which the store reads the version, the kind and the list of chunks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from wasmetal.actor.store.names import is_digest
from wasmetal.errors import SnapshotError, printable

KIND: Final = "wasmetal-actor"
MOST: Final = 32 << 20
"""Bytes of a manifest. What JSON of so many bytes takes in memory, some thirty times as much, is bounded with it."""
CHUNK_MOST: Final = 1 << 48
"""Bytes of a chunk: what a file may have."""

Manifest = Mapping[str, Any]
Chunks = dict[str, int]
"""Sizes in bytes by digest, in the order of the digests."""


def encode(manifest: Manifest) -> bytes:
    """The manifest as ASCII, the same bytes for the same content. Raises SnapshotError if it cannot be stored."""
    chunks_of(manifest)
    try:
        data = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise SnapshotError(f"the manifest is not JSON: {_reason(error)}") from error
    if len(data) > MOST:
        raise SnapshotError(f"the manifest has {len(data)} bytes; at most {MOST} can be stored: use larger chunks")
    return data


def decode(data: bytes | bytearray) -> dict[str, Any]:
    """The manifest. Raises SnapshotError if it is no JSON object of this kind, or its list of chunks is malformed."""
    try:
        manifest = json.loads(data.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"the snapshot's manifest is not JSON: {_reason(error)}") from error
    chunks_of(manifest)
    return manifest  # type: ignore[no-any-return]


def chunks_of(manifest: Manifest) -> Chunks:
    """What the manifest names. Raises SnapshotError unless it is a list of [digest, size], each once, sorted."""
    if not isinstance(manifest, Mapping) or manifest.get("kind") != KIND:
        raise SnapshotError(f"the manifest is not of the kind {KIND!r}; it does not describe an actor")
    version, named = manifest.get("version"), manifest.get("chunks")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SnapshotError("the manifest has no version")
    if not isinstance(named, list):
        raise SnapshotError("the manifest has no list of chunks")
    chunks: Chunks = {}
    last = ""
    for entry in named:
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            raise SnapshotError("the manifest's chunks are not pairs of digest and size")
        digest, size = entry
        if not is_digest(digest):
            raise SnapshotError(f"the manifest names a chunk {printable(repr(digest)[:80])}, which is no digest")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= CHUNK_MOST:
            raise SnapshotError(f"the manifest gives chunk {digest} no size from 0 to {CHUNK_MOST} bytes")
        if digest <= last:
            raise SnapshotError("the manifest's chunks are not sorted by digest, each once")
        chunks[digest] = size
        last = digest
    return chunks


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else printable(str(error))
