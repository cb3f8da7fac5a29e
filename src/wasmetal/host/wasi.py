"""WASI preview 1 for guests: what is granted, and clocks that let a sleeping guest be stopped."""

# ruff: noqa: D102

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import wasmtime

from wasmetal import wasmtime_c
from wasmetal.errors import GuestError
from wasmetal.host.abi import U32, U64
from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.view import GuestMemory

MODULE = "wasi_snapshot_preview1"

Output = Callable[[bytes], object]
"""Called with a guest's output, as the guest writes it."""


def configure(
    args: Sequence[str],
    env: Mapping[str, str],
    dirs: Mapping[str, str],
    stdin: bytes | Literal["inherit"],
    stdout: Output,
    stderr: Output,
) -> wasmtime.WasiConfig:
    """A guest's WASI configuration. ``dirs``: host directories by the guest's names for them. Raises GuestError."""
    config = wasmtime.WasiConfig()
    try:
        config.argv = list(args)
        config.env = list(env.items())
        for name, path in dirs.items():
            config.preopen_dir(path, name)
    except wasmtime.WasmtimeError as error:
        raise GuestError(f"cannot grant directory {path}: {error}; does it exist?") from error
    if stdin == "inherit":
        config.inherit_stdin()
    else:
        wasmtime_c.set_stdin(config, stdin)
    config.stdout_custom = stdout
    config.stderr_custom = stderr
    return config


@atexit.register
def _outlive_outputs() -> None:
    """Wait, at exit, until Wasmtime has released the outputs of guests that were closed.

    Wasmtime releases them slightly later, from its own threads, through a Python callback; a callback while Python
    shuts down crashes the process.
    """
    give_up = time.monotonic() + 0.5  # a guest may never have been closed
    while wasmtime_c.outputs_in_use() and time.monotonic() < give_up:
        time.sleep(0.001)


_SUBSCRIPTION = np.dtype(
    {
        "names": ["userdata", "tag", "clock", "timeout", "flags"],
        "formats": ["<u8", "u1", "<u4", "<u8", "<u2"],
        "offsets": [0, 8, 16, 24, 40],
        "itemsize": 48,
    },
    align=True,
)
_EVENT = np.dtype(
    {
        "names": ["userdata", "error", "type", "nbytes"],
        "formats": ["<u8", "<u2", "u1", "<u8"],
        "offsets": [0, 8, 10, 16],
        "itemsize": 32,
    },
    align=True,
)
_REALTIME, _MONOTONIC = 0, 1
_ON_CLOCK = 0
_ABSOLUTE = 1
_MAX_SUBSCRIPTIONS = 4096


CLOCKS: dict[str, tuple[str, ...]] = {"clock_time_get": (U32, U64, U32), "poll_oneoff": (U32, U32, U32, U32)}
"""The functions of :class:`Clocks` and their parameters. Preview 1 has 32-bit pointers."""


class Clocks:
    """WASI's clock and poll functions, as in its specification."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._start = time.monotonic_ns()

    def clock_time_get(self, memory: GuestMemory, clock: int, precision: int, out: int) -> None:
        memory.array(out, 1, np.uint64)[0] = self._now(clock)

    def poll_oneoff(self, memory: GuestMemory, ptr: int, out: int, count: int, count_out: int) -> None:
        if not 0 < count <= _MAX_SUBSCRIPTIONS:
            raise Refusal(Errno.INVAL, f"{count} subscriptions; 1 to {_MAX_SUBSCRIPTIONS} are possible")
        subscriptions = memory.array(ptr, count, _SUBSCRIPTION).copy()
        events = memory.array(out, count, _EVENT)
        ready = memory.array(count_out, 1, np.uint32)
        # Files are always ready.
        due = [self._delay(each) if each["tag"] == _ON_CLOCK else 0 for each in subscriptions]
        self._interrupt.sleep(min(due) / 1e9)
        fired = subscriptions[np.array(due, dtype=object) <= min(due)]
        events[: len(fired)] = np.zeros((), _EVENT)
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
            return time.monotonic_ns() - self._start
        raise Refusal(Errno.INVAL, f"clock {clock} is not known")
