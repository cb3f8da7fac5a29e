"""Waiting in slices, so that Python can handle signals in between and Ctrl-C ends a long wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from wasmetal.errors import DeviceTimeoutError

SLICE = 0.5
"""Length of a slice in seconds."""
SPIN = 2e-3
"""Seconds for which a wait for a GPU asks again and again before it sleeps, since waking up takes a driver 0.1 ms: the
tokens of small models end within them."""


def wait_in_slices(wait: Callable[[float], bool], timeout: float | None = None) -> None:
    """Call ``wait(seconds)``, which blocks for at most ``seconds``, until it returns True.

    Raises DeviceTimeoutError after ``timeout`` seconds.
    """
    if timeout is None:
        while not wait(SLICE):
            pass
        return
    deadline = time.monotonic() + timeout
    while not wait(min(SLICE, max(0.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
            raise DeviceTimeoutError(f"the device did not finish within {timeout:g} seconds; it is still running")


def spin(ended: Callable[[], bool], seconds: float) -> bool:
    """Ask ``ended()`` until it is true, for at most ``seconds`` or SPIN; return the last answer."""
    until = time.perf_counter() + min(seconds, SPIN)
    while not ended():
        if time.perf_counter() >= until:
            return False
    return True
