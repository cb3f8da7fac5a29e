"""Threads that work side by side in a soak."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable

from tests.fuzz.resources import Held

PATIENCE = 300.0
"""Seconds that one piece of work may take: many times what it needs on a busy machine."""


class Crew:
    """Threads that repeat their work, and can all be brought to rest."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0
        """Seconds of the longest piece of work of an honest guest."""
        self._working = threading.Event()
        self._ended = False
        self._rest = threading.Barrier(1)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def start(self, workers: list[Callable[[], str]]) -> None:
        """Each worker in a thread of its own."""
        self._rest = threading.Barrier(len(workers) + 1)
        self._working.set()
        self._threads = [threading.Thread(target=self._repeat, args=(work,), daemon=True) for work in workers]
        for thread in self._threads:
            thread.start()

    def rest(self, measure: Callable[[], Held]) -> Held:
        """Wait until every worker has finished what it does, measure, and let them go on.

        Ends the process, and shows where each thread is, if one has not finished after PATIENCE.
        """
        self._working.clear()
        try:
            self._rest.wait(PATIENCE)
        except threading.BrokenBarrierError:
            print(f"WRONG: not all have finished after {PATIENCE:.0f} s", file=sys.stderr, flush=True)
            faulthandler.dump_traceback()
            os._exit(1)
        gc.collect()
        held = measure()
        self._working.set()
        self._rest.wait()
        return held

    def stop(self) -> None:
        """End all threads."""
        self._ended = True
        for thread in self._threads:
            thread.join(60)

    def _repeat(self, work: Callable[[], str]) -> None:
        while not self._ended:
            if not self._working.is_set():
                self._rest.wait()
                self._rest.wait()
            try:
                outcome = work()
            except BaseException:
                outcome = "failed"
                self.failures.append(traceback.format_exc())
            with self._lock:
                self.counts[outcome] += 1
