"""Chunks in memory: addressed by their content, kept once."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3

from wasmetal.actor.chunks import MemoryChunks
from wasmetal.errors import SnapshotError


def test_a_chunk_comes_back_by_the_digest_of_its_content_and_is_kept_once() -> None:
    chunks = MemoryChunks()
    data = bytearray(b"what an actor knows")
    digest = chunks.put(data)
    assert digest == blake3(data).hexdigest() == chunks.put(bytes(data)) == chunks.put(memoryview(data))
    assert chunks.nbytes == len(data)
    data[0] = 0  # the caller's bytes are no longer used
    assert bytes(chunks.get(digest, 19)) == b"what an actor knows"
    assert chunks.get(digest, 19).readonly


def test_an_array_is_taken_as_its_bytes() -> None:
    chunks = MemoryChunks()
    array = np.arange(6, dtype=np.uint32).reshape(2, 3)
    assert bytes(chunks.get(chunks.put(array), 24)) == array.tobytes()


def test_what_is_missing_or_of_another_size_is_refused() -> None:
    chunks = MemoryChunks()
    digest = chunks.put(b"four")
    with pytest.raises(SnapshotError, match="missing"):
        chunks.get("0" * 64, 4)
    with pytest.raises(SnapshotError, match="4 bytes; its manifest says 5"):
        chunks.get(digest, 5)
