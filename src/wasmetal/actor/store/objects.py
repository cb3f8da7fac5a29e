"""Objects at a URL, through ``fsspec``: read, written whole, listed, removed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from wasmetal.errors import SnapshotError

_WHOLE: Final = frozenset(
    ("memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "r2", "ray-objects")
)
"""Protocols whose objects appear when they are complete. Elsewhere an object is written beside, and then renamed."""
_TIMES: Final = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
"""What file systems call the time of an object's last change."""


class Objects:
    """The objects under one URL, by names with slashes. All raise OSError, FileNotFoundError among them."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        """``options``: those of the file system. Raises SnapshotError without ``fsspec``, or if it has no such URL."""
        try:
            from fsspec.core import url_to_fs  # noqa: PLC0415
        except ImportError as error:
            raise SnapshotError("stores at URLs need the package fsspec: pip install 'wasmetal[url]'") from error
        try:
            self._system, root = url_to_fs(url, use_listings_cache=False, **options)
        except (ValueError, ImportError) as error:  # an unknown protocol; one whose package is missing
            raise SnapshotError(f"cannot open the store: {' '.join(str(error).split())}") from error
        protocol = self._system.protocol
        self._protocols: Final = {protocol} if isinstance(protocol, str) else set(protocol)
        self._root: Final = root.rstrip("/")

    def read(self, name: str, most: int) -> bytes:
        """The object's first bytes, at most so many."""
        return bytes(self._system.cat_file(self._path(name), start=0, end=most))

    def write(self, name: str, data: bytes) -> None:
        """Replace the object, or make it, in one step as far as the file system can do that."""
        path = self._path(name)
        if not self._protocols.isdisjoint(_WHOLE):
            self._system.pipe_file(path, data)
            return
        part = self._path(f"saving/{secrets.token_hex(16)}.part")
        for each in (part, path):
            self._system.makedirs(each.rpartition("/")[0], exist_ok=True)
        self._system.pipe_file(part, data)
        self._system.mv(part, path)

    def create(self, name: str, data: bytes) -> None:
        """Make an object; FileExistsError if there is one. Whether two can do so at once depends on the file system."""
        path = self._path(name)
        if self._protocols.isdisjoint(_WHOLE):
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        if "file" in self._protocols:
            with self._system.open(path, "xb") as file:
                file.write(data)
            return
        try:
            self._system.pipe_file(path, data, mode="create")
        except OSError as error:
            if not isinstance(error, FileExistsError) and self.exists(name):  # s3fs: a condition that failed, EINVAL
                raise FileExistsError from error
            raise

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._system.rm_file(self._path(name))

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return bool(self._system.exists(self._path(name)))

    def found(self, name: str) -> tuple[int, float]:
        """An object's bytes, and when it was written last, in seconds since 1970."""
        info = self._system.info(self._path(name))
        return int(info["size"]), _changed(info)

    def under(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """Name, bytes and last change of each object under a name."""
        try:
            found = self._system.find(self._path(folder), detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            if info["type"] == "file":
                yield path[path.rindex(f"/{folder}/") + 1 :], int(info["size"]), _changed(info)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _changed(info: dict[str, Any]) -> float:
    for key in _TIMES:
        found = info.get(key)
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, str):
            return datetime.fromisoformat(found.replace("Z", "+00:00")).timestamp()
        if isinstance(found, int | float):
            return float(found)
    raise SnapshotError("this file system does not say when an object was written: actors cannot be stored there")
