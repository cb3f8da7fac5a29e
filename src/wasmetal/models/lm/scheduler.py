"""Continuous batching: what several callers ask of a model at the same time becomes one submission.

Rows wait while a batch is in flight; then the thread that waited for the device submits what waits, for all of them. So
a sequence joins and leaves between two batches, as in G.-I. Yu et al., "Orca", 2022. There is no thread for it: a
caller who is alone submits at once, and waits for the device itself. A sequence for which the device chooses tokens
stays from batch to batch, without its thread, until it has enough of them.

With many callers, Python's global lock is what they wait for most. So a thread sleeps from when its job is queued until
its batch has ended, and those of a batch wake one after the other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from wasmetal.device.base import Submission
from wasmetal.errors import DeviceError, DeviceLostError, DeviceTimeoutError
from wasmetal.models.lm.jobs import LOOK, Batch, Job, Part
from wasmetal.models.lm.pacing import Pacing
from wasmetal.models.lm.passes import ROWS, SEQUENCES, Pass

_ROWS = ROWS[1]
"""Batches have up to a multiple of so many rows."""
_SAMPLING = 0.5, 12e-3
"""How long a batch waits for sequences of the last one, whose callers choose their next token: at most this part of the
last batch's time, and at most so many seconds; not at all if at least as many others are here, and those that are
missing take longer to come back. Then the others take turns with them."""
_FEW_STEPS = 4
"""Tokens that a batch chooses if it has few of those who use the model just now: others are about to come back from
their guests, and are then to join."""


@dataclass(slots=True)
class Batches:
    """How many there were."""

    submitted: int = 0
    jobs: int = 0
    """In all of them: by ``submitted``, the mean size of a batch."""


class Scheduler:
    """Puts the jobs of a model's callers into submissions, of which one is in flight at a time.

    Jobs are taken in the order in which they came.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        lock: threading.RLock,
        start: Callable[[Pass, Sequence[Job]], Submission],
        pacing: Pacing,
    ) -> None:
        """``lock``: the model's. ``start``, which is called with it, submits jobs. It may raise a DeviceError."""
        self.batches = Batches()
        self._passes = tuple(passes)
        self._free = list(passes)
        self._lock = lock
        self._start = start
        self._pacing = pacing
        self._queue: list[Job] = []
        self._current: Batch | None = None
        self._expected: set[int] = set()
        """Sequences of the last batch that have not come back for their next token."""
        self._ended = self._until = -math.inf
        """When the last batch ended, and how long they are waited for."""
        self._returned = 0
        """How many of its sequences have come back."""
        self._pace = 0.0
        """Seconds for each that has come back, the last time that one did."""

    def run(self, job: Job) -> Generator[Submission | None, None, Part]:
        """Do a job, in steps: None while it waits for its turn, and a submission that must have ended before the next.

        Raises DeviceError. A job that fails together with others is done again, alone.
        """
        part = yield from self._once(job)
        if part.failed_with_others:
            job.alone = True
            part = yield from self._once(job)
        return part

    def wait(self, job: Job, seconds: float) -> None:
        """See :class:`Waits`."""
        if job.part and not job.part.batch.ended:
            self._wait_for(job.part.batch, job, seconds)
            return
        self._wait_for_turn(job)
        with self._lock:
            self._advance(job)

    def leave(self, batch: Batch, job: Job) -> None:
        """See :class:`Waits`."""
        with self._lock:
            batch.users -= 1
            if job in self._queue:
                self._queue.remove(job)
                self._nudge()
            elif batch.ended:
                batch.wake_one()
            elif batch.users == 0:
                batch.submission.abandon()
                self._end(batch)
            else:
                batch.asleep.remove(job)
                batch.wake()  # it may have been the one that was to wait for the device

    def forget(self, sequence: int) -> None:
        """A sequence will not be back, so that nobody waits for it. Takes no lock."""
        self._expected.discard(sequence)

    def close(self) -> None:
        """Release the passes. Idempotent."""
        for each in self._passes:
            each.close()

    def _wait_for(self, batch: Batch, job: Job, seconds: float) -> None:
        """Wait for a batch to end or, if another thread waits for the device already, for news for the job."""
        if not batch.waiting.acquire(blocking=False):
            job.listen(min(seconds, LOOK))
            return
        error = None
        try:
            batch.submission.wait(seconds)
        except DeviceTimeoutError:
            return
        except Exception as failure:  # every job of the batch learns of it
            error = failure
        finally:
            batch.waiting.release()
            if batch.submission.pending:
                batch.wake()  # another thread may have to wait in its place
        with self._lock:
            self._end(batch, error, job)

    def _once(self, job: Job) -> Generator[Submission | None, None, Part]:
        job.part = None
        try:
            with self._lock:
                if job.sequence in self._expected:
                    self._comes_back(job)
                self._queue.append(job)
                self._advance(job)
            while not job.part:
                if job.error:
                    raise job.error
                self._wait_for_turn(job)
                if not (job.part or job.error):
                    with self._lock:
                        self._advance(job)
                    if not (job.part or job.error):
                        yield None
            yield job.part
            job.part.batch.wake_one()
        except BaseException:
            with self._lock:
                if job.part:
                    job.part.abandon()
                elif job in self._queue:
                    self._queue.remove(job)
                    self._nudge()
            raise
        return job.part

    def _wait_for_turn(self, job: Job) -> None:
        """Wait for a moment, or until there is news for a job that is in no batch yet."""
        if current := self._current:
            self._wait_for(current, job, LOOK)
        elif pause := self._pause():
            first = next(iter(self._queue), None)
            job.listen(pause if job is first else LOOK)  # the first submits for all
        elif submission := self._free[0].submission:
            _wait_for_abandoned(submission)

    def _advance(self, job: Job | None = None) -> None:
        """Submit what waits if that is possible now. ``job``: the one of this thread, if it waits."""
        current = self._current
        if current and not current.waiting.locked() and not current.submission.pending:
            self._end(current, mine=job)
        if self._queue and not self._pause():
            taken = next((each for each in self._free if not each.pending), None)
            if taken:
                self._submit(taken, job)

    def _pause(self) -> float:
        """Seconds until a batch may be submitted, as far as that is known; 0 if it may be now."""
        if self._current:
            return LOOK
        missing = len(self._expected)
        left = self._until - time.monotonic() if missing else 0.0
        if left <= 0 or (len(self._queue) >= missing and missing * self._pace > left):
            return 0.0
        return min(left, LOOK)

    def _comes_back(self, job: Job) -> None:
        """A sequence of the last batch is here for its next token."""
        self._expected -= {job.sequence}
        self._returned += 1
        self._pace = (time.monotonic() - self._ended) / self._returned

    def _submit(self, taken: Pass, mine: Job | None) -> None:
        """Submit the next batch. ``mine``: the job of this thread."""
        jobs = self._next()
        self._free.remove(taken)
        steps = self._steps(len(jobs))
        for job in jobs:
            if job.draws:
                job.draws.steps = min(job.draws.left, steps)
        try:
            submission = self._start(taken, jobs)
        except BaseException as error:
            self._free.insert(0, taken)
            if not isinstance(error, Exception):  # Ctrl-C in this thread concerns no other
                self._queue[:0] = jobs
                raise
            for job in jobs:
                if len(jobs) > 1 and not isinstance(error, DeviceLostError):
                    job.alone = True
                    self._queue.append(job)
                else:
                    job.error = error
                    if job.part:
                        job.part.ended = True
                job.wake.give()
            return
        self.batches.submitted += 1
        self.batches.jobs += len(jobs)
        self._current = batch = Batch(submission, taken, jobs)
        for job in jobs:
            if job.part:
                job.part.follow(batch)
            else:
                job.part = Part(self, batch, job)
        if mine not in jobs:
            waiter = next((job for job in jobs if job.listening), jobs[0])
            waiter.wake.give()  # to wait for the device; the others sleep on

    def _next(self) -> list[Job]:
        """The jobs of the next batch, taken from the queue: the first, and those that hardly add to its time.

        To that of a long prompt others may add, as long as it is short.
        """
        first, *others = self._queue
        jobs, left = [first], []
        rows = -(-first.rows // _ROWS) * _ROWS - first.rows
        if first.rows >= _ROWS:
            rows = max(rows, self._pacing.together() - first.rows)
        sequences, heads = SEQUENCES - len(first.segments), SEQUENCES - len(first.heads)
        for job in others:
            fits = job.rows <= rows and len(job.segments) <= sequences and len(job.heads) <= heads
            alike = (job.draws is None) == (first.draws is None)
            if fits and alike and not first.alone and not job.alone:
                jobs.append(job)
                rows, sequences, heads = rows - job.rows, sequences - len(job.segments), heads - len(job.heads)
            else:
                left.append(job)
        self._queue[:] = left
        return jobs

    def _steps(self, jobs: int) -> int:
        """How many tokens a batch of so many jobs chooses: few if as many others are about to come."""
        steps = self._pacing.steps()
        return min(steps, _FEW_STEPS) if 2 * jobs < self._pacing.users() else steps

    def _end(self, batch: Batch, error: Exception | None = None, mine: Job | None = None) -> None:
        """The batch has ended, with an error or not, or nobody waits for it any more: the next one may begin.

        ``mine``: the job of this thread.
        """
        if batch.ended:
            return
        batch.error = error or batch.outcome()
        batch.ended = True
        if not batch.error and not batch.submission.pending:
            batch.taken.collect()  # before the next batch uses the pass
        self._free.insert(0, batch.taken)  # the next token then uses the same buffers
        ended = [job for job in batch.jobs if not self._goes_on(batch, job)]
        goes_on = len(ended) < len(batch.jobs)
        if goes_on:
            batch.asleep[:] = [job for job in batch.asleep if job.part and job.part.ended]
        if batch.steps and not batch.error:
            self._pacing.stepped(batch.steps, batch.submission.seconds, batch.rows)
        now = time.monotonic()
        try:
            if self._current is batch:
                self._current = None
                part, most = _SAMPLING
                self._expected = {job.sequence for job in ended if job.sequence is not None and job.comes_back}
                self._ended, self._returned = now, 0
                # Those that go on do not wait for those that have ended.
                self._until = now if goes_on else now + min(part * batch.submission.seconds, most)
                self._advance(mine)
            self._nudge()
        finally:
            batch.wake_one()

    def _goes_on(self, batch: Batch, job: Job) -> bool:
        """Whether the job is to be in another batch, now that this one has ended; if so, it is in the queue."""
        part = job.part
        if not part or part.batch is not batch:
            return False
        if batch.error or part.abandoned or not job.goes_on():
            part.ended = True
            return False
        self._queue.append(job)
        return True

    def _nudge(self) -> None:
        """Have the first job that waits see whether it still must."""
        if self._queue:
            self._queue[0].wake.give()


def _wait_for_abandoned(submission: Submission) -> None:
    """Wait for a moment. Raises DeviceLostError if the device does not come back from it."""
    try:
        submission.wait(LOOK)
    except DeviceLostError:
        raise
    except DeviceError:
        pass  # it is pending still, or its error concerns whoever gave it up
