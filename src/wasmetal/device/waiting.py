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

_SLEEP, _LONGEST = 0.05, 1e-3
"""How long :func:`poll` sleeps at a time after that: a part of the time that it has waited, and at most so much."""

_NAP = 2e-4
"""How long a patient one sleeps, at least."""


def wait_in_slices(wait: Callable[[float], bool], timeout: float | None = None) -> None:
    """Call ``wait(seconds)``, which blocks for at most ``seconds``, until it returns True.

    Raises DeviceTimeoutError after ``timeout`` seconds.
    """
    if timeout is None:
        while not wait(SLICE):
            pass
        return
    deadline = time.monotonic() + timeout
    if wait(SLICE if timeout > SLICE else max(0.0, timeout)):
        return
    while (left := deadline - time.monotonic()) > 0:
        if wait(min(SLICE, left)):
            return
    raise DeviceTimeoutError(f"the device did not finish within {timeout:g} seconds; it is still running")


def poll(ended: Callable[[], bool], seconds: float, patient: bool = False, due: float = 0.0) -> bool:
    """Ask ``ended()`` until it is true, for at most ``seconds``; return the last answer.

    For work that cannot be waited for in any other way. ``patient``: sleep from the beginning, so that other threads
    get Python's lock: one that asks again and again lets go of it for too short a time. ``due``: when it is expected
    to end (``time.perf_counter()``), and so is asked for the first time.
    """
    begin = time.perf_counter()
    if due > begin and (left := min(due - begin, seconds)) > 0:
        time.sleep(left)
        begin, seconds = begin + left, seconds - left
    done = ended() if patient else spin(ended, seconds)
    while not done and (waited := time.perf_counter() - begin) < seconds:
        least = _NAP if patient else 0.0
        time.sleep(min(max(_SLEEP * waited, least), _LONGEST, seconds - waited))
        done = ended()
    return done


def spin(ended: Callable[[], bool], seconds: float) -> bool:
    """Ask ``ended()`` until it is true, for at most ``seconds`` or SPIN; return the last answer."""
    until = time.perf_counter() + min(seconds, SPIN)
    while not ended():
        if time.perf_counter() >= until:
            return False
    return True
