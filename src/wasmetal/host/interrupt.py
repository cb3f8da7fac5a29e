"""Stopping a guest: when its time is up, or when the host asks."""

from __future__ import annotations

import threading

from wasmetal.host.account import Account
from wasmetal.wasmtime_c import new_trap


class Interrupt:
    """Decides whether a guest may go on, at every tick of the engine's epoch and whenever a host function waits."""

    def __init__(self, account: Account) -> None:
        self.reason: BaseException | None = None
        """Why the guest was stopped. A stopped guest does not run again."""
        self._account = account
        self._asked = threading.Event()

    def stop(self, reason: BaseException) -> None:
        """Stop the guest, from another thread: at the next tick, or when the current host function returns."""
        self.reason = self.reason or reason
        self._asked.set()

    def check(self) -> None:
        """Raise the reason if the guest is to stop, LimitError at its limit on wall time."""
        if self.reason:
            raise self.reason
        self._account.check_clock()

    def may_go_on(self) -> bool:
        """Like :meth:`check`, but returns False instead of raising. The guest is then stopped for good."""
        try:
            self.check()
        except BaseException as reason:
            self.stop(reason)
            return False
        return True

    def due(self, device_seconds: float) -> bool:
        """Whether the guest is to stop, if it has used so much device time that is not counted yet. From any thread."""
        return self.reason is not None or self._account.over(device_seconds)

    def sleep(self, seconds: float) -> None:
        """Wait. Raises what :meth:`check` does if the guest is stopped meanwhile."""
        left = self._account.wall_left()
        self._asked.wait(min(seconds, threading.TIMEOUT_MAX if left is None else left))
        self.check()

    def trap(self, reason: BaseException) -> int:
        """End the guest from within a host function, which must return the result to Wasmtime."""
        self.stop(reason)
        return new_trap("stopped by the host")
