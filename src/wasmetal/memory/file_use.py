"""Which files are mapped, and which are open for writing by guests: never the same ones.

Whoever reads the pages of a mapped file that was shortened meanwhile is killed by the system (SIGBUS). So a mapped file
cannot be opened for writing by a guest of this process, nor the reverse.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from typing import Final

_lock = threading.Lock()
_users: Counter[tuple[int, int]] = Counter()
"""By device and inode: how many map a file, or as a negative number, how many write it."""
_ended: deque[FileUse] = deque()
"""Users that are no longer, and are still counted."""

MAPPING: Final = 1
WRITING: Final = -1


class FileUse:
    """One user of a file, until it is released."""

    def __init__(self, status: os.stat_result, kind: int) -> None:
        self._file = status.st_dev, status.st_ino
        self._kind = kind

    def begin(self) -> bool:
        """Whether nobody uses the file in the other way; if so, it is used from now on."""
        with _lock:
            while _ended:
                _ended.popleft()._subtract()
            if _users[self._file] * self._kind < 0:
                return False
            _users[self._file] += self._kind
            return True

    def end(self) -> None:
        """It is no longer used. Once for each successful :meth:`begin`.

        Takes no lock, so that finalizers may call it.
        """
        _ended.append(self)

    def _subtract(self) -> None:
        _users[self._file] -= self._kind
        if not _users[self._file]:
            del _users[self._file]
