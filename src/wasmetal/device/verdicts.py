"""Which trials a device has passed, kept on disk, so that the next process need not run them again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from wasmetal.device.pipelines import CacheFile


class Verdicts:
    """The trials of one device, each run once.

    Only agreement is kept on disk: a device that failed a trial is tried again by the next process, since it may have
    been busy, or out of memory. The file's name says what the verdicts depend on.
    """

    def __init__(self, name: str) -> None:
        self._file = CacheFile(name)
        self._passed = set(self._file.path.read_text().splitlines()) if self._file.whole() else set()
        self._obstacles: dict[str, str] = {}
        self._lock = threading.Lock()

    def obstacle(self, trial: str, run: Callable[[], str | None]) -> str | None:
        """What a trial found in the way, in words; None if nothing. ``run`` runs it, if it has not been passed yet."""
        with self._lock:
            if trial not in self._passed and trial not in self._obstacles:
                if obstacle := run():
                    self._obstacles[trial] = obstacle
                else:
                    self._passed.add(trial)
                    self._file.replace(lambda path: path.write_text("\n".join(sorted(self._passed))))
            return self._obstacles.get(trial)
