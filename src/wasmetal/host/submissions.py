"""The command lists that one guest has submitted, in order, and those it may submit again."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from wasmetal.device.base import CommandList, Device, Submission
from wasmetal.errors import DeviceError, DeviceTimeoutError
from wasmetal.host import abi
from wasmetal.host.commands import GuestBuffer, encode
from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.limits import Account
from wasmetal.ops import Recorder


@dataclass(eq=False, slots=True)
class Recorded:
    """A command list, the bytes that it was recorded from, and the buffers that it names."""

    source: bytes
    commands: CommandList
    buffers: set[GuestBuffer]

    @property
    def count(self) -> int:
        """How many commands."""
        return len(self.source) // abi.COMMAND.itemsize

    @property
    def shared(self) -> bool:
        """True where it touches pages of the guest's memory."""
        return any(held.shared for held in self.buffers)


@dataclass(eq=False, slots=True)
class Submitted:
    """A list under way. The guest's handle names it until the guest has waited for it."""

    recorded: Recorded
    running: Submission | None = None
    """None until the device has it."""
    done: bool = False
    error: Exception | None = None
    """Why it did not come to its end, where it did not."""


_LOOK = 0.05
"""Seconds of waiting for the device after which the guest's limits are looked at."""


class Submissions:
    """A first-in, first-out queue of one guest's lists.

    A list that touches the guest's own pages goes to the device in :meth:`wait`, while the guest is suspended, and so
    does every list behind it; others go at once.
    """

    def __init__(self, account: Account, device: Device, interrupt: Interrupt) -> None:
        self._account = account
        self._device = device
        self._interrupt = interrupt
        self._queue: deque[Submitted] = deque()
        self._replayable = _Replayable(account.limits.commands)

    def submit(self, source: bytes, buffer_of: Callable[[int], GuestBuffer]) -> Submitted:
        """Check and record the list, or find it recorded already, and start it where it may start."""
        limit = self._account.limits.commands
        count = len(source) // abi.COMMAND.itemsize
        if count + sum(pending.recorded.count for pending in self._queue) > limit:
            raise Refusal(Errno.AGAIN, f"limit reached: {limit} commands pending")
        recorded = self._replayable.take(source) or self._record(source, buffer_of)
        submitted = Submitted(recorded)
        if not recorded.shared and not (self._queue and self._queue[-1].running is None):
            try:
                submitted.running = self._device.submit([recorded.commands])
            except BaseException:
                recorded.commands.close()
                raise
        self._queue.append(submitted)
        for held in recorded.buffers:
            held.pending += 1
        return submitted

    def wait(self, submitted: Submitted, timeout: float | None) -> None:
        """Bring a list, and every one before it, to its end.

        Raises TIMEDOUT after ``timeout`` seconds where all of them were under way already; those started here run to
        their end, as the guest's own pages are in use. Raises LimitError where the guest's time is up first, and what
        the device raised where it failed.
        """
        if not submitted.done:
            ahead = list(self._queue)
            ahead = ahead[: ahead.index(submitted) + 1]
            waiting = [each for each in ahead if each.running is None]
            if waiting:
                self._start(waiting)
            end = math.inf if waiting or timeout is None else time.monotonic() + timeout
            for running, group in groupby(ahead, lambda each: each.running):
                if running:
                    self._finish(running, list(group), end)
        if submitted.error:
            raise submitted.error

    def forget(self, held: GuestBuffer) -> None:
        """Drop the lists that name a buffer which is about to go; none of them is pending."""
        self._replayable.forget(held)

    def close(self) -> None:
        """Drop what the device has not begun. Idempotent."""
        for submitted in self._queue:
            submitted.recorded.commands.close()
        self._queue.clear()
        self._replayable.close()

    def _record(self, source: bytes, buffer_of: Callable[[int], GuestBuffer]) -> Recorded:
        commands = self._device.record()
        try:
            buffers = encode(source, buffer_of, Recorder(self._device.info, commands))
            commands.finish()
        except BaseException as error:
            commands.close()
            if type(error) is DeviceError:  # none of those that tell of the device's state: it cannot do this
                raise Refusal(Errno.NOTSUP, str(error)) from None
            raise
        return Recorded(source, commands, buffers)

    def _start(self, waiting: list[Submitted]) -> None:
        try:
            running = self._device.submit([each.recorded.commands for each in waiting])
        except Exception as error:
            for each in waiting:
                self._end(each, error)
            raise
        for each in waiting:
            each.running = running

    def _finish(self, running: Submission, group: list[Submitted], end: float) -> None:
        """Wait for one submission to the device, which may be several of the guest's."""
        begin, seconds, error = time.monotonic(), 0.0, None
        while True:
            now = time.monotonic()
            try:
                running.wait(min(_LOOK, max(end - now, 0.0)))
                seconds = running.seconds
                break
            except DeviceTimeoutError:
                self._interrupt.check()
                self._account.check_device_time(now - begin)
                if now >= end:
                    raise Refusal(Errno.TIMEDOUT, "the submission is still pending") from None
            except Exception as failure:
                error = failure
                break
        self._account.counters.device_seconds += seconds
        for submitted in group:
            self._end(submitted, error)

    def _end(self, submitted: Submitted, error: Exception | None) -> None:
        self._queue.remove(submitted)
        submitted.done, submitted.error = True, error
        for held in submitted.recorded.buffers:
            held.pending -= 1
        if error:
            submitted.recorded.commands.close()
        else:
            self._replayable.keep(submitted.recorded)


class _Replayable:
    """Finished lists, by their bytes: a guest that submits the same bytes again gets the recorded list again.

    The same bytes mean the same list, because a handle never comes to name another buffer. Those used last are kept: at
    most 64 lists, of ``commands`` commands in all.
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
            recorded.commands.close()
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
        recorded.commands.close()
