"""Telling a driver every now and then that a device is still wanted."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

INTERVAL = 0.5
"""Seconds from beat to beat."""
LASTS = 180.0
"""Seconds after the last use for which there are beats."""


class Heartbeat:
    """Calls ``beat`` at most every ``INTERVAL`` seconds: while the device is used, and for a while after that.

    A device in use beats by itself (:meth:`use`); a daemon thread takes over when it is idle. The thread ends ``LASTS``
    seconds after the last use, when ``beat`` returns False, and when the heartbeat is stopped or nobody refers to it.
    """

    def __init__(self, beat: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """``beat`` returns whether there is anything to keep; a bound method is referred to weakly."""
        self._beat = weakref.WeakMethod(beat)
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._used = self._last = -LASTS

    @property
    def alive(self) -> bool:
        """Whether there is a thread that beats."""
        return self._thread is not None

    def use(self, now: bool = False) -> None:
        """Note a use; beat if the last beat is some time ago, or ``now``."""
        self._used = self._clock()
        if (now or self._used - self._last >= INTERVAL) and self.step():
            self._start()

    def step(self) -> bool:
        """Beat, unless the last use is too long ago; return whether there are to be more beats."""
        now, beat = self._clock(), self._beat()
        if now - self._used >= LASTS or beat is None:
            return False
        self._last = now
        return beat()

    def stop(self) -> None:
        """End the thread. There will be no other."""
        self._stop.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                arguments = weakref.ref(self), self._stop
                self._thread = threading.Thread(target=_run, args=arguments, name="wasmetal heartbeat", daemon=True)
                self._thread.start()

    def _ended(self) -> bool:
        """Beat once for the thread, and note its end if that was the last time."""
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
