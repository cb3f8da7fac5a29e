"""What wakes a thread."""

from __future__ import annotations

from _thread import allocate_lock


class Signal:
    """Given by any thread, and taken by the one that waits for it: a lock, which costs a tenth of a threading.Event."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def give(self) -> None:
        """Wake the thread that waits, or have the next one that waits go on at once. Idempotent until then."""
        try:
            self._lock.release()
        except RuntimeError:  # given already
            return

    def wait(self, seconds: float) -> None:
        """Wait until it is given, for at most ``seconds``, and take it."""
        self._lock.acquire(timeout=seconds)
