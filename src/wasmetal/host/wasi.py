"""WASI preview 1 for guests: arguments and environment, and clocks that let a sleeping guest be stopped."""

# ruff: noqa: D102

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import wasmtime

from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.view import GuestMemory
from wasmetal.host.wasi_abi import EVENT, SUBSCRIPTION

Output = Callable[[bytes], object]
"""Called with a guest's output, as the guest writes it."""
Input = bytes | Literal["inherit"] | Callable[[int], bytes]
"""A guest's input: all of it, the process's own, or what is called when the guest reads, with the most bytes that it
takes; no bytes are the end."""


def configure(args: Sequence[str], env: Mapping[str, str]) -> wasmtime.WasiConfig:
    """What Wasmtime's own part of WASI gives a guest: arguments and environment, and no files or streams."""
    config = wasmtime.WasiConfig()
    config.argv = list(args)
    config.env = list(env.items())
    return config


_REALTIME, _MONOTONIC = 0, 1
_ON_CLOCK = 0
_ABSOLUTE = 1
_MAX_SUBSCRIPTIONS = 4096


class Clocks:
    """WASI's clock and poll functions, as in its specification."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._start = time.monotonic_ns()

    @property
    def elapsed(self) -> int:
        """What the guest's monotonic clock shows, in nanoseconds."""
        return time.monotonic_ns() - self._start

    @elapsed.setter
    def elapsed(self, nanoseconds: int) -> None:
        self._start = time.monotonic_ns() - nanoseconds

    def clock_time_get(self, memory: GuestMemory, clock: int, precision: int, out: int) -> None:
        memory.array(out, 1, np.uint64)[0] = self._now(clock)

    def poll_oneoff(self, memory: GuestMemory, ptr: int, out: int, count: int, count_out: int) -> None:
        if not 0 < count <= _MAX_SUBSCRIPTIONS:
            raise Refusal(Errno.INVAL, f"{count} subscriptions; 1 to {_MAX_SUBSCRIPTIONS} are possible")
        subscriptions = memory.array(ptr, count, SUBSCRIPTION).copy()
        events = memory.array(out, count, EVENT)
        ready = memory.array(count_out, 1, np.uint32)
        # Files are always ready.
        due = [self._delay(each) if each["tag"] == _ON_CLOCK else 0 for each in subscriptions]
        self._interrupt.sleep(min(due) / 1e9)
        fired = subscriptions[np.array(due, dtype=object) <= min(due)]
        events[: len(fired)] = np.zeros((), EVENT)
        events["userdata"][: len(fired)] = fired["userdata"]
        events["type"][: len(fired)] = fired["tag"]
        ready[0] = len(fired)

    def _delay(self, subscription: np.void) -> int:
        timeout = int(subscription["timeout"])
        if subscription["flags"] & _ABSOLUTE:
            timeout -= self._now(int(subscription["clock"]))
        return max(timeout, 0)

    def _now(self, clock: int) -> int:
        if clock == _REALTIME:
            return time.time_ns()
        if clock == _MONOTONIC:
            return self.elapsed
        raise Refusal(Errno.INVAL, f"clock {clock} is not known")
