"""What a save does to the file system, step by step: each change, and each wait until changes are on the disk."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
StrPath = str | os.PathLike[str]

_FULL_SYNC: Final = getattr(fcntl, "F_FULLFSYNC", None)
"""On macOS, fsync alone leaves the data in the drive's cache."""


_SYNCFS_REPORTS_ERRORS: Final = (5, 8)
"""The version of Linux from which syncfs(2) says that something could not be written."""


class Files:
    """The steps. Tests replace them, to stop at each. All raise OSError."""

    TOGETHER: int = 3
    """From so many files or folders on, the whole file system is synced, where the system can do that: one wait, not
    one for each. What other programs have written there is waited for, too."""

    def create(self, path: StrPath) -> int:
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

    def sync_folder(self, path: StrPath) -> None:
        """Return when the folder's entries are on the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def sync_file_system(self, descriptor: int) -> None:
        """Return when all that was written to the file's file system is on the disk."""
        if _libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def sync_all(self, descriptors: Sequence[int], folders: Sequence[StrPath]) -> None:
        """Return when the content of these files, and the entries of these folders, are on the disk."""
        if len(descriptors) + len(folders) >= self.TOGETHER and _syncs_file_systems():
            descriptor = descriptors[0] if descriptors else os.open(folders[0], os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.sync_file_system(descriptor)
            finally:
                if not descriptors:
                    os.close(descriptor)
            return
        for descriptor in descriptors:
            self.sync(descriptor)
        for folder in folders:
            self.sync_folder(folder)

    def rename(self, source: StrPath, target: StrPath) -> None:
        """Give a file another name, in one step; what had that name is gone."""
        os.replace(source, target)

    def remove(self, path: StrPath) -> None:
        """Remove a file's name, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def make_folder(self, path: StrPath) -> None:
        """A folder that only this user can enter, unless there is one already."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def write_file(self, path: StrPath, data: bytes, folders: Sequence[StrPath] = ()) -> None:
        """A new file, whose content is on the disk when this returns, and so are the entries of these folders.

        The file's own name need not be.
        """
        descriptor = self.create(path)
        try:
            self.write(descriptor, memoryview(data))
            self.sync_all([descriptor], folders)
        finally:
            os.close(descriptor)


@cache
def _syncs_file_systems() -> bool:
    """Whether the system can sync a whole file system, and says if that went wrong."""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    return (
        sys.platform == "linux"
        and hasattr(_libc, "syncfs")
        and version is not None
        and (int(version[1]), int(version[2])) >= _SYNCFS_REPORTS_ERRORS
    )
