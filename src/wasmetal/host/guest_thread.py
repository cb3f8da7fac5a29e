"""The threads that guest code runs on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from wasmetal.host.runtime import runtime

T = TypeVar("T")


class GuestThread(threading.Thread, Generic[T]):
    """A thread that makes one call into a guest.

    Never the main thread: Python raises KeyboardInterrupt there, which would be lost in a callback from Wasmtime.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(name="wasmetal-guest", daemon=True)
        self.outcome: Future[T] = Future()
        self.done = threading.Event()
        """Set when the guest code has ended. ``join`` is no substitute: before Python 3.13, Ctrl-C during ``join``
        marks a running thread as ended."""
        self._function = function

    def run(self) -> None:
        """Call the function and store its outcome for the waiting thread."""
        try:
            with runtime().ticking():
                value = self._function()
        except BaseException as error:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(value)
        finally:
            del self._function  # refers to the guest, which refers to this thread
            self.done.set()
