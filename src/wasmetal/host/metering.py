"""A device as one guest uses it: its use is counted, and the guest takes turns with others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from wasmetal.counters import Counters
from wasmetal.device.base import Buffer, Bytes, CommandList, Device, DeviceInfo, HostPages, MemoryKind, Submission
from wasmetal.host.account import Account
from wasmetal.host.fairness import Share
from wasmetal.host.interrupt import Interrupt


class MeteredDevice:
    """Forwards a guest's requests to a device, and counts their cost in the guest's account.

    No lock is held while the device works, so guests on other threads can use the same device meanwhile.
    """

    def __init__(self, device: Device, account: Account, interrupt: Interrupt) -> None:
        self.share = Share(device)
        self._device = device
        self._account = account
        self._interrupt = interrupt

    @property
    def info(self) -> DeviceInfo:
        """What the device is."""
        return self._device.info

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory, zero-filled. Raises NOMEM over the guest's limit, and OutOfDeviceMemoryError."""
        with self._account.charged(nbytes):
            return self._device.allocate(nbytes, MemoryKind.DEVICE)

    def wrap(self, pages: HostPages) -> Buffer:
        """Pages of the guest as a buffer. Raises WrapRefusedError."""
        buffer = self._device.wrap(pages)
        self._account.counters.bytes_shared += pages.nbytes
        return buffer

    def read(self, buffer: Buffer, offset: int, out: Bytes) -> None:
        """Copy a buffer's bytes to the guest."""
        self._device.read(buffer, offset, out)
        self._account.counters.bytes_copied += out.size

    def write(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Copy the guest's bytes to a buffer."""
        self._device.write(buffer, offset, data)
        self._account.counters.bytes_copied += data.size

    def record(self) -> CommandList:
        """A new, empty command list."""
        return self._device.record()

    def submit(self, lists: Sequence[CommandList]) -> Submission:
        """Start lists as one submission. :meth:`finished` counts its cost."""
        submission = self._device.submit(lists)
        self._account.counters.submits += 1
        self.share.submitted(submission)
        return submission

    def finished(self, submission: Submission) -> None:
        """Count the cost of a submission that has been waited for."""
        self.share.ended(submission)
        self._account.counters.dispatches += submission.dispatches
        self._account.counters.device_seconds += submission.seconds
        self.share.charge(submission.seconds)

    def close(self) -> None:
        """Stop counting: the guest has ended, and its submissions will not be waited for. Idempotent."""
        self.share.close()

    @contextmanager
    def working(self, counters: Counters) -> Iterator[None]:
        """A turn in which other code works for the guest: what it adds to ``counters`` is charged to the guest.

        Raises LimitError at the end if the guest's device time is used up.
        """
        with self.share:
            self.share.wait_turn(self._interrupt.check)
            before = replace(counters)
            try:
                yield
            finally:
                used = counters - before
                self._account.counters.add(used)
                self.share.charge(used.device_seconds)
        self._account.check_device_time()
