"""The command lists that one guest has submitted, in order, and recorded lists that it may submit again."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from wasmetal.device.base import CommandList, Submission
from wasmetal.errors import DeviceError
from wasmetal.host import abi
from wasmetal.host.account import Account
from wasmetal.host.commands import GuestBuffer, encode
from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.fairness import SLICE
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.metering import MeteredDevice
from wasmetal.ops import Recorder

SEGMENT = 16
"""Commands that are recorded as one list of the device. Devices take guests' work in whole segments."""
FIRST = 64
"""Commands that the device is given at first, until it is known how long they take."""


@dataclass(eq=False, slots=True)
class Recorded:
    """A guest's command list: the bytes that it was recorded from, what was recorded, and the buffers that it names."""

    source: bytes
    segments: list[CommandList]
    buffers: set[GuestBuffer]

    @property
    def count(self) -> int:
        """How many commands."""
        return len(self.source) // abi.COMMAND.itemsize

    @property
    def shared(self) -> bool:
        """Whether the list touches pages of the guest's memory."""
        return any(held.shared for held in self.buffers)

    def size(self, segment: int) -> int:
        """How many commands a segment has."""
        return min(SEGMENT, self.count - segment * SEGMENT)

    def close(self) -> None:
        """Release what was recorded."""
        for commands in self.segments:
            commands.close()


@dataclass(eq=False, slots=True)
class Submitted:
    """A pending list. The guest's handle names it until the guest has waited for it."""

    recorded: Recorded
    suspends: bool
    """Whether it runs only while the guest waits, because it, or a list before it, touches the guest's pages."""
    sent: int = 0
    """Segments that the device has been given."""
    ended: int = 0
    """Segments that the device has finished."""
    done: bool = False
    error: Exception | None = None
    """Why the list failed, if it did."""


@dataclass(eq=False, slots=True)
class _Flight:
    """One submission to the device: segments of one or several lists."""

    submission: Submission
    lists: list[Submitted]
    """The list of each segment."""
    commands: int


