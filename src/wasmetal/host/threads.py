"""Threads whose start ends in a bounded time, even in a process that has no threads or memory left."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from wasmetal.errors import GuestError

_PATIENCE = 10.0
"""Seconds that a new thread gets to begin."""


class HostThread:
    """A daemon thread that calls one function.

    ``threading.Thread.start`` waits for ever if the new thread has no memory for its first Python frame. And ``join``
    and ``is_alive`` cannot be relied on: before Python 3.13, Ctrl-C during ``join`` marks a running thread as ended.

    Plain locks stand for events, because releasing one takes no memory.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        """``function`` raises nothing."""
        self._function: Callable[[], object] | None = function
        self.ended = False
        """Whether the function has returned, or will never be called."""
        self._begun = _held_lock()
        self._end = _held_lock()
        self._turn = threading.Lock()
        """Who takes it first decides: the new thread, that it runs; the starting one, that it has waited enough."""
        self._ident: int | None = None

    @property
    def is_current(self) -> bool:
        """Whether this is the thread that asks."""
        return self._ident == threading.get_ident()

    def start(self) -> None:
        """Return once the function is being called. Raises GuestError if the system has no thread for it."""
        reason = f"it has not begun after {_PATIENCE:g} seconds"
        try:
            _thread.start_new_thread(self._run, ())
            self._begun.acquire(timeout=_PATIENCE)
        except (RuntimeError, MemoryError) as error:
            reason = str(error) or "no memory"
        finally:  # after Ctrl-C too
            never = self.withdraw()
        if never:
            raise GuestError(
                f"cannot start a thread: {reason}; close other guests, or raise the process's limits on threads and "
                "memory (`ulimit -u`, `ulimit -v`, vm.max_map_count)"
            )

    def launch(self) -> None:
        """Like :meth:`start`, but return at once: the thread begins soon, or never. Raises nothing.

        Whoever waits for it calls :meth:`withdraw` first.
        """
        with suppress(RuntimeError, MemoryError):
            _thread.start_new_thread(self._run, ())

    def withdraw(self) -> bool:
        """If the function is not being called yet, it never will be. Returns whether that is so."""
        never = self._turn.acquire(blocking=False)
        if never:
            self._function = None
            self.ended = True
            self._end.release()
        return never

    def wait(self, seconds: float) -> bool:
        """Wait for at most ``seconds``; return whether the thread has ended."""
        if self._end.acquire(timeout=seconds):
            self._end.release()  # for whoever waits too
        return self.ended

    def _run(self) -> None:
        if not self._turn.acquire(blocking=False):
            return
        try:
            self._ident = threading.get_ident()
            self._begun.release()
            # As in threading.Thread, for debuggers and for the measurement of coverage.
            if trace := threading.gettrace():
                sys.settrace(trace)
            if profile := threading.getprofile():
                sys.setprofile(profile)
            if function := self._function:
                self._function = None  # it refers to the guest, which refers to this thread
                function()
        finally:
            self.ended = True
            self._end.release()


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
