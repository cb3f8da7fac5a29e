"""Guest code running on its own thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from wasmetal.host.runtime import runtime

T = TypeVar("T")


class Call(threading.Thread, Generic[T]):
    """One call into a guest.

    Never on the main thread: Python raises KeyboardInterrupt there, which would be lost in a callback from Wasmtime.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(name="wasmetal-guest", daemon=True)
        self.outcome: Future[T] = Future()
        self.done = threading.Event()
        """Set when no guest code runs any more. ``join`` cannot tell: before Python 3.13, Ctrl-C during a ``join``
        makes a running thread count as ended."""
        self._function = function

    def run(self) -> None:
        """Call the function, and keep its outcome for the thread that waits."""
        try:
            with runtime().ticking():
                value = self._function()
        except BaseException as error:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(value)
        finally:
            del self._function  # refers to the guest, which refers to this
            self.done.set()