class Submissions:
    """A first-in, first-out queue of one guest's lists.

    The device is given about one slice of work at a time, so that other guests' work gets in between. A list that
    touches the guest's own pages goes to the device in :meth:`wait`, while the guest is suspended, and so does every
    list after it. Of other lists, as much as fits the slice starts immediately.
    """

    def __init__(self, account: Account, device: MeteredDevice, interrupt: Interrupt) -> None:
        self._account = account
        self._device = device
        self._interrupt = interrupt
        self._queue: deque[Submitted] = deque()
        self._flights: deque[_Flight] = deque()
        self._at_a_time = FIRST
        """Commands that the device is given at a time."""
        self._replayable = _Replayable(account.limits.commands)

    def submit(self, source: bytes, buffer_of: Callable[[int], GuestBuffer]) -> Submitted:
        """Check and record the list, unless that was done before, and start it if it may start.

        Raises LimitError if the guest's device time is used up, by lists that it has not waited for.
        """
        while self._flights and not self._flights[0].submission.pending:
            self._finish(self._flights[0], math.inf)
        limit = self._account.limits.commands
        count = len(source) // abi.COMMAND.itemsize
        if count + sum(pending.recorded.count for pending in self._queue) > limit:
            raise Refusal(Errno.AGAIN, f"limit reached: {limit} commands pending")
        recorded = self._replayable.take(source) or self._record(source, buffer_of)
        submitted = Submitted(recorded, recorded.shared or bool(self._queue and self._queue[-1].suspends))
        self._queue.append(submitted)
        for held in recorded.buffers:
            held.pending += 1
        self._send(None)
        if submitted.error:
            raise submitted.error
        return submitted

    def wait(self, submitted: Submitted, timeout: float | None) -> None:
        """Wait for a list, and every one before it.

        Raises TIMEDOUT after ``timeout`` seconds, unless the list uses the guest's own pages: such a list runs only
        during this call, to its end. Raises LimitError if the guest's time is up first, and what the device raised if
        the list failed.
        """
        end = math.inf if submitted.suspends or timeout is None else time.monotonic() + timeout
        with self._device.share:
            while not submitted.done:
                if not self._flights:
                    self._device.share.wait_turn(lambda: self._look(end))
                self._send(submitted)
                if self._flights:
                    self._finish(self._flights[0], end)
                if not submitted.done:
                    self._look(end)
        if self._queue:
            self._send(None)
        if submitted.error:
            raise submitted.error

    def forget(self, held: GuestBuffer) -> None:
        """Drop the lists that name a buffer that is about to be destroyed; none of them is pending."""
        self._replayable.forget(held)

    def close(self) -> None:
        """Drop what the device has not begun, and abandon the rest. Idempotent."""
        while self._flights:
            self._flights.pop().submission.abandon()
        for submitted in self._queue:
            submitted.recorded.close()
        self._queue.clear()
        self._replayable.close()

    def _record(self, source: bytes, buffer_of: Callable[[int], GuestBuffer]) -> Recorded:
        recorded = Recorded(source, [], set())
        step = SEGMENT * abi.COMMAND.itemsize
        try:
            for begin in range(0, len(source), step):
                commands = self._device.record()
                recorded.segments.append(commands)
                recorded.buffers |= encode(
                    source[begin : begin + step], buffer_of, Recorder(self._device.info, commands)
                )
                commands.finish()
        except BaseException as error:
            recorded.close()
            if type(error) is DeviceError:  # an error about the list, not about the device's state
                raise Refusal(Errno.NOTSUP, str(error)) from None
            raise
        return recorded

    def _send(self, last: Submitted | None) -> None:
        """Give the device the work that it may start now. ``last``: the list that the guest waits for."""
        while (segments := self._next(last)) and self._device.share.has_turn():
            lists = [submitted for submitted, _ in segments]
            try:
                submission = self._device.submit([submitted.recorded.segments[i] for submitted, i in segments])
            except Exception as error:
                for submitted in dict.fromkeys(lists):
                    self._end(submitted, error)
                continue
            commands = sum(submitted.recorded.size(i) for submitted, i in segments)
            self._flights.append(_Flight(submission, lists, commands))
            for submitted in lists:
                submitted.sent += 1

    def _next(self, last: Submitted | None) -> list[tuple[Submitted, int]]:
        """The next segments that the device is given: (list, index of the segment)."""
        room = self._at_a_time - sum(flight.commands for flight in self._flights)
        segments: list[tuple[Submitted, int]] = []
        waited_for = last is not None
        for submitted in self._queue:
            if submitted.suspends and not waited_for:
                break
            for i in range(submitted.sent, len(submitted.recorded.segments)):
                room -= submitted.recorded.size(i)
                if room < 0 and (segments or self._flights):
                    return segments
                segments.append((submitted, i))
            waited_for = waited_for and submitted is not last
        return segments

    def _finish(self, flight: _Flight, end: float) -> None:
        """Wait for the oldest submission on the device."""
        error = self._device.wait(flight.submission, lambda: self._look(end), end)
        self._flights.remove(flight)
        if error:
            flight.submission.abandon()  # it may still be pending if the device no longer answers
        else:
            self._adapt(flight)
        for submitted in flight.lists:
            submitted.ended += 1
            if not submitted.done and (error or submitted.ended == len(submitted.recorded.segments)):
                self._end(submitted, error)
        self._account.check_device_time()

    def _look(self, end: float) -> None:
        """Raise if the guest must stop, or if it has waited until ``end``."""
        self._interrupt.check()
        if time.monotonic() >= end:
            raise Refusal(Errno.TIMEDOUT, "the submission is still pending")

    def _adapt(self, flight: _Flight) -> None:
        """Size the next submission to take about a slice of time, without growing too fast."""
        seconds = max(flight.submission.seconds, 1e-9)
        self._at_a_time = max(1, int(min(flight.commands * SLICE / seconds, max(4 * flight.commands, FIRST))))

    def _end(self, submitted: Submitted, error: Exception | None) -> None:
        self._queue.remove(submitted)
        submitted.done, submitted.error = True, error
        for held in submitted.recorded.buffers:
            held.pending -= 1
        if error:
            submitted.recorded.close()
        else:
            self._replayable.keep(submitted.recorded)


class _Replayable:
    """Completed lists, by their bytes: a guest that submits the same bytes again reuses the recorded list.

    The same bytes mean the same list, because a handle never comes to name another buffer. The most recently used lists
    are kept: at most 64, with ``commands`` commands in all.
    """

    def __init__(self, commands: int) -> None:
        self._room = commands
        self._kept: OrderedDict[bytes, Recorded] = OrderedDict()

    def take(self, source: bytes) -> Recorded | None:
        recorded = self._kept.pop(source, None)
        if recorded:
            self._room += recorded.count
        return recorded

    def keep(self, recorded: Recorded) -> None:
        if recorded.source in self._kept:
            recorded.close()
            return
        self._kept[recorded.source] = recorded
        self._room -= recorded.count
        while self._room < 0 or len(self._kept) > 64:
            self._drop(next(iter(self._kept)))

    def forget(self, held: GuestBuffer) -> None:
        for source in [source for source, recorded in self._kept.items() if held in recorded.buffers]:
            self._drop(source)

    def close(self) -> None:
        for source in list(self._kept):
            self._drop(source)

    def _drop(self, source: bytes) -> None:
        recorded = self._kept.pop(source)
        self._room += recorded.count
        recorded.close()
