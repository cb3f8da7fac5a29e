"""Rows that callers want computed, the batches that they become, and what each caller has of them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from wasmetal.device.base import Submission
from wasmetal.errors import DeviceLostError, DeviceTimeoutError
from wasmetal.models.lm.heads import Wanted
from wasmetal.models.lm.kv_cache import Growth
from wasmetal.models.lm.multi_step import Draws
from wasmetal.models.lm.passes import Pass, Segment
from wasmetal.models.lm.signal import Signal

LOOK = 0.05
"""Seconds of waiting between two looks at whether the caller gives up."""
_SLICE = 0.5
"""Seconds of waiting for the device between two looks at whether the batch has ended otherwise."""


@dataclass(eq=False, slots=True)
class Job:
    """Rows that one caller wants in the next submission."""

    segments: Sequence[Segment]
    heads: Wanted
    """Each with its row in the job."""
    begun: Sequence[Growth]
    """Growths whose first rows these are."""
    written: Sequence[Growth]
    """Growths that the rows write to."""
    sequence: int | None = None
    """What identifies the sequence, if this is the one row of a sequence that decodes."""
    draws: Draws | None = None
    """How the device chooses this row's next tokens, if it does. All jobs of a batch have draws, or none."""
    alone: bool = False
    """Whether no other job may be in its submission."""
    part: Part | None = None
    """Its part of a batch, or of several, once there is one."""
    error: Exception | None = None
    """Why there is none."""
    wake: Signal = field(default_factory=Signal)
    """Given when there is news for the job's thread."""
    listening: bool = False
    """Whether its thread waits to be woken. It may also be at work, or wait for its guest's turn."""
    rows: int = field(init=False)
    """The number of its rows."""

    def __post_init__(self) -> None:
        self.rows = sum([len(segment.tokens) for segment in self.segments])

    @property
    def comes_back(self) -> bool:
        """Whether the sequence, which decodes, is likely to want its next token soon."""
        return not (self.draws and self.draws.stopped)

    def goes_on(self) -> bool:
        """Whether more tokens are to be chosen, now that a batch has ended. The job is then what is left to do."""
        if not self.draws or self.draws.ended:
            return False
        (segment,) = self.segments
        self.segments = (Segment(self.draws.tokens[-1:], segment.position + self.draws.steps, segment.pages),)
        self.begun = ()
        return True

    def listen(self, seconds: float) -> None:
        """Wait for news."""
        self.listening = True
        try:
            self.wake.wait(seconds)
        finally:
            self.listening = False


class Batch:
    """A submission for one or more jobs. One of their threads waits for the device, and wakes the others."""

    def __init__(self, submission: Submission, taken: Pass, jobs: Sequence[Job]) -> None:
        self.submission = submission
        self.taken = taken
        self.jobs = jobs
        self.rows = sum([job.rows for job in jobs])
        self.steps = max([job.draws.steps if job.draws else 0 for job in jobs])
        """How many tokens of a sequence it chooses; 0 if it chooses none."""
        self.users = len(jobs)
        """How many jobs have not given up."""
        self.ended = False
        self.error: Exception | None = None
        self.waiting = threading.Lock()
        """Held by the thread that waits for the device."""
        self.asleep = list(jobs)
        """Jobs that end with the batch, and whose threads have not been woken since it has."""

    def outcome(self) -> Exception | None:
        """The error that the submission has ended with; None if it has succeeded, or not ended."""
        try:
            if not self.submission.pending:
                self.submission.wait(0)
        except Exception as error:
            return error
        return None

    def wake(self) -> None:
        """Have every thread of the batch look at it: one of them is to wait for the device."""
        for job in self.jobs:
            job.wake.give()

    def wake_one(self) -> None:
        """Wake one more of the threads, now that the batch has ended, which does the same once it has its results.

        If all woke at once, most would do so in vain, again and again: only one at a time has Python's lock. A thread
        that is held up holds up the next for LOOK seconds at most.
        """
        if self.asleep:
            with suppress(IndexError):  # another thread may have woken the last just now
                self.asleep.pop().wake.give()


class Waits(Protocol):
    """What a part has its scheduler do."""

    def wait(self, job: Job, seconds: float) -> None:
        """Wait for the batch of a job to end, or for news for the job."""

    def leave(self, batch: Batch, job: Job) -> None:
        """A job's part of the batch has been abandoned."""


class Part:
    """What one job has of a batch, or of one after the other, as a submission: their seconds are shared out by rows."""

    def __init__(self, scheduler: Waits, batch: Batch, job: Job) -> None:
        self._scheduler = scheduler
        self.batch = batch
        """The latest."""
        self.ended = False
        """Whether that was the last, and has ended."""
        self.abandoned = False
        self._job = job
        self._seconds = 0.0
        self._dispatches = 0
        """Of the batches before."""

    @property
    def pending(self) -> bool:
        """Whether the last batch is not known to have ended. The device is asked only if no thread waits for it."""
        batch = self.batch
        if self.ended or (self._job.draws and not self.abandoned):
            return not self.ended
        return not batch.ended and (batch.waiting.locked() or batch.submission.pending)

    @property
    def seconds(self) -> float:
        """Device time of batches that have ended, in proportion to the job's rows."""
        return self._seconds + self.batch.submission.seconds * self._job.rows / self.batch.rows

    @property
    def dispatches(self) -> int:
        """The number of dispatches of all batches."""
        return self._dispatches + self.batch.submission.dispatches

    @property
    def failed_with_others(self) -> bool:
        """Whether the device failed at the batch, perhaps because of what another job had in it."""
        batch = self.batch
        return len(batch.jobs) > 1 and batch.error is not None and not isinstance(batch.error, DeviceLostError)

    def follow(self, batch: Batch) -> None:
        """The job goes on in another batch."""
        self._seconds, self._dispatches = self.seconds, self.dispatches
        self.batch = batch

    def wait(self, timeout: float | None = None) -> None:
        """Block until the last batch has ended.

        Raises what :meth:`Submission.wait` does, but see ``failed_with_others``.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self.ended:
            left = max(end - time.monotonic(), 0.0)
            self._scheduler.wait(self._job, min(left, _SLICE))
            if not self.ended and time.monotonic() >= end:
                raise DeviceTimeoutError(f"the device did not finish within {timeout:g} seconds; it is still running")
        if self._job.error:
            raise self._job.error
        if self.batch.error and not self.failed_with_others:
            raise self.batch.error

    def abandon(self) -> None:
        """Nobody waits for this part any more. The submission is abandoned with its last part. Idempotent."""
        if not self.abandoned:
            self.abandoned = True
            self._scheduler.leave(self.batch, self._job)
