"""The trials that a device has passed, saved so that the next process need not run them again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from wasmetal.device.pipelines import CacheFile


class Verdicts:
    """The results of one device's trials, each of which runs once.

    Only passed trials are saved: the next process repeats a failed one, since the device may have been busy or out of
    memory. What the results depend on must be part of the file's ``name``.
    """

    def __init__(self, name: str) -> None:
        self._file = CacheFile(name)
        self._passed = set(self._file.read().decode().splitlines())
        self._obstacles: dict[str, str] = {}
        self._lock = threading.Lock()

    def obstacle(self, trial: str, run: Callable[[], str | None]) -> str | None:
        """Why a trial failed; None if it passed. ``run`` runs it if its result is not known yet."""
        with self._lock:
            if trial not in self._passed and trial not in self._obstacles:
                if obstacle := run():
                    self._obstacles[trial] = obstacle
                else:
                    self._passed.add(trial)
                    self._file.replace(lambda path: path.write_text("\n".join(sorted(self._passed))))
            return self._obstacles.get(trial)
