"""Garbage collection of a store on a directory, beside saves.

What is named is read first, with nothing locked. Then chunks are removed in turns, each with the store's lock held
alone: not those that are pinned, nor those that a snapshot names which has come since. A save gives its pins free only
after its snapshot has come, so pins are read before snapshots.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Final

from wasmetal.actor.store import locks
from wasmetal.actor.store.base import Collected
from wasmetal.actor.store.layout import Layout
from wasmetal.actor.store.pins import pinned
from wasmetal.actor.store.system import Files
from wasmetal.errors import SnapshotError

_TURN: Final = 1024
"""Chunks that are removed before saves get their turn."""
_YOUNG: Final = 2_000_000_000
"""Nanoseconds before the collection began within which a snapshot's times cannot tell whether it has changed: they are
as coarse as the file system's."""

Seen = tuple[int, int, int]
"""What tells a snapshot's file from one that replaced it: inode, size, time of change."""


def collect(layout: Layout, files: Files, chunks_of: Callable[[str], Iterable[str]]) -> Collected:
    """Remove what nothing names. ``chunks_of``: what an actor's snapshot names.

    Raises SnapshotError, and removes nothing more, if a snapshot cannot be read: what it names is not known then.
    """
    named = _Named(layout, chunks_of)
    named.read_new()
    unnamed = [found for found in layout.chunk_files() if found[0] not in named.digests]
    removed = removed_bytes = 0
    for start in range(0, max(1, len(unnamed)), _TURN):  # once at least, to remove what ended processes left
        with locks.locked(layout.lock, exclusive=True):
            pins = pinned(layout, files)
            named.read_new()
            for digest, path in unnamed[start : start + _TURN]:
                if digest in pins or digest in named.digests:
                    continue
                try:
                    nbytes = os.stat(path).st_size
                    files.remove(path)
                except FileNotFoundError:  # another collection has removed it
                    continue
                removed, removed_bytes = removed + 1, removed_bytes + nbytes
    return Collected(removed, removed_bytes, sum(1 for _ in layout.chunk_files()))


class _Named:
    """What the snapshots name."""

    def __init__(self, layout: Layout, chunks_of: Callable[[str], Iterable[str]]) -> None:
        self.digests: set[str] = set()
        self._layout, self._chunks_of = layout, chunks_of
        self._seen: dict[str, Seen] = {}
        self._young = time.time_ns() - _YOUNG

    def read_new(self) -> None:
        """Read the snapshots that have not been read as they are now. Raises SnapshotError, OSError."""
        for actor_id in self._layout.actor_ids():
            try:
                found = os.stat(self._layout.snapshot(actor_id))
            except FileNotFoundError:  # deleted
                continue
            seen = (found.st_ino, found.st_size, found.st_ctime_ns)
            if self._seen.get(actor_id) == seen and found.st_ctime_ns < self._young:
                continue
            self._seen[actor_id] = seen
            try:
                self.digests.update(self._chunks_of(actor_id))
            except SnapshotError:
                if os.path.exists(self._layout.snapshot(actor_id)):
                    raise
