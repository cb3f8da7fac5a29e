"""Paths of a guest, found beneath a directory that was granted to it, and never outside.

Every component is opened by itself, without following symbolic links, relative to the one before it. Links are read and
followed here, and ``..`` goes back over directories that were passed, not to whatever the parent has become meanwhile.
So nobody can lead a path out of the directory by renaming parts of it while it is walked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from wasmetal.host.errno import Refusal, WasiErrno

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_MAX_LINKS = 40
_MAX_STEPS = 1000
"""Most directories opened for one path: ``..`` opens all those before it again."""


def leads_down(target: bytes) -> bool:
    """Whether a symbolic link with this target leads to something beside or below it, wherever it is moved."""
    return bool(target) and not target.startswith(b"/") and b".." not in target.split(b"/")


@contextmanager
def located(root: int, path: bytes, follow: bool) -> Iterator[tuple[int, bytes]]:
    """Yield a directory's descriptor and the name in it, not a symbolic link if ``follow``, that a path leads to.

    The name need not exist. It is ``.`` if the path leads to a directory by ``.`` or ``..``. Raises Refusal if the path
    leads out of ``root``, and OSError.
    """
    if not path:
        raise Refusal(WasiErrno.NOENT, "an empty path")
    walk = _Walk(root)
    try:
        name = walk.to(path, follow or path.endswith(b"/"))
        yield walk.directory, name
    finally:
        walk.close()


class _Walk:
    """A walk from a directory downwards."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._names: list[bytes] = []
        self._links = self._steps = 0
        self.directory = root
        """Where the walk stands."""

    def to(self, path: bytes, follow: bool) -> bytes:
        """Walk to the directory of the last component; return that component."""
        todo = _components(path)
        while todo:
            name = todo.pop()
            if name == b"..":
                self._up()
            elif name != b".":
                target = self._link(name) if todo or follow else None
                if target is not None:
                    todo += _components(target)
                elif todo:
                    self._down(name)
                else:
                    return name
        return b"."

    def close(self) -> None:
        if self.directory != self._root:
            os.close(self.directory)
            self.directory = self._root

    def _link(self, name: bytes) -> bytes | None:
        """The target of a symbolic link; None for anything else."""
        try:
            target = os.readlink(name, dir_fd=self.directory)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise
        self._links += 1
        if self._links > _MAX_LINKS:
            raise Refusal(WasiErrno.LOOP, "too many symbolic links")
        return target

    def _down(self, name: bytes) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise Refusal(WasiErrno.NAMETOOLONG, "too many directories in a path")
        below = os.open(name, _DIRECTORY, dir_fd=self.directory)
        self.close()
        self.directory = below
        self._names.append(name)

    def _up(self) -> None:
        if not self._names:
            raise Refusal(WasiErrno.PERM, "a path out of the granted directory")
        again = self._names[:-1]
        self.close()
        self._names = []
        for name in again:
            self._down(name)


def _components(path: bytes) -> list[bytes]:
    """The parts of a relative path, last one first."""
    if path.startswith(b"/"):
        raise Refusal(WasiErrno.PERM, "an absolute path")
    return [part for part in reversed(path.split(b"/")) if part]
