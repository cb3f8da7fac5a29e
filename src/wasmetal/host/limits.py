"""What a guest may use, and the account of what it has used."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from weakref import WeakKeyDictionary

from wasmetal.counters import Counters
from wasmetal.device.base import Device
from wasmetal.errors import GuestError, LimitError
from wasmetal.host.errno import Errno, Refusal


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one guest. None: no limit."""

    memory_bytes: int = 4 << 30
    """Bytes of a linear memory. Past it ``memory.grow`` gives -1, and a module that asks for more to begin with is
    refused with LimitError."""
    memories: int = 1
    """How many linear memories the module may have, each of up to ``memory_bytes``; LimitError."""
    device_bytes: int = 4 << 30
    """Device memory held by the guest's buffers and sessions; the call gives NOMEM."""
    handles: int = 1024
    """Buffers, submissions, models and sessions held at a time; the call gives MFILE."""
    commands: int = 16_384
    """Commands in one list (TOOBIG), and in all pending submissions together (AGAIN)."""
    wall_seconds: float | None = None
    """Time that one run may take; LimitError. What the host is at is brought to its end first: one kernel on the CPU
    device, one forward pass of a model, one read of a granted standard input."""
    device_seconds: float | None = None
    """Time that the device may spend for the guest; LimitError, as above. Until the device tells how long a submission
    took, the time that the guest has waited for it is taken."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value >= 0:
                raise GuestError(f"limit {field.name} is {value}; it must be 0 or more")


_COUNTED = tuple(field.name for field in fields(Counters) if field.name != "device_seconds")
_totals = attrgetter(*_COUNTED)
_locks: WeakKeyDictionary[Device, threading.RLock] = WeakKeyDictionary()


class Account:
    """What one guest has used, held against its limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.device_bytes = 0
        """Device memory that the guest holds now."""
        self._deadline: float | None = None

    @contextmanager
    def metered(self, device: Device) -> Iterator[None]:
        """Have the device to oneself, and what it counts meanwhile added to the guest's counters.

        Guests on several threads may share a device: one of them is at it at a time. Device time is left to those who
        wait: a device may come to know only now how long another guest's work took. Raises LimitError at the end where
        the guest's is used up.
        """
        with _locks.setdefault(device, threading.RLock()):
            before = _totals(device.counters)
            try:
                yield
            finally:
                for name, old, new in zip(_COUNTED, before, _totals(device.counters), strict=True):
                    setattr(self.counters, name, getattr(self.counters, name) + new - old)
        self.check_device_time()

    @contextmanager
    def charged(self, nbytes: int) -> Iterator[None]:
        """Device memory that is being allocated: in the account from before on, out of it again where that fails.

        Raises NOMEM over the limit.
        """
        if self.device_bytes + nbytes > self.limits.device_bytes:
            raise Refusal(Errno.NOMEM, f"limit reached: {self.limits.device_bytes} bytes of device memory")
        self.device_bytes += nbytes
        try:
            yield
        except BaseException:
            self.device_bytes -= nbytes
            raise

    def release(self, nbytes: int) -> None:
        """Device memory that was given back."""
        self.device_bytes -= nbytes

    def start_clock(self) -> None:
        """A run begins."""
        limit = self.limits.wall_seconds
        self._deadline = None if limit is None else time.monotonic() + limit

    def wall_left(self) -> float | None:
        """Seconds until the limit on wall time; None where there is none."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def check_clock(self) -> None:
        """Raise LimitError where the run has taken its time."""
        if self.wall_left() == 0:
            raise LimitError(f"limit reached: {self.limits.wall_seconds:g} seconds of wall time")

    def check_device_time(self, more: float = 0.0) -> None:
        """Raise LimitError where the device has spent its time, and ``more`` seconds."""
        limit = self.limits.device_seconds
        if limit is not None and self.counters.device_seconds + more > limit:
            raise LimitError(f"limit reached: {limit:g} seconds of device time")
