"""Waiting for a device in slices, so that Python sees signals in between and Ctrl-C ends a long wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from wasmetal.errors import DeviceTimeoutError

SLICE = 0.5
"""Seconds of an uninterrupted wait."""


def wait_in_slices(wait: Callable[[float], bool], timeout: float | None = None) -> None:
    """Call ``wait``, which blocks for at most the seconds that it is given, until it returns True.

    Raises DeviceTimeoutError after ``timeout`` seconds.
    """
    if timeout is None:
        while not wait(SLICE):
            pass
        return
    deadline = time.monotonic() + timeout
    while not wait(min(SLICE, max(0.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
            raise DeviceTimeoutError(f"the device did not finish within {timeout:g} seconds; it is still at work")
