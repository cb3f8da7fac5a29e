"""What the server remembers of responses and conversations beside their actors: a JSON file for each, in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from wasmetal.actor.store.system import Files
from wasmetal.errors import WasmetalError, setting_up

_SUFFIX: Final = ".json"


def key_of(owner: str, name: str) -> str:
    """What stands for something of one owner's: names of others' never give the same."""
    return hashlib.sha256(f"{owner}\0{name}".encode(errors="replace")).hexdigest()[:48]


class Documents:
    """At most so many, of which the oldest go. Any thread may use it."""

    def __init__(self, folder: Path, most: int) -> None:
        """Raises WasmetalError if the folder cannot be made or read."""
        self._folder, self._most = folder, most
        self._lock = threading.Lock()
        self._files = Files()
        with setting_up(f"use the folder {folder}"):
            folder.mkdir(mode=0o700, exist_ok=True)
            times = {path.name.removesuffix(_SUFFIX): path.stat().st_mtime for path in folder.glob(f"*{_SUFFIX}")}
        self._order = dict.fromkeys(sorted(times, key=times.__getitem__))
        """The keys, the oldest first."""

    def save(self, key: str, document: dict[str, Any]) -> list[str]:
        """Save one; return the keys of those that had to go. Raises WasmetalError if the disk cannot take it."""
        path = self._path(key)
        part = path.with_name(f"{secrets.token_hex(8)}.part")
        with setting_up("store the response"):
            try:
                self._files.write_file(part, json.dumps(document).encode())
                self._files.rename(part, path)
                self._files.sync_folder(self._folder)
            finally:
                self._files.remove(part)
        with self._lock:
            self._order.pop(key, None)
            self._order[key] = None
            gone = list(self._order)[: max(0, len(self._order) - self._most)]
        for old in gone:
            self.delete(old)
        return gone

    def load(self, key: str) -> dict[str, Any] | None:
        """One of them; None if it is not there. Raises WasmetalError if it cannot be read."""
        try:
            document: dict[str, Any] = json.loads(self._path(key).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise WasmetalError(f"a stored response cannot be read: {error}") from None
        return document

    def touch(self, key: str) -> None:
        """One of them was used: it counts as new."""
        with self._lock:
            if key in self._order:
                del self._order[key]
                self._order[key] = None
        with suppress(OSError):
            os.utime(self._path(key))

    def delete(self, key: str) -> None:
        """Remove one, if it is there."""
        with self._lock:
            self._order.pop(key, None)
        with suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"
