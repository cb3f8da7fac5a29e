"""A device's submissions: started one at a time, waited for by any thread, settled once they have ended."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

from wasmetal.counters import Counters
from wasmetal.device.backend import AnyBackend, Recording, Work
from wasmetal.device.commandlist import RecordedList
from wasmetal.device.waiting import wait_in_slices
from wasmetal.errors import DeviceError
from wasmetal.forked import Origin


class DeviceSubmission:
    """Recordings in flight. The submission refers to them, and so to everything they use, until they have ended."""

    __slots__ = ("_queue", "dispatches", "error", "recordings", "seconds", "work")

    def __init__(self, queue: Queue, work: Work, recordings: Sequence[Recording]) -> None:
        self._queue = queue
        self.work: Work | None = work
        """None once the submission has ended."""
        self.recordings = recordings
        self.seconds = 0.0
        """Device time from the start of the first kernel to the end of the last; 0.0 while pending."""
        self.dispatches = sum([recording.dispatches for recording in recordings])
        """The number of dispatches."""
        self.error: Exception | None = None
        """The error that it ended with; None while pending and after success."""

    @property
    def pending(self) -> bool:
        """Whether the submission is not known to have ended."""
        return self.work is not None

    def wait(self, timeout: float | None = None) -> None:
        """Block until the submission has ended.

        Raises DeviceTimeoutError after ``timeout`` seconds (the submission is then still pending), DeviceLostError, and
        DeviceError if the device failed.
        """
        self._queue.wait(self, timeout)
        if self.error is not None:
            raise self.error


class Queue:
    """A device's pending submissions, in order. The lock is held to submit and to settle, never during a wait."""

    def __init__(self, backend: AnyBackend, counters: Counters) -> None:
        self.lock = threading.RLock()  # reentrant: finalizers may run while the lock is held
        """Also guards the counters."""
        self._backend: AnyBackend | None = backend
        self._counters = counters
        self._origin = Origin("the device of the submission")
        self._pending: list[DeviceSubmission] = []

    def submit(self, lists: Sequence[RecordedList]) -> DeviceSubmission:
        """Start one or more finished lists, in order, as one submission.

        Raises DeviceError if one is unfinished, closed, pending or named twice.
        """
        if not lists:
            raise DeviceError("a submission needs at least one command list")
        with self.lock:
            if self._backend is None:
                raise DeviceError("the device is closed; open it again")
            self._settle()
            recordings: list[Recording] = []
            for commands in lists:
                recordings.append(commands.recording)
                if commands.pending:
                    raise DeviceError("a command list is still pending; wait for its submission before the next")
            if len(lists) > 1 and len(set(lists)) < len(lists):
                raise DeviceError("a command list is named twice in one submission; record a second one")
            submission = DeviceSubmission(self, self._backend.start(recordings), recordings)
            for commands in lists:
                commands.submission = submission
            self._pending.append(submission)
            self._counters.submits += 1
            self._counters.dispatches += submission.dispatches
            return submission

    def wait(self, submission: DeviceSubmission, timeout: float | None = None) -> None:
        """Block until a submission has ended, with or without an error. Raises DeviceTimeoutError, and ForkedError."""
        self._origin.check()
        if submission.work is not None:
            wait_in_slices(partial(self._attempt, submission, submission.work), timeout)

    def close(self) -> None:
        """Refuse further submissions, and block until all have ended. Raises DeviceLostError."""
        self._backend = None
        for submission in list(self._pending):
            self.wait(submission)

    def _attempt(self, submission: DeviceSubmission, work: Work, seconds: float) -> bool:
        ended = work.wait(seconds)
        with self.lock:
            if not self._pending or self._pending[0] is not submission:
                # Settle earlier submissions first, in order: this one may depend on them to end.
                self._settle()
            if ended:
                self._end(submission)
        return submission.work is None

    def _settle(self) -> None:
        while self._pending:
            first = self._pending[0]
            if first.work is not None and not first.work.ended():
                break
            self._end(first)

    def _end(self, submission: DeviceSubmission) -> None:
        """Record the cost of a submission, and release what it used."""
        if submission.work is not None:
            submission.seconds, submission.error = submission.work.result()
            submission.work, submission.recordings = None, ()
            self._pending.remove(submission)
            self._counters.device_seconds += submission.seconds
