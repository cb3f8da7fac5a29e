"""What all guests of a process share: one Wasmtime engine, the source of their memories, and the clock that stops them.

``wasmetal.memory.wasmtime_engine`` configures the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from wasmetal.memory import MemoryCreator, new_engine

TICK_SECONDS = 0.02
"""Time between two ticks of the epoch: about how late a guest is stopped."""


class Runtime:
    """The engine, the creator of its linear memories, and the ticker by which running guests are interrupted."""

    def __init__(self) -> None:
        self.creator = MemoryCreator()
        self.engine = new_engine(self.creator)
        self._lock = threading.Lock()
        self._running = 0
        self._idle = threading.Event()

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """While a guest runs: the epoch advances as long as any guest is running."""
        with self._lock:
            self._running += 1
            if self._running == 1:
                self._idle = threading.Event()
                threading.Thread(target=self._tick, args=(self._idle,), name="wasmetal-epoch", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self._idle.set()

    def _tick(self, idle: threading.Event) -> None:
        while not idle.wait(TICK_SECONDS):
            self.engine.increment_epoch()


@cache
def runtime() -> Runtime:
    """The process's runtime."""
    return Runtime()
