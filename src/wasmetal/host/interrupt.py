"""Stopping a guest: when its time is up, or when the host asks."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import wasmtime
from wasmtime import _bindings as c_api

from wasmetal.host.limits import Account

_EpochCallback = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.POINTER(c_api.wasmtime_context_t),
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(c_api.wasmtime_update_deadline_kind_t),
)
NO_FINALIZER = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))
_CONTINUE = 0


class Interrupt:
    """Asks, at every tick of the engine's epoch and wherever a host function waits, whether a guest may go on.

    Must outlive the guest's store.
    """

    def __init__(self, store: wasmtime.Store, account: Account) -> None:
        self.reason: BaseException | None = None
        """Why the guest was stopped; it is not run again then."""
        self._account = account
        self._asked = threading.Event()
        self._callback = _EpochCallback(self._tick)
        c_api.wasmtime_store_epoch_deadline_callback(store.ptr(), self._callback, None, NO_FINALIZER)
        store.set_epoch_deadline(1)

    def stop(self, reason: BaseException) -> None:
        """Stop the guest from another thread: soon, or when the host function that it is in returns."""
        self.reason = self.reason or reason
        self._asked.set()

    def check(self) -> None:
        """Raise the reason where the guest is to stop, LimitError at its limit on wall time."""
        if self.reason:
            raise self.reason
        self._account.check_clock()

    def sleep(self, seconds: float) -> None:
        """Wait, unless the guest is to stop meanwhile, which is raised."""
        left = self._account.wall_left()
        self._asked.wait(min(seconds, threading.TIMEOUT_MAX if left is None else left))
        self.check()

    def trap(self, reason: BaseException) -> int:
        """End the guest from within a host function: what that returns to Wasmtime."""
        self.stop(reason)
        return _owned(wasmtime.Trap("stopped by the host"))

    def _tick(self, _context: Any, _data: Any, delta: Any, kind: Any) -> int:
        try:
            self.check()
        except BaseException as reason:
            self.stop(reason)
            return _owned(wasmtime.WasmtimeError("stopped by the host"))
        delta[0], kind[0] = 1, _CONTINUE
        return 0


def _owned(error: wasmtime.Trap | wasmtime.WasmtimeError) -> int:
    """The address of an error that Wasmtime then owns."""
    return ctypes.cast(error._consume(), ctypes.c_void_p).value or 0
