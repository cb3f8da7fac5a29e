"""What a snapshot takes in its store, and what of that it shares with other actors, such as its forks."""

from __future__ import annotations

from dataclasses import dataclass

from wasmetal.actor.store.base import Store
from wasmetal.errors import SnapshotError


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one snapshot, before compression."""

    chunks: int
    chunk_bytes: int
    shared_chunks: int
    """Chunks that snapshots of other actors name too."""
    shared_bytes: int
    shared_with: tuple[str, ...]
    """Those actors, sorted."""
    shared: frozenset[str]
    """The digests of the shared chunks."""


def usage(store: Store, actor_id: str) -> Usage:
    """Compare an actor's snapshot with those of all others that can be read. Raises SnapshotError if it cannot be."""
    with store.load(actor_id) as snapshot:
        own = snapshot.chunks
    shared: set[str] = set()
    others = []
    for other in store.actors():
        if other == actor_id:
            continue
        try:
            with store.load(other) as snapshot:
                common = own.keys() & snapshot.chunks.keys()
        except SnapshotError:  # deleted meanwhile, damaged, or another key's
            continue
        shared |= common
        if common:
            others.append(other)
    shared_bytes = sum(own[digest] for digest in shared)
    return Usage(len(own), sum(own.values()), len(shared), shared_bytes, tuple(sorted(others)), frozenset(shared))
