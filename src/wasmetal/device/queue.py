"""A device's submissions: started one at a time, waited for by any thread, settled once they have ended."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from wasmetal.counters import Counters
from wasmetal.device import abandoned
from wasmetal.device.backend import AnyBackend, Recording, Work
from wasmetal.device.commandlist import RecordedList
from wasmetal.device.release import on_release
from wasmetal.device.waiting import wait_in_slices
from wasmetal.errors import DeviceError, DeviceLostError, DeviceTimeoutError
from wasmetal.forked import Origin

CLOSING = 1.0
"""Seconds that pending submissions get to end when the device is closed."""
_SURE = 0.98
"""Of the time that a submission is expected to take: for so long nobody asks whether it has ended."""
PATIENCE = 10.0
"""Seconds after which a device that is still busy with an abandoned submission counts as lost."""


class DeviceSubmission:
    """Recordings that were started together."""

    __slots__ = ("_queue", "abandoned", "dispatches", "error", "seconds", "work")

    def __init__(self, queue: Queue, work: Work, dispatches: int) -> None:
        self._queue = queue
        self.work: Work | None = work
        """None once the submission has ended."""
        self.seconds = 0.0
        """Device time from the start of the first kernel to the end of the last; 0.0 while pending."""
        self.dispatches = dispatches
        """The number of dispatches."""
        self.error: Exception | None = None
        """The error that it ended with; None while pending and after success."""
        self.abandoned: float | None = None
        """When it was abandoned."""

    @property
    def pending(self) -> bool:
        """Whether the submission has not ended yet. Reading it neither blocks nor runs kernels."""
        return self.work is not None and self._queue.is_pending(self)

    def wait(self, timeout: float | None = None) -> None:
        """Block until the submission has ended.

        Raises DeviceTimeoutError after ``timeout`` seconds (the submission is then still pending), DeviceLostError, and
        DeviceError if the device failed.
        """
        self._queue.wait(self, timeout)
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """Nobody waits for the submission any more: drop what has not started, keep what the rest uses. Idempotent."""
        self._queue.abandon(self)


class Queue:
    """A device's pending submissions, in order. The lock is held to submit and to settle, never during a wait.

    Recordings, and so everything that they use, are referred to until they have ended, even if the queue is dropped
    before. Once the device was lost, the queue refuses further submissions.
    """

    def __init__(self, backend: AnyBackend, counters: Counters) -> None:
        self.lock = threading.RLock()  # reentrant: finalizers may run while the lock is held
        """Also guards the counters."""
        self._backend: AnyBackend | None = backend
        """None once the device is closed, so that submissions that somebody still refers to do not keep it alive."""
        self._lost = False
        self._counters = counters
        self._origin = Origin("the device of the submission")
        self._pending: list[DeviceSubmission] = []
        self._in_flight: dict[Work, Sequence[Recording]] = {}  # what pending submissions run
        on_release(self, _abandon_all, self._in_flight)

    def submit(self, lists: Sequence[RecordedList], patient: bool = False, expected: float = 0.0) -> DeviceSubmission:
        """Start one or more finished lists, in order, as one submission. The other arguments: how it is waited for.

        Raises DeviceError if one is unfinished, closed or pending, and DeviceLostError.
        """
        if not lists:
            raise DeviceError("a submission needs at least one command list")
        abandoned.release_ended()
        with self.lock:
            backend = self._backend
            if backend is None:
                raise DeviceError("the device is closed; open it again")
            if self._pending:
                self._settle()
            if self._lost:
                raise DeviceLostError("the device was lost: open it again")
            if self._pending:
                self._check_answers()
            recordings: list[Recording] = []
            dispatches = 0
            for commands in lists:
                recording = commands.recording
                if commands.pending:
                    raise DeviceError("a command list is still pending; wait for its submission before the next")
                recordings.append(recording)
                dispatches += recording.dispatches
            try:
                work = backend.start(recordings)
            except DeviceLostError:
                self._lost = True
                raise
            work.patient = patient
            if expected:
                work.due = time.perf_counter() + _SURE * expected
            self._in_flight[work] = recordings
            submission = DeviceSubmission(self, work, dispatches)
            for commands in lists:
                commands.submission = submission
            self._pending.append(submission)
            self._counters.submits += 1
            self._counters.dispatches += dispatches
            return submission

    def wait(self, submission: DeviceSubmission, timeout: float | None = None) -> None:
        """Block until a submission has ended, with or without an error.

        Raises DeviceTimeoutError, DeviceLostError and ForkedError.
        """
        self._origin.check()
        if (work := submission.work) is not None:
            self._prepare(work)
            wait_in_slices(partial(self._attempt, submission, work), timeout)

    def is_pending(self, submission: DeviceSubmission) -> bool:
        """Whether a submission has not ended yet. Raises ForkedError."""
        self._origin.check()
        with self.lock:
            return self._poll(submission)

    def abandon(self, submission: DeviceSubmission) -> None:
        """Drop what has not started of a submission that nobody waits for. Does nothing in a forked process."""
        if not self._origin.here:
            return
        with self.lock:
            if submission.abandoned is None and submission.work is not None:
                submission.abandoned = time.monotonic()
                submission.work.drop()

    def close(self) -> None:
        """Refuse further submissions, and abandon those that have not ended after CLOSING seconds."""
        end = time.monotonic() + CLOSING
        with suppress(DeviceTimeoutError, DeviceLostError):
            for submission in list(self._pending):
                self.wait(submission, max(0.0, end - time.monotonic()))
        for submission in list(self._pending):
            submission.abandon()
            abandoned.keep(partial(_ended, submission), submission)
        self._backend = None

    def _prepare(self, work: Work) -> None:
        """Spend the time until work has ended on the next, which may be of the same recordings."""
        with self.lock:
            recordings = self._in_flight.get(work)  # None if another thread has found that it has ended
            if recordings is not None and self._backend is not None and not self._lost:
                self._backend.prepare(recordings)

    def _attempt(self, submission: DeviceSubmission, work: Work, seconds: float) -> bool:
        ended = False
        try:
            ended = work.wait(seconds)
        except DeviceLostError as lost:
            with self.lock:
                self._end(submission, lost)
        with self.lock:
            if not self._pending or self._pending[0] is not submission:
                # Settle earlier submissions first, in order: this one may depend on them to end.
                self._settle()
            if self._poll(submission, ended):
                self._check_answers(submission)
        return submission.work is None

    def _check_answers(self, submission: DeviceSubmission | None = None) -> None:
        """Raise DeviceLostError if an abandoned submission has held up a submission, or the next one, for too long."""
        if self._backend is None or not self._backend.in_order:
            return
        for earlier in tuple(self._pending):
            if earlier is submission:
                return
            since = time.monotonic() - (earlier.abandoned or math.inf)
            if since > PATIENCE and earlier.pending:
                raise DeviceLostError(
                    f"{self._backend.info.name} has not answered for {since:.0f} s, since work on it was given up; "
                    "open it again or use another device"
                )

    def _settle(self) -> None:
        """Settle what has ended, in order."""
        while self._pending and not self._poll(self._pending[0]):
            pass

    def _poll(self, submission: DeviceSubmission, ended: bool = False) -> bool:
        """Settle a submission if it has ended; return whether it is pending. ``ended``: it is known to have."""
        work = submission.work
        if work is not None:
            try:
                if not (ended or work.ended()):
                    return True
                submission.seconds, error = work.result()
            except DeviceLostError as lost:  # a lost device runs nothing
                error = lost
            self._counters.device_seconds += submission.seconds
            self._end(submission, error)
        return False

    def _end(self, submission: DeviceSubmission, error: Exception | None) -> None:
        """Release what a submission used."""
        if submission.work is not None:
            if error is not None:
                submission.error = error
                self._lost |= isinstance(error, DeviceLostError)
            del self._in_flight[submission.work]
            submission.work = None
            self._pending.remove(submission)


def _abandon_all(in_flight: dict[Work, Sequence[Recording]]) -> None:
    """Drop what has not started of work that nobody can wait for any more; keep what the rest uses."""
    for work, recordings in in_flight.items():
        work.drop()
        abandoned.keep(work.ended, (work, recordings))


def _ended(submission: DeviceSubmission) -> bool:
    return not submission.pending
