"""Periodic calls that tell a driver that a device is still in use."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

INTERVAL = 0.5
"""Seconds between beats."""
LASTS = 180.0
"""Seconds that beats go on after the last use."""


class Heartbeat:
    """Calls ``beat`` at most every ``INTERVAL`` seconds: while a device is used, and for a while afterwards.

    Each use beats if a beat is due (:meth:`use`); a daemon thread beats while the device is idle. The thread ends
    ``LASTS`` seconds after the last use, when ``beat`` returns False, and when the heartbeat is stopped or collected.
    """

    def __init__(self, beat: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """``beat``, a bound method that is referenced weakly, returns whether there should be more beats."""
        self._beat = weakref.WeakMethod(beat)
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._used = self._last = -LASTS

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread is not None

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stop.is_set()

    def use(self) -> None:
        """Note a use; beat if a beat is due."""
        self._used = self._clock()
        if self._used - self._last >= INTERVAL and self.step():
            self._start()

    def hasten(self) -> None:
        """Make a beat due: there is something new to keep in use."""
        self._last = -LASTS

    def step(self) -> bool:
        """Beat, unless the last use is ``LASTS`` seconds ago; return whether there should be more beats."""
        now, beat = self._clock(), self._beat()
        if now - self._used >= LASTS or beat is None:
            return False
        self._last = now
        return beat()

    def stop(self) -> None:
        """End the thread for good."""
        self._stop.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                arguments = weakref.ref(self), self._stop
                self._thread = threading.Thread(target=_run, args=arguments, name="wasmetal heartbeat", daemon=True)
                self._thread.start()

    def _ended(self) -> bool:
        """Beat in the thread; return whether that was the last beat and the thread ends."""
        with self._lock:
            if self.step():
                return False
            self._thread = None
            return True


def _run(reference: weakref.ref[Heartbeat], stop: threading.Event) -> None:
    while not stop.wait(INTERVAL):
        heartbeat = reference()
        if heartbeat is None or heartbeat._ended():
            return
        del heartbeat
