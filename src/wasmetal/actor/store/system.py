"""What a save does to the file system, step by step: each change, and each wait until changes are on the disk."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_FULL_SYNC: Final = getattr(fcntl, "F_FULLFSYNC", None)
"""On macOS, fsync alone leaves the data in the drive's cache."""


class Files:
    """The steps. Tests replace them, to stop at each. All raise OSError."""

    def create(self, path: Path) -> int:
        """A new file, open for writing, that only this user can read: its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, descriptor: int, data: memoryview) -> None:
        """All bytes, uint8 of shape [n], at the file's position."""
        while data:
            data = data[os.write(descriptor, data) :]

    def sync(self, descriptor: int) -> None:
        """Return when the file's content is on the disk."""
        if _FULL_SYNC is not None:
            with suppress(OSError):  # where a file system does not have it, fsync is what there is
                fcntl.fcntl(descriptor, _FULL_SYNC)
                return
        os.fsync(descriptor)

    def sync_folder(self, path: Path) -> None:
        """Return when the folder's entries are on the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, in one step; what had that name is gone."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        """Remove a file's name, if it is there."""
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """A folder that only this user can enter, unless there is one already."""
        path.mkdir(mode=0o700, exist_ok=True)

    def write_file(self, path: Path, data: bytes) -> None:
        """A new file, whose content is on the disk when this returns. Its name need not be."""
        descriptor = self.create(path)
        try:
            self.write(descriptor, memoryview(data))
            self.sync(descriptor)
        finally:
            os.close(descriptor)
