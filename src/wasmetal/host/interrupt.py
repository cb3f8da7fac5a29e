"""Stopping a guest: when its time is up, or when the host asks."""

from __future__ import annotations

import threading

from wasmetal.host.account import Account
from wasmetal.wasmtime_c import new_trap


class Interrupt:
    """Decides, at every tick of the engine's epoch and wherever a host function waits, whether a guest may go on."""

    def __init__(self, account: Account) -> None:
        self.reason: BaseException | None = None
        """Why the guest was stopped; it does not run again after that."""
        self._account = account
        self._asked = threading.Event()

    def stop(self, reason: BaseException) -> None:
        """Stop the guest from another thread: soon, or when the host function that it is in returns."""
        self.reason = self.reason or reason
        self._asked.set()

    def check(self) -> None:
        """Raise the reason if the guest is to stop, LimitError at its limit on wall time."""
        if self.reason:
            raise self.reason
        self._account.check_clock()

    def may_go_on(self) -> bool:
        """The same as :meth:`check`, without raising: a guest that may not go on is stopped from then on."""
        try:
            self.check()
        except BaseException as reason:
            self.stop(reason)
            return False
        return True

    def sleep(self, seconds: float) -> None:
        """Wait, unless the guest is to stop meanwhile, for which this raises what :meth:`check` does."""
        left = self._account.wall_left()
        self._asked.wait(min(seconds, threading.TIMEOUT_MAX if left is None else left))
        self.check()

    def trap(self, reason: BaseException) -> int:
        """End the guest from within a host function, which returns the result to Wasmtime."""
        self.stop(reason)
        return new_trap("stopped by the host")
