"""Which files are mapped, and which are open for writing by guests: never the same ones, whatever the process.

Whoever reads the pages of a mapped file that was shortened meanwhile is killed by the system (SIGBUS), and what is
written to it changes what others compute. So a file is locked while it is mapped, and while a guest has it open for
writing. The locks belong to open file descriptions (``F_OFD_SETLK``; fcntl(2)): they hold between descriptors of one
process as between processes, and end when the last duplicate of a descriptor is closed, however a process ends.

All bytes of a range that no file reaches are locked for reading while the file is mapped. Each writer locks one of them
for writing, chosen at random: there can be many at a time, but none together with a mapping.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
import sys
from typing import Final

_FIRST: Final = 1 << 62
_COUNT: Final = 1 << 61
_SETLK: Final = 90 if sys.platform == "darwin" else fcntl.F_OFD_SETLK
"""macOS has the call under this number (its ``sys/fcntl.h``), which Python does not name."""
_NO_LOCKS: Final = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems and kernels say that do not have such locks."""


def lock_for_mapping(fd: int) -> bool:
    """Lock a file, open for reading, that is about to be mapped; False if a guest has it open for writing.

    Raises OSError if it cannot be locked.
    """
    return _lock(fd, fcntl.F_RDLCK, _FIRST, _COUNT)


def lock_for_writing(fd: int) -> bool:
    """Lock a file that a guest has opened for writing; False if it is mapped. Raises OSError if it cannot be locked."""
    try:
        return _lock(fd, fcntl.F_WRLCK, _FIRST + secrets.randbelow(_COUNT), 1)
    except OSError as error:
        if error.errno in _NO_LOCKS:  # then nobody could lock it for mapping either
            return True
        raise


def _lock(fd: int, kind: int, start: int, count: int) -> bool:
    if sys.platform == "darwin":
        request = struct.pack("qqihh", start, count, 0, kind, os.SEEK_SET)
    else:
        request = struct.pack("hhqqi", kind, os.SEEK_SET, start, count, 0)
    try:
        fcntl.fcntl(fd, _SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
