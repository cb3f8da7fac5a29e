"""Locks on files, of other processes and other threads, that end when a process does, however it ends.

They belong to open file descriptions (``F_OFD_SETLK``; fcntl(2)), so whoever wants one opens the file anew. A child
made by ``os.fork`` has its parent's open files: a lock then lasts until it is given back, or both have ended. File
systems of other machines may not pass them on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_DARWIN: Final = sys.platform == "darwin"
_SETLK: Final = 90 if _DARWIN else fcntl.F_OFD_SETLK
"""macOS has these calls under the numbers of its ``sys/fcntl.h``, which Python does not name."""
_SETLKW: Final = 91 if _DARWIN else fcntl.F_OFD_SETLKW
_GETLK: Final = 92 if _DARWIN else fcntl.F_OFD_GETLK
_LAYOUT: Final = "qqihh" if _DARWIN else "hhqqi"


def open_lock(path: str | os.PathLike[str]) -> int:
    """The descriptor of a file to lock, which is made if it is not there. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def try_lock(descriptor: int) -> bool:
    """Lock the file for this descriptor alone; False if another has it locked. Raises OSError."""
    try:
        fcntl.fcntl(descriptor, _SETLK, _request(fcntl.F_WRLCK))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def is_locked(descriptor: int) -> bool:
    """Whether another descriptor has the file locked. Changes nothing. Raises OSError."""
    found = fcntl.fcntl(descriptor, _GETLK, _request(fcntl.F_WRLCK))
    fields = struct.unpack(_LAYOUT, found)
    return bool(fields[3 if _DARWIN else 0] != fcntl.F_UNLCK)


def unlock(descriptor: int) -> None:
    """Give the lock back, also for a child that has the descriptor since a fork. Raises OSError."""
    fcntl.fcntl(descriptor, _SETLK, _request(fcntl.F_UNLCK))


@contextmanager
def locked(path: str | os.PathLike[str], *, exclusive: bool) -> Iterator[None]:
    """Wait for the file's lock, alone or together with others that share it. Raises OSError."""
    descriptor = open_lock(path)
    try:
        fcntl.fcntl(descriptor, _SETLKW, _request(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK))
        try:
            yield
        finally:
            unlock(descriptor)
    finally:
        os.close(descriptor)


def _request(kind: int) -> bytes:
    return struct.pack(_LAYOUT, *((0, 0, 0, kind, os.SEEK_SET) if _DARWIN else (kind, os.SEEK_SET, 0, 0, 0)))
