"""The clock by which running guests are interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from wasmetal.errors import GuestError
from wasmetal.host.threads import HostThread

TICK_SECONDS = 0.02
"""Time between two ticks: about how late a guest is stopped."""
_FRESH = 1.0
"""Age in seconds up to which the last sign of life counts."""
_PATIENCE = 10.0
"""Seconds that the thread gets for a new one: another thread may hold Python's global lock."""


class Ticker:
    """Ticks while guests run, on one thread that lives as long as the process, and sleeps while none does.

    It fails closed: no guest runs unless the thread is known to be alive.
    """

    def __init__(self, tick: Callable[[], object]) -> None:
        """Start the thread. Raises GuestError if that is impossible."""
        self.tick = tick
        """Tick once, from any thread."""
        self._watching: dict[object, Callable[[], None]] = {}  # changed by atomic operations, too
        self._running: list[None] = []  # one for each running guest; changed by atomic operations, so without a lock
        self._asleep = Lock()  # released to wake the thread
        self._seen = time.monotonic()
        """When the thread last gave a sign of life."""
        HostThread(self._run).start()

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """While a guest runs. Raises GuestError, instead of running it, if the thread is dead."""
        self._running.append(None)
        try:
            self._wake()
            self.check()
            yield
        finally:
            self._running.pop()

    def watch(self, look: Callable[[], None]) -> object:
        """Have ``look`` called at each tick, on the ticker's thread, where it may neither wait nor raise.

        For a guest that runs, so that there are ticks. Ends when :meth:`forget` is called with what this returns.
        """
        key = object()
        self._watching[key] = look
        return key

    def forget(self, watch: object) -> None:
        """See :meth:`watch`."""
        del self._watching[watch]

    def check(self) -> None:
        """Raise GuestError if the thread is dead."""
        give_up = time.monotonic() + _PATIENCE
        while (now := time.monotonic()) - self._seen > _FRESH:
            if now > give_up:
                raise GuestError("the thread that stops guests at their limits does not run; restart the process")
            self._wake()
            time.sleep(0.0001)

    def _wake(self) -> None:
        try:
            self._asleep.release()
        except RuntimeError:  # it is awake
            return

    def _run(self) -> None:
        while True:
            try:
                if not self._running:
                    self._asleep.acquire()
                    self._seen = time.monotonic()
                time.sleep(TICK_SECONDS)
                self.tick()
                for look in list(self._watching.values()):
                    look()
                self._seen = time.monotonic()
            except MemoryError:  # there may be memory at the next turn
                continue
