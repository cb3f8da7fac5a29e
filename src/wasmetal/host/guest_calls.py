"""Calls into a guest: one at a time, each on a thread of its own, until the guest is closed or has failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import wasmtime

from wasmetal.errors import GuestError, GuestTrapError
from wasmetal.forked import Origin
from wasmetal.host import unreleased
from wasmetal.host.account import Account
from wasmetal.host.guest_thread import GuestThread
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.runtime import runtime
from wasmetal.host.ticker import TICK_SECONDS
from wasmetal.host.wasm import describe_trap, exited, one_line
from wasmetal.wasmtime_c import StoreOwner, run_only

T = TypeVar("T")

_WAKE: Final = 0.1
"""Seconds after which a waiting main thread checks for Ctrl-C, which does not end a wait if it arrives just before."""
_PATIENCE: Final = 1.0
"""Seconds that a stopped guest gets to end. Only a guest in a long kernel on the CPU device takes longer."""


class GuestCalls:
    """The calls into one guest."""

    def __init__(self, account: Account, interrupt: Interrupt, owner: StoreOwner) -> None:
        """``owner``: that of the guest's store."""
        self.origin: Final = Origin("the guest")
        self.current: GuestThread[Any] | None = None
        """The latest call, which may have ended."""
        self.closed = False
        self._account, self._interrupt, self._owner = account, interrupt, owner
        self._lock = threading.Lock()
        """Held while a call begins and while the guest is closed."""

    @property
    def busy(self) -> bool:
        """Whether a call is being made."""
        call = self.current
        return call is not None and not call.ended

    def enter(self, function: Callable[[], T]) -> T:
        """Run guest code on its thread, to its end. Raises what :meth:`begin` and :meth:`end` do."""
        call = self.begin(function)
        try:
            return self.end(call)
        except BaseException as error:
            self.abandon(call, error)
            raise

    def begin(self, function: Callable[[], T]) -> GuestThread[T]:
        """Begin a call. Raises GuestError if another one is being made or the guest cannot go on, and ForkedError."""

        def run() -> T:
            run_only(self._owner)
            with self._account.host_time:
                return function()

        self.origin.check()
        unreleased.release_left()
        with self._lock:
            if self.closed:
                raise GuestError("the guest is closed")
            if self.busy:
                raise GuestError("the guest is running already; a guest runs one call at a time")
            if self._interrupt.reason:
                raise GuestError(f"the guest cannot go on after this: {self._interrupt.reason}")
            self._account.check_host_time()
            self._account.start_clock()
            self.current = call = GuestThread(run)
            try:
                call.start()
            except BaseException as error:
                self.abandon(call, error)
                raise
        return call

    def end(self, call: GuestThread[T]) -> T:
        """Wait for a call to return. Raises a WasmetalError if it ended in any other way."""
        while not call.wait(_WAKE):
            call.alive()
        try:
            value = call.result()
        except wasmtime.Trap as trap:
            raise self._interrupt.reason or GuestTrapError(describe_trap(trap)) from None
        except wasmtime.ExitTrap as exit:
            raise exited(exit.code) from None
        except wasmtime.WasmtimeError as error:
            raise self._interrupt.reason or GuestError(one_line(error)) from None
        if self._interrupt.reason:  # the guest ended by itself before it noticed
            raise self._interrupt.reason
        return value

    def abandon(self, call: GuestThread[Any], reason: BaseException) -> bool:
        """Stop a call; False if it cannot be stopped because it is in a long kernel on the CPU device."""
        if self.origin.here and not call.ended and not call.is_current:
            self._interrupt.stop(reason)
            give_up = time.monotonic() + _PATIENCE
            while not call.wait(TICK_SECONDS) and time.monotonic() < give_up:
                runtime().ticker.tick()  # it may be the ticker that failed
        return call.ended

    def close(self, release: Callable[[], None]) -> bool:
        """Begin no more calls, stop the one that is being made, and call ``release``; False if that has not ended."""
        self.closed = True
        with self._lock:
            if self.current and not self.abandon(self.current, GuestError("the guest was closed")):
                return False
            release()
            return True
