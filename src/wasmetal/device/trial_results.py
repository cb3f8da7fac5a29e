"""The results of a device's trials, saved for later processes, and the features that depend on them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from wasmetal.device.pipelines import CacheFile


class TrialResults:
    """The results of one device's trials, each of which runs once.

    Passed trials are saved in a file, so that the next process need not run them. It repeats a failed one, since the
    device may have been busy or out of memory. What the results depend on must be part of the file's ``name``.
    """

    def __init__(self, name: str) -> None:
        self._file = CacheFile(name)
        self._passed = set(self._file.read().decode().splitlines())
        self._problems: dict[str, str] = {}
        self._lock = threading.Lock()
        self.features: list[str] = []
        """For ``DeviceInfo.features``: the features that are used, and why others are not."""

    def problem(self, trial: str, run: Callable[[], str | None]) -> str | None:
        """Why a trial failed; None if it passed. ``run`` runs it, if its result is not known yet, and returns that."""
        with self._lock:
            if trial not in self._passed and trial not in self._problems:
                if problem := run():
                    self._problems[trial] = problem
                else:
                    self._passed.add(trial)
                    self._file.write("\n".join(sorted(self._passed)).encode())
            return self._problems.get(trial)

    def uses(self, feature: str, run: Callable[[], str | None]) -> bool:
        """Whether an optional feature is used: if the trial of that name passes. Adds to ``features``."""
        problem = self.problem(feature, run)
        self.features.append(f"no {feature} ({problem})" if problem else feature)
        return problem is None
