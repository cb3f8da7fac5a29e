"""Snapshots in Ray's object store: a file system of fsspec's, for stores at ``ray-objects://NAME``.

Ray loses an object with the process that has put it. So no node puts any: one of Ray's actors on the head node, the
keeper, does, and knows their names. What it keeps survives the death of every other node, and is gone when the head
node or the keeper dies. It stays when a cluster goes down, until Ray ends.
"""

from __future__ import annotations

import time
from typing import Any, Final

import ray
from fsspec import AbstractFileSystem, register_implementation
from ray.exceptions import RayError

from wasmetal.actor.store import Store, open_store
from wasmetal.cluster.ray_errors import line
from wasmetal.cluster.settings import ClusterSettings

SCHEME: Final = "ray-objects"
KEEPER: Final = "keeper"
_SMALL: Final = 64 << 10
"""Bytes up to which an object is kept in the keeper's own memory: Ray's store would take longer."""
_ANSWER: Final = 60.0
"""Seconds that the keeper gets for a call."""
_ON_HEAD: Final = {"node:__internal_head__": 0.001}
"""What only Ray's head node has."""


class Keeper:
    """Keeps objects by their names. Ray calls it once at a time, so that nothing is done by halves."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes | ray.ObjectRef, int, float]] = {}

    def write(self, name: str, data: bytes, new: bool) -> bool:
        """Keep an object under a name; with ``new``, if there is none. Whether it did."""
        if new and name in self._objects:
            return False
        kept = data if len(data) <= _SMALL else ray.put(data)
        self._objects[name] = kept, len(data), time.time()
        return True

    def read(self, name: str) -> list[bytes | ray.ObjectRef]:
        """The object, or a reference to it; nothing if there is none."""
        return [self._objects[name][0]] if name in self._objects else []

    def remove(self, name: str) -> bool:
        """Forget an object; whether there was one."""
        return self._objects.pop(name, None) is not None

    def under(self, folder: str) -> dict[str, tuple[int, float]]:
        """The objects whose names begin so: bytes, and when they were written."""
        return {name: found[1:] for name, found in self._objects.items() if name.startswith(folder)}


class RayObjects(AbstractFileSystem):  # type: ignore[misc]
    """What :class:`UrlStore` needs of a file system. All raise OSError if the keeper does not answer."""

    protocol = SCHEME
    cachable = False  # a connection to Ray may have ended

    def __init__(self, **options: Any) -> None:
        """Raises ValueError without a connection to Ray."""
        super().__init__(**options)
        if not ray.is_initialized():
            raise ValueError(f"{SCHEME}:// is for the nodes of a cluster: this process has no connection to Ray")
        self._keeper = (
            ray.remote(Keeper)
            .options(name=KEEPER, lifetime="detached", get_if_exists=True, num_cpus=0, resources=_ON_HEAD)
            .remote()
        )

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """An object's bytes, or some of them."""
        for kept in self._ask("read", path):
            data: bytes = _get(kept) if isinstance(kept, ray.ObjectRef) else kept
            return data[start:end]
        raise FileNotFoundError(path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write an object at once."""
        if not self._ask("write", path, value, mode == "create"):
            raise FileExistsError(path)

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        if not self._ask("remove", path):
            raise FileNotFoundError(path)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is such an object."""
        return path in self._ask("under", path)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """An object's bytes, and when it was written."""
        try:
            return _info(path, *self._ask("under", path)[path])
        except KeyError:
            raise FileNotFoundError(path) from None

    def find(self, path: str, *_: Any, **__: Any) -> dict[str, dict[str, Any]]:
        """All objects under a name, with what :meth:`info` says of them."""
        return {name: _info(name, *found) for name, found in self._ask("under", f"{path}/").items()}

    def _ask(self, what: str, *arguments: Any) -> Any:
        return _get(getattr(self._keeper, what).remote(*arguments))


def store_of(settings: ClusterSettings) -> Store:
    """The store of a cluster. Raises SnapshotError."""
    register_implementation(SCHEME, RayObjects, clobber=True)
    return open_store(settings.store, **settings.store_options)


def _info(name: str, nbytes: int, changed: float) -> dict[str, Any]:
    return {"name": name, "size": nbytes, "type": "file", "mtime": changed}


def _get(ref: ray.ObjectRef) -> Any:
    try:
        return ray.get(ref, timeout=_ANSWER)
    except RayError as error:
        raise OSError(f"Ray's object store does not answer: {line(error)}") from error
