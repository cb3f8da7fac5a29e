"""The folders of a store on a directory; docs/snapshot-format.md draws them."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wasmetal.actor.store.compression import SUFFIX
from wasmetal.actor.store.names import is_digest, is_id
from wasmetal.actor.store.system import Files
from wasmetal.errors import SnapshotError

FORMAT: Final = "wasmetal-actors 1\n"
_SNAPSHOT: Final = ".snapshot"
_PAIR: Final = re.compile("[0-9a-f]{2}")
_FOLDERS: Final = ("chunks", "actors", "saving", "leases")


class Layout:
    """Where what lies.

    Paths of single files are strings: ``pathlib`` interns the parts of each, and with ever new names Python makes its
    table of interned strings, some megabytes, anew again and again, in the heap of whichever thread comes by.
    """

    def __init__(self, root: Path) -> None:
        self.root: Final = root
        self.chunks, self.actors, self.saving, self.leases = (root / name for name in _FOLDERS)
        self.lock: Final = root / "lock"
        """Shared by whoever begins to rely on a chunk; held alone by whoever removes chunks."""

    def snapshot(self, actor_id: str) -> str:
        """The file of an actor's snapshot."""
        return os.path.join(self.actors, f"{actor_id}{_SNAPSHOT}")

    def lease(self, actor_id: str) -> str:
        """The file that says who holds an actor."""
        return os.path.join(self.leases, actor_id)

    def chunk(self, digest: str) -> str:
        """The file of a chunk as it is. Compressed, it has ``.zst`` after its name."""
        return os.path.join(self.chunks, digest[:2], digest)

    def compressed(self, digest: str) -> str:
        """The file of a compressed chunk."""
        return self.chunk(digest) + SUFFIX

    def actor_ids(self) -> list[str]:
        """The actors that have a snapshot, sorted. Raises OSError."""
        names = (name.removesuffix(_SNAPSHOT) for name in os.listdir(self.actors) if name.endswith(_SNAPSHOT))
        return sorted(filter(is_id, names))

    def chunk_files(self) -> Iterator[tuple[str, str]]:
        """The digest and the file of every chunk. Raises OSError."""
        for pair in filter(_PAIR.fullmatch, os.listdir(self.chunks)):
            folder = os.path.join(self.chunks, pair)
            for name in os.listdir(folder):
                digest = name.removesuffix(SUFFIX)
                if is_digest(digest) and digest.startswith(pair):
                    yield digest, os.path.join(folder, name)

    def make(self, files: Files) -> None:
        """Make the folders, unless this is a store already; what marks it as one comes last.

        Raises SnapshotError if it is a store of another version, or a folder with something else; OSError.
        """
        if self.exists():
            return
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = {*_FOLDERS, self.lock.name}
        if others := [name for name in os.listdir(self.root) if name not in known and not name.startswith("format")]:
            raise SnapshotError(
                f"{self.root} is no store of actors and is not empty: it has {others[0]!r}; name another folder"
            )
        for folder in (self.chunks, self.actors, self.saving, self.leases):
            files.make_folder(folder)
        files.sync_folder(self.root)
        part = self.root / f"format-{secrets.token_hex(8)}"
        files.write_file(part, FORMAT.encode())
        files.rename(part, self.root / "format")
        files.sync_folder(self.root)

    def exists(self) -> bool:
        """Whether there is a store. Raises SnapshotError if it is one of another version; OSError."""
        try:
            with (self.root / "format").open("rb") as file:
                found = file.read(100)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if found != FORMAT.encode():
            raise SnapshotError(
                f"{self.root} is not a store that this version of wasmetal reads ({FORMAT.strip()}); "
                "use the version that wrote it"
            )
        return True
