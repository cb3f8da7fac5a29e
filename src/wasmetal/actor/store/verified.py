"""Which files of chunks have been verified, and have not changed since as far as the file system's times tell.

Nobody can set the time of a file's last change (``st_ctime``), short of setting the clock; but it is coarse, so that a
file that has just been changed is not remembered.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from typing import Final

_MOST: Final = 1 << 16
"""Files that are remembered: some 16 MB of memory, and at least 4 GiB of chunks."""
_YOUNG: Final = 2_000_000_000
"""Nanoseconds since its last change after which a file is remembered."""

_State = tuple[int, ...]


class Verified:
    """What this process has verified. Any thread may use it."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, _State] = OrderedDict()

    def has(self, digest: str, found: os.stat_result) -> bool:
        """Whether the chunk in this file was verified, and the file is as it was then."""
        return self._states.get(digest) == _state(found)

    def add(self, digest: str, found: os.stat_result) -> None:
        """Remember that the chunk in this file was verified. ``found``: as it was before that."""
        if time.time_ns() - found.st_ctime_ns > _YOUNG:
            self._states[digest] = _state(found)
            while len(self._states) > _MOST:
                self._states.popitem(last=False)


def _state(found: os.stat_result) -> _State:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
