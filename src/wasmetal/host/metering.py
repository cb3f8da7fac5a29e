"""A device as one guest uses it: its use is counted, and the guest takes turns with others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

from wasmetal.counters import Counters
from wasmetal.device.base import Buffer, Bytes, CommandList, Device, DeviceInfo, HostPages, MemoryKind, Submission
from wasmetal.errors import DeviceTimeoutError
from wasmetal.host.account import Account
from wasmetal.host.fairness import Share
from wasmetal.host.interrupt import Interrupt

LOOK = 0.05
"""Seconds of waiting for the device between two checks of the guest's limits."""


class MeteredDevice:
    """Forwards a guest's requests to a device, and counts their cost in the guest's account.

    No lock is held while the device works, so guests on other threads can use the same device meanwhile.
    """

    def __init__(self, device: Device, account: Account, interrupt: Interrupt) -> None:
        self.share = Share(device, self._count)
        self._device = device
        self._account = account
        self._interrupt = interrupt

    @property
    def info(self) -> DeviceInfo:
        """What the device is."""
        return self._device.info

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory, zero-filled. Raises NOMEM over the guest's limit, and OutOfDeviceMemoryError."""
        with self._account.charged(self.charge(nbytes)):
            return self._device.allocate(nbytes, MemoryKind.DEVICE)

    def charge(self, nbytes: int) -> int:
        """What ``nbytes`` of device memory are charged as: whole pages, as that is how devices allocate them."""
        page = self._device.info.page_alignment
        return -(-nbytes // page) * page

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
        """Start lists as one submission."""
        submission = self._device.submit(lists)
        self._submitted(submission)
        return submission

    def wait(self, submission: Submission, look: Callable[[], None], end: float = math.inf) -> Exception | None:
        """Wait for a submission of the guest's to end, or until ``end``; return the error if it failed.

        ``look`` is called while it is pending, and may raise. Raises LimitError if the guest's device time, with what
        it has waited, is used up.
        """
        begin = now = time.monotonic()
        error: Exception | None = None
        while True:
            try:
                submission.wait(LOOK if end - now > LOOK else max(end - now, 0.0))
                break
            except DeviceTimeoutError:
                now = time.monotonic()
                if self.share.is_behind(submission):
                    begin = now
                self._account.check_device_time(now - begin)
                look()
            except Exception as failure:
                error = failure
                break
        self.share.settle()
        return error

    def drive(self, steps: Generator[Submission | None], joins: object = None) -> None:
        """Work for the guest in steps, as ``Model.steps`` does: other guests get their turn in between.

        ``joins``: what these steps share with those of other guests, such as the batches of a model for sequences that
        decode. Guests that join the same thing do not wait for each other. The steps are given up if the guest is
        stopped or reaches a limit. Raises LimitError and what they raise.
        """
        look = self._interrupt.check
        try:
            with self.share:
                self.share.joins = joins
                for submission in steps:
                    if submission is None:
                        self._account.check_device_time()
                        look()
                        self.share.wait_turn(look)
                    else:
                        self._submitted(submission)
                        if error := self.wait(submission, look):
                            raise error
        finally:
            steps.close()
        self._account.check_device_time()

    @contextmanager
    def copying(self, counters: Counters) -> Iterator[None]:
        """A turn in which other code copies for the guest: what it adds to ``counters`` is charged to the guest."""
        with self.share:
            self.share.wait_turn(self._interrupt.check)
            before = counters.bytes_copied
            try:
                yield
            finally:
                self._account.counters.bytes_copied += counters.bytes_copied - before

    def close(self) -> None:
        """Stop counting: the guest has ended. Idempotent."""
        self.share.close()

    def _submitted(self, submission: Submission) -> None:
        self._account.counters.submits += 1
        self.share.submitted(submission)

    def _count(self, submission: Submission) -> None:
        self._account.counters.dispatches += submission.dispatches
        self._account.counters.device_seconds += submission.seconds
