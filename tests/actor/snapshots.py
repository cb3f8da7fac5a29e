"""Snapshots to store in tests: manifests and the chunks that they name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blake3 import blake3

from wasmetal.actor.chunks import MemoryChunks
from wasmetal.actor.store import Store, StoredSnapshot


def name_of(data: bytes) -> str:
    """The digest by which a chunk is named."""
    return blake3(data).hexdigest()


def manifest_of(contents: Iterable[bytes], **more: Any) -> dict[str, Any]:
    named = sorted({(name_of(data), len(data)) for data in contents})
    return {"version": 1, "kind": "wasmetal-actor", "chunks": [list(pair) for pair in named], **more}


def save(store: Store, actor_id: str, contents: list[bytes], **more: Any) -> dict[str, Any]:
    manifest, chunks = manifest_of(contents, **more), MemoryChunks()
    for data in contents:
        chunks.put(data)
    store.save(actor_id, manifest, chunks)
    return manifest


def read(snapshot: StoredSnapshot) -> tuple[dict[str, Any], set[bytes]]:
    """The manifest and the contents of all chunks, whose digests are computed again here."""
    contents = set()
    for digest, size in snapshot.chunks.items():
        data = bytes(snapshot.get(digest, size))
        assert digest in (name_of(data), hashlib.sha256(data).hexdigest())  # a program's is the latter
        assert len(data) == size
        contents.add(data)
    return snapshot.manifest, contents


def load(store: Store, actor_id: str) -> tuple[dict[str, Any], set[bytes]]:
    with store.load(actor_id) as snapshot:
        return read(snapshot)


def chunk_files(root: Path) -> set[str]:
    """The digests of the chunks that a store has on the disk."""
    return {name.removesuffix(".zst") for _, _, names in os.walk(root / "chunks") for name in names}
