"""What one guest has used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from wasmetal.counters import Counters
from wasmetal.errors import LimitError
from wasmetal.host.errno import Errno, Refusal, WasiErrno
from wasmetal.host.host_time import HostTime
from wasmetal.host.limits import Limits


class Account:
    """One guest's use of resources, checked against its limits.

    Only the guest's own host calls write to it, one at a time, so it needs no lock.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.device_bytes = 0
        """Device memory that the guest holds now."""
        self.disk_bytes = 0
        """Bytes by which the guest has extended files."""
        self.files = 0
        """Files, directories and links that the guest has created."""
        self.host_time = HostTime()
        self._deadline: float | None = None

    def charge(self, nbytes: int) -> None:
        """Charge device memory; what was released is negative. Raises NOMEM over the limit."""
        if nbytes > 0 and self.device_bytes + nbytes > self.limits.device_bytes:
            raise Refusal(Errno.NOMEM, f"limit reached: {self.limits.device_bytes} bytes of device memory")
        self.device_bytes += nbytes

    def room(self) -> int:
        """Bytes of device memory that can still be charged."""
        return max(self.limits.device_bytes - self.device_bytes, 0)

    @contextmanager
    def charged(self, nbytes: int) -> Iterator[None]:
        """Charge device memory that is being allocated; if the allocation fails, the charge is taken back.

        Raises NOMEM over the limit.
        """
        self.charge(nbytes)
        try:
            yield
        except BaseException:
            self.device_bytes -= nbytes
            raise

    def release(self, nbytes: int) -> None:
        """Device memory was released."""
        self.device_bytes -= nbytes

    @contextmanager
    def extending(self, nbytes: int) -> Iterator[None]:
        """Charge bytes by which a file is being extended; if that fails, the charge is taken back. Raises DQUOT."""
        if self.disk_bytes + nbytes > self.limits.disk_bytes:
            raise Refusal(WasiErrno.DQUOT, f"limit reached: {self.limits.disk_bytes} bytes added to files")
        self.disk_bytes += nbytes
        try:
            yield
        except BaseException:
            self.disk_bytes -= nbytes
            raise

    @contextmanager
    def creating(self) -> Iterator[None]:
        """Charge a file, directory or link that is being created; if that fails, the charge is taken back. DQUOT."""
        if self.files + 1 > self.limits.files:
            raise Refusal(WasiErrno.DQUOT, f"limit reached: {self.limits.files} files created")
        self.files += 1
        try:
            yield
        except BaseException:
            self.files -= 1
            raise

    def start_clock(self) -> None:
        """A run begins."""
        limit = self.limits.wall_seconds
        self._deadline = None if limit is None else time.monotonic() + limit

    def wall_left(self) -> float | None:
        """Seconds until the limit on wall time; None if there is no limit."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def check_clock(self) -> None:
        """Raise LimitError if the run has used up its wall time, or the guest its host time."""
        self.host_time.look()
        self.check_host_time()
        if self.wall_left() == 0:
            raise LimitError(f"limit reached: {self.limits.wall_seconds:g} seconds of wall time")

    def over(self, device_seconds: float) -> bool:
        """Whether the run has used up its wall time, or, with so much more, the guest its device time."""
        limit = self.limits.device_seconds
        return self.wall_left() == 0 or (limit is not None and self.counters.device_seconds + device_seconds > limit)

    def check_host_time(self) -> None:
        """Raise LimitError if the guest has used up its host time, as far as it is settled."""
        limit = self.limits.host_seconds
        if limit is not None and self.host_time.seconds > limit:
            raise LimitError(f"limit reached: {limit:g} seconds of host time")

    def check_device_time(self, more: float = 0.0) -> None:
        """Raise LimitError if the guest's device time, plus ``more`` seconds, is over the limit."""
        limit = self.limits.device_seconds
        if limit is not None and self.counters.device_seconds + more > limit:
            raise LimitError(f"limit reached: {limit:g} seconds of device time")
