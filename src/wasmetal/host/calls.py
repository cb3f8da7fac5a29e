"""Guest code at work, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from wasmetal.host.runtime import runtime

T = TypeVar("T")


class Call(threading.Thread, Generic[T]):
    """One call into a guest.

    A thread other than the main one, where Python raises KeyboardInterrupt: in a callback from Wasmtime that would be
    lost.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(name="wasmetal-guest", daemon=True)
        self.outcome: Future[T] = Future()
        self.done = threading.Event()
        """Set when no guest code runs any more. Not for ``join`` to tell: Ctrl-C in it (before Python 3.13) has the
        thread taken for ended while it runs on."""
        self._function = function

    def run(self) -> None:
        """Call the function; its outcome is for the thread that waits."""
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
