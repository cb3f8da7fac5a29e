"""The command lists that one guest has submitted, in order, and recorded lists that it may submit again."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from wasmetal.device.base import Submission
from wasmetal.errors import DeviceError
from wasmetal.host import abi
from wasmetal.host.account import Account
from wasmetal.host.commands import GuestBuffer, encode
from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.fairness import SLICE
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.metering import MeteredDevice
from wasmetal.host.recording import SLICE_SECONDS, GuestRecorder, Segment


@dataclass(eq=False, slots=True)
class Recorded:
    """A guest's command list: the bytes that it was recorded from, what was recorded, and the buffers that it names."""

    source: bytes
    segments: list[Segment]
    buffers: set[GuestBuffer]
    work: int
    """In operations."""
    dispatches: int
    """How many dispatches the commands were recorded as."""
    shared: bool
    """Whether the list touches pages of the guest's memory."""

    @property
    def count(self) -> int:
        """How many commands."""
        return len(self.source) // abi.COMMAND.itemsize

    def close(self) -> None:
        """Release what was recorded."""
        for segment in self.segments:
            segment.commands.close()


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
    work: int
    """In operations."""


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
        self._at_a_time = SLICE * device.info.operations_per_second
        """Operations that the device is given at a time, unless a single segment has more."""
        self._most_at_a_time = SLICE_SECONDS * device.info.operations_per_second
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
        work = self._account.limits.work
        if work is not None and self._queue:
            pending = sum(each.recorded.work for each in self._queue)
            if recorded.work + pending > work:
                self._replayable.keep(recorded)
                raise Refusal(Errno.AGAIN, f"limit reached: {work} operations pending")
        submitted = Submitted(recorded, recorded.shared or bool(self._queue and self._queue[-1].suspends))
        self._queue.append(submitted)
        for held in recorded.buffers:
            held.pending += 1
        if not self._queue[0].suspends:
            self._send(None)
        if submitted.error:
            raise submitted.error
        return submitted

    def run(self, source: bytes, buffer_of: Callable[[int], GuestBuffer]) -> None:
        """Submit a list, and wait for it, and every one before it. Raises what :meth:`submit` and :meth:`wait` do.

        A short list that is replayed while nobody else uses the device takes little more than the device takes.
        """
        share = self._device.share
        recorded = self._replayable.find(source) if share.alone and not self._queue else None
        if recorded is None or len(recorded.segments) > 1:
            self.wait(self.submit(source, buffer_of), None)
            return
        # The device begins first; all else is done while it is at work. The guest, which is suspended, has nothing
        # pending before or after.
        submission = None
        try:
            submission = self._device.submit([recorded.segments[0].commands])
            with share:
                if error := self._device.wait(submission, self._interrupt.check):
                    raise error
        except BaseException:
            if submission:
                submission.abandon()  # if it is still pending
            self._replayable.drop(source)
            raise
        self._account.check_device_time()

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
        recorder = GuestRecorder(self._device, self._account.limits.work, self._interrupt.check)
        try:
            buffers = encode(source, buffer_of, recorder)
            segments = recorder.finish()
            dispatches = sum(each.dispatches for each in segments)
            shared = any(held.shared for held in buffers)
            return Recorded(source, segments, buffers, recorder.work, dispatches, shared)
        except BaseException as error:
            recorder.close()
            if type(error) is DeviceError:  # an error about the list, not about the device's state
                raise Refusal(Errno.NOTSUP, str(error)) from None
            raise

    def _send(self, last: Submitted | None) -> None:
        """Give the device the work that it may start now. ``last``: the list that the guest waits for."""
        while (segments := self._next(last)) and self._device.share.has_turn():
            lists = [submitted for submitted, _ in segments]
            chosen = [submitted.recorded.segments[i] for submitted, i in segments]
            try:
                submission = self._device.submit([segment.commands for segment in chosen])
            except Exception as error:
                for submitted in dict.fromkeys(lists):
                    self._end(submitted, error)
                continue
            self._flights.append(_Flight(submission, lists, sum([segment.work for segment in chosen])))
            for submitted in lists:
                submitted.sent += 1

    def _next(self, last: Submitted | None) -> list[tuple[Submitted, int]]:
        """The next segments that the device is given: (list, index of the segment)."""
        room = self._at_a_time - sum(flight.work for flight in self._flights)
        segments: list[tuple[Submitted, int]] = []
        waited_for = last is not None
        for submitted in self._queue:
            if submitted.suspends and not waited_for:
                break
            for i in range(submitted.sent, len(submitted.recorded.segments)):
                room -= submitted.recorded.segments[i].work
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
        """Size the next submission to take about a slice of time.

        However fast this one was, the next is no more than SLICE_SECONDS at the least speed: a guest may make a list
        cheap, as by batch metadata without valid rows, and then dear.
        """
        seconds = max(flight.submission.seconds, 1e-9)
        self._at_a_time = min(flight.work * SLICE / seconds, self._most_at_a_time)

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
    are kept: at most 64, recorded as ``commands`` dispatches in all.
    """

    def __init__(self, commands: int) -> None:
        self._room = commands
        self._kept: OrderedDict[bytes, Recorded] = OrderedDict()

    def find(self, source: bytes) -> Recorded | None:
        recorded = self._kept.get(source)
        if recorded:
            self._kept.move_to_end(source)
        return recorded

    def take(self, source: bytes) -> Recorded | None:
        recorded = self._kept.pop(source, None)
        if recorded:
            self._room += recorded.dispatches
        return recorded

    def keep(self, recorded: Recorded) -> None:
        if recorded.source in self._kept:
            recorded.close()
            return
        self._kept[recorded.source] = recorded
        self._room -= recorded.dispatches
        while self._room < 0 or len(self._kept) > 64:
            self.drop(next(iter(self._kept)))

    def forget(self, held: GuestBuffer) -> None:
        for source in [source for source, recorded in self._kept.items() if held in recorded.buffers]:
            self.drop(source)

    def close(self) -> None:
        for source in list(self._kept):
            self.drop(source)

    def drop(self, source: bytes) -> None:
        recorded = self._kept.pop(source)
        self._room += recorded.dispatches
        recorded.close()
