"""Programs beside the snapshots of a store: modules by the SHA-256 by which snapshots name them.

A snapshot does not need its program here: whoever thaws it may have the module elsewhere.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from wasmetal.actor.chunks import digest_of_program
from wasmetal.actor.store.base import Collected, Store, StoredSnapshot
from wasmetal.actor.store.directory import DirectoryStore
from wasmetal.actor.store.names import is_digest
from wasmetal.actor.store.objects import Objects
from wasmetal.actor.store.system import Files
from wasmetal.actor.store.url import UrlStore
from wasmetal.errors import SnapshotError, setting_up
from wasmetal.host.compiler import MAX_MODULE

FOLDER: Final = "programs"
_SUFFIX: Final = ".wasm"
KEEP_SECONDS: Final = 86400.0
"""For so long a program stays that no snapshot names: a save may be about to name it."""


class Programs:
    """The programs that a store keeps."""

    def __init__(self, store: Store) -> None:
        """``store``: on a folder or at a URL. Raises SnapshotError for any other."""
        self._store = store
        if isinstance(store, DirectoryStore):
            self._place: _Place = _Folder(store.layout.root / FOLDER, store.files)
        elif isinstance(store, UrlStore):
            self._place = _Url(store.objects)
        else:
            raise SnapshotError(f"a {type(store).__name__} keeps no programs")

    def keep(self, binary: bytes) -> None:
        """Keep a module, in binary, for a day at least, and for as long as a snapshot names it.

        Raises SnapshotError if it cannot be written.
        """
        digest = digest_of_program(binary)
        with setting_up(f"keep the program {digest}", SnapshotError):
            if self._place.read(digest) == binary:
                self._place.touch(digest, binary)
            else:
                self._place.write(digest, binary)

    def find(self, digest: str) -> bytes | None:
        """The module with this SHA-256, in binary; None if it is not kept. Raises SnapshotError if it is damaged."""
        with setting_up(f"read the program {digest}", SnapshotError):
            binary = self._place.read(digest)
        if binary is not None and digest_of_program(binary) != digest:
            raise SnapshotError(f"the store's program {digest} is damaged: its SHA-256 differs")
        return binary

    def keep_carried(self, actor_id: str) -> None:
        """Keep the program that came with a snapshot as one of its chunks, if it did.

        Raises SnapshotError if there is no snapshot, it is damaged, or the program cannot be written.
        """
        with self._store.load(actor_id) as snapshot:
            digest = named_by(snapshot)
            size = snapshot.chunks.get(digest) if digest else None
            if digest and size and size <= MAX_MODULE:
                self.keep(bytes(snapshot.get(digest, size)))

    def collect(self) -> Collected:
        """Remove programs that no snapshot names, and that nobody has kept within the last day.

        Raises SnapshotError, and removes none, if a snapshot is damaged: what it names is not known then.
        """
        with setting_up("collect the store's programs", SnapshotError):
            found = list(self._place.listed())
            named = set(self._named()) if found else set()
            removed = removed_bytes = 0
            for digest, nbytes, changed in found:
                if digest not in named and changed < time.time() - KEEP_SECONDS:
                    self._place.remove(digest)
                    removed, removed_bytes = removed + 1, removed_bytes + nbytes
        return Collected(removed, removed_bytes, len(found) - removed)

    def _named(self) -> Iterator[str]:
        for actor_id in self._store.actors():
            try:
                with self._store.load(actor_id) as snapshot:
                    digest = named_by(snapshot)
            except SnapshotError:
                if actor_id in self._store.actors():
                    raise
                continue  # deleted
            if digest:
                yield digest


def named_by(snapshot: StoredSnapshot) -> str | None:
    """The SHA-256 of the program that a snapshot names; None if its manifest is of another kind."""
    program = snapshot.manifest.get("program")
    digest = program.get("digest") if isinstance(program, dict) else None
    return digest if is_digest(digest) else None


class _Place(Protocol):
    """Where programs lie, by digest. All raise OSError."""

    def read(self, digest: str) -> bytes | None:
        """Its bytes, MAX_MODULE + 1 at most; None if there is none."""

    def write(self, digest: str, binary: bytes) -> None:
        """Put it there in one step."""

    def touch(self, digest: str, binary: bytes) -> None:
        """Make it as young as if it were new."""

    def remove(self, digest: str) -> None:
        """Remove it, if it is there."""

    def listed(self) -> Iterator[tuple[str, int, float]]:
        """Digest, bytes and time of the last change of each."""


class _Folder:
    """A folder. A name that begins with a dot is a file half written."""

    def __init__(self, path: Path, files: Files) -> None:
        self._path, self._files = path, files

    def read(self, digest: str) -> bytes | None:
        try:
            descriptor = os.open(self._file(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read(MAX_MODULE + 1)

    def write(self, digest: str, binary: bytes) -> None:
        self._files.make_folder(self._path)
        part = self._path / f".{secrets.token_hex(16)}"
        try:
            self._files.write_file(part, binary, [self._path.parent])
            self._files.rename(part, self._file(digest))
        finally:
            part.unlink(missing_ok=True)
        self._files.sync_folder(self._path)

    def touch(self, digest: str, binary: bytes) -> None:
        os.utime(self._file(digest))

    def remove(self, digest: str) -> None:
        self._files.remove(self._file(digest))

    def listed(self) -> Iterator[tuple[str, int, float]]:
        try:
            names = os.listdir(self._path)
        except FileNotFoundError:
            return
        for name in names:
            path = self._path / name
            if is_digest(digest := name.removesuffix(_SUFFIX)):
                found = path.stat()
                yield digest, found.st_size, found.st_mtime
            elif name.startswith(".") and path.stat().st_mtime < time.time() - KEEP_SECONDS:
                self._files.remove(path)

    def _file(self, digest: str) -> Path:
        return self._path / f"{digest}{_SUFFIX}"


class _Url:
    """Objects at a URL."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def read(self, digest: str) -> bytes | None:
        try:
            return self._objects.read(self._name(digest), MAX_MODULE + 1)
        except FileNotFoundError:
            return None

    def write(self, digest: str, binary: bytes) -> None:
        self._objects.write(self._name(digest), binary)

    def touch(self, digest: str, binary: bytes) -> None:
        if self._objects.found(self._name(digest))[1] < time.time() - KEEP_SECONDS / 2:
            self.write(digest, binary)

    def remove(self, digest: str) -> None:
        self._objects.remove(self._name(digest))

    def listed(self) -> Iterator[tuple[str, int, float]]:
        for name, nbytes, changed in self._objects.under(FOLDER):
            if is_digest(digest := name.rpartition("/")[2].removesuffix(_SUFFIX)):
                yield digest, nbytes, changed

    def _name(self, digest: str) -> str:
        return f"{FOLDER}/{digest}{_SUFFIX}"
