"""The command queue: numbered submissions, one after another, and a shared event that tells which have ended."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from wasmetal.counters import Counters
from wasmetal.device.metal.api import command_error, mtl, objc
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.residency import Residency
from wasmetal.device.metal.stream import Stream
from wasmetal.errors import DeviceError, DeviceLostError, DeviceTimeoutError

_SLICE = 0.5
"""Seconds of an uninterrupted wait: between slices Python sees signals, so that Ctrl-C ends a long one."""


class Encodable(Protocol):
    """What can be run: a finished command list."""

    @property
    def dispatches(self) -> int:
        """How many kernels it runs."""

    @property
    def products(self) -> int:
        """How many of them are products of matrices by MPS."""

    def encode(self, stream: Stream) -> None:
        """Make its calls."""


class MetalSubmission:
    """Command lists under way on the GPU. It holds on to all that they use until it has ended: Metal does not."""

    def __init__(self, queue: Queue, number: int, commands: Any, lists: Sequence[Encodable]) -> None:
        self._queue = queue
        self.number = number
        """Its place in the order of the queue's submissions."""
        self.commands = commands
        """The command buffer; None once it has ended."""
        self.lists = lists
        self.seconds = 0.0
        self.dispatches = sum(recording.dispatches for recording in lists)
        self.error: DeviceError | None = None
        """What it ended with, where it did not end well."""

    def wait(self, timeout: float | None = None) -> float:
        """Block until done; return the seconds that the GPU spent, from the first kernel to the end of the last.

        Raises DeviceTimeoutError after ``timeout`` seconds (the submission is then still pending), DeviceLostError, and
        DeviceError with Metal's words where the GPU failed.
        """
        if self.commands is not None:
            self._queue.wait(self, timeout)
        if self.error is not None:
            raise self.error
        return self.seconds


_busy: set[Queue] = set()
"""Queues with work under way. They stay, with all that the work uses, even if everybody else lets go of them."""


class Queue:
    """The queue of an opened GPU. It is let go when nothing that needs it is left, and its work has ended."""

    def __init__(self, physical: PhysicalDevice, counters: Counters) -> None:
        self.physical = physical
        self._counters = counters
        self._queue = physical.handle.newCommandQueue()
        self._event = physical.handle.newSharedEvent()
        self._order = physical.handle.newEvent()
        self._numbers = itertools.count(1)
        if any(made is None for made in (self._queue, self._event, self._order)):
            raise DeviceError(f"{physical.name} gives no command queue; close other programs that use the GPU")
        self.residency = Residency(physical.handle, self._queue)
        self._pending: list[MetalSubmission] = []
        self._submitted = 0
        self._lost = False
        self._lock = threading.RLock()
        for abandoned in tuple(_busy):
            abandoned.settle()

    def submit(self, lists: Sequence[Encodable]) -> MetalSubmission:
        """Start finished lists, in order, as one submission, behind all before it. From any thread.

        Raises DeviceLostError.
        """
        with self._lock, objc.autorelease_pool():
            self.settle()
            if self._lost:
                raise DeviceLostError("the GPU was lost; open a device again")
            if any(recording.products for recording in lists):
                commands = self._queue.commandBuffer()  # MPS may use what nobody else holds on to
            else:
                commands = self._queue.commandBufferWithUnretainedReferences()
            if self._pending:
                # Buffers are untracked, so Metal would let two submissions overlap.
                commands.encodeWaitForEvent_value_(self._event, self._submitted)
            with Stream(commands, self._order, self._numbers) as stream:
                for i, recording in enumerate(lists):
                    if i:
                        stream.barrier()
                    recording.encode(stream)
            commands.encodeSignalEvent_value_(self._event, self._submitted + 1)
            commands.commit()
            self._submitted += 1
            submission = MetalSubmission(self, self._submitted, commands, lists)
            self._pending.append(submission)
            _busy.add(self)
            self._counters.submits += 1
            self._counters.dispatches += submission.dispatches
            return submission

    def wait(self, submission: MetalSubmission, timeout: float | None = None) -> None:
        """Block until a submission has ended, well or not. Raises DeviceTimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (commands := submission.commands) is not None:
            left = _SLICE if deadline is None else min(_SLICE, max(0.0, deadline - time.monotonic()))
            ended = self._event.waitUntilSignaledValue_timeoutMS_(submission.number, math.ceil(left * 1000))
            with self._lock, objc.autorelease_pool():
                if ended:
                    commands.waitUntilCompleted()  # the event comes before the times are known
                self.settle()
            if submission.commands is not None and deadline is not None and time.monotonic() >= deadline:
                raise DeviceTimeoutError(f"the GPU did not finish within {timeout:g} seconds; it is still at work")

    def wait_all(self) -> None:
        """Block until everything submitted so far has ended."""
        for submission in list(self._pending):
            self.wait(submission)

    def settle(self) -> None:
        """Note which submissions have ended, and how, in their order; let go of what they used."""
        with self._lock, objc.autorelease_pool():
            while self._pending and self._pending[0].commands.status() >= mtl.MTLCommandBufferStatusCompleted:
                self._end(self._pending.pop(0))
            if not self._pending:
                _busy.discard(self)

    def _end(self, submission: MetalSubmission) -> None:
        commands = submission.commands
        if commands.status() == mtl.MTLCommandBufferStatusError:
            submission.error = command_error(commands.error())
            self._lost |= isinstance(submission.error, DeviceLostError)
            self._event.setSignaledValue_(submission.number)  # it did not come to that, and others wait for it
        else:
            submission.seconds = commands.GPUEndTime() - commands.GPUStartTime()
            self._counters.device_seconds += submission.seconds
        submission.lists, submission.commands = (), None
