"""Pins: chunks that somebody relies on and no snapshot may name, those of saves in progress and of open snapshots.

Each save has a file of digests that it keeps locked: if the process ends, so does the lock, and the file counts no
more. Digests are added while the store's lock is shared, and read while it is held alone. So whoever removes chunks
either sees a pin, or has removed the chunk before the pin's owner looks whether it is there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Final

from wasmetal.actor.store import locks
from wasmetal.actor.store.layout import Layout
from wasmetal.actor.store.system import Files
from wasmetal.closing import Closing

_DIGEST_BYTES: Final = 32
_SUFFIX: Final = ".pins"


class Pins(Closing):
    """The pins of one save or one open snapshot, until they are closed."""

    def __init__(self, layout: Layout, files: Files) -> None:
        """Raises OSError."""
        self._layout, self._files = layout, files
        self._token = secrets.token_hex(16)
        self._path = os.path.join(layout.saving, f"{self._token}{_SUFFIX}")
        self._parts = 0
        with self.shared():
            self._descriptor: int | None = files.create(self._path)
            locks.try_lock(self._descriptor)

    def shared(self) -> AbstractContextManager[None]:
        """The store's lock, shared: pins can be added."""
        return locks.locked(self._layout.lock, exclusive=False)

    def add(self, digests: Iterable[str]) -> None:
        """Pin chunks; the caller shares the store's lock. What is there now stays there. Raises OSError."""
        assert self._descriptor is not None
        self._files.write(self._descriptor, memoryview(b"".join(map(bytes.fromhex, digests))))

    def part(self) -> str:
        """The path of a new file, which is removed with the pins if their owner ends before it has another name."""
        self._parts += 1
        return os.path.join(self._layout.saving, f"{self._token}-{self._parts}.part")

    def close(self) -> None:
        """Give the chunks free. Idempotent."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # it is removed with the next collection
                self._files.remove(self._path)
            os.close(self._descriptor)
            self._descriptor = None


def pinned(layout: Layout, files: Files) -> set[str]:
    """The pinned chunks; the caller holds the store's lock alone. Removes what ended processes left. Raises OSError."""
    names = os.listdir(layout.saving)
    digests: set[str] = set()
    live = set()
    for name in names:
        if name.endswith(_SUFFIX) and (found := _read(os.path.join(layout.saving, name))) is not None:
            digests |= found
            live.add(name.removesuffix(_SUFFIX))
    for name in sorted(names):  # a token's parts ("-") before its pins (".")
        if name.partition("-")[0].removesuffix(_SUFFIX) not in live:
            files.remove(os.path.join(layout.saving, name))
    return digests


def _read(path: str) -> set[str] | None:
    """The digests in a file of pins; None if its owner has ended."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not locks.is_locked(descriptor):
            return None
        data = file.read()
    whole = len(data) - len(data) % _DIGEST_BYTES
    return {data[i : i + _DIGEST_BYTES].hex() for i in range(0, whole, _DIGEST_BYTES)}
