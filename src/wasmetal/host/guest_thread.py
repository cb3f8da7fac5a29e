"""The threads that guest code runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

from wasmetal.errors import GuestError
from wasmetal.host.runtime import runtime
from wasmetal.host.threads import HostThread

T = TypeVar("T")


class GuestThread(HostThread, Generic[T]):
    """A thread that makes one call into a guest.

    Never the main thread: Python raises KeyboardInterrupt there, which would be lost in a callback from Wasmtime.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(lambda: self._call(function))
        self._value: T | None = None
        # Made now, since there may be no memory for it later.
        self._error: BaseException | None = GuestError("the guest's thread ended early: the process is out of memory")

    def alive(self) -> bool:
        """Whether the call is still being made. Raises GuestError if nothing could stop it, ForkedError in a child."""
        if self.ended:
            return False
        runtime().ticker.check()
        return True

    def result(self) -> T:
        """What the call returned. Raises what it raised. Called once it has ended."""
        error, self._error = self._error, None
        try:
            if error:
                raise error
            return cast(T, self._value)
        finally:
            del error  # its traceback refers to this frame

    def _call(self, function: Callable[[], T]) -> None:
        try:
            with runtime().ticker.ticking():
                self._value = function()
            self._error = None
        except BaseException as error:
            self._error = error
