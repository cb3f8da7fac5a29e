"""Whose turn it is: tasks by actor, one at a time for each actor, and the actors in turn, on a few threads.

An actor that has many tasks waits after each for all others that have some, so that no actor's queue delays another's
by more than one task.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Protocol

from wasmetal.errors import ActorBusyError, GuestError
from wasmetal.host.threads import HostThread

log = logging.getLogger("wasmetal.actor")

OVERHEAD = 1024
"""Bytes that a waiting task counts for in addition to its own."""


class Task(Protocol):
    """What is to be done with an actor."""

    @property
    def nbytes(self) -> int:
        """What it takes while it waits."""

    def run(self) -> None:
        """Do it. Called on a worker's thread, which has the actor's turn."""

    def fail(self, error: BaseException) -> None:
        """It will not be done."""


@dataclass(slots=True)
class _Line:
    """The tasks of one actor."""

    tasks: deque[Task] = field(default_factory=deque)
    taken: bool = False
    """Whether somebody has the actor's turn."""
    listed: bool = False
    """Whether the actor is in the list of those that are ready."""


class Turns:
    """The queues of all actors, and the workers that see to them. Any thread may use it."""

    def __init__(self, workers: int, each: int, nbytes: int) -> None:
        """``each``: tasks that may wait for one actor; ``nbytes``: bytes of all that wait.

        Raises GuestError if the system has no threads.
        """
        self._each, self._most = each, nbytes
        self._lines: dict[str, _Line] = {}
        self._ready: deque[str] = deque()
        self._nbytes = self._queued = self._busy = 0
        self._closed = False
        lock = Lock()
        self._lock, self._work, self._room, self._idle = lock, Condition(lock), Condition(lock), Condition(lock)
        try:
            for _ in range(workers):
                HostThread(self._run).start()
        except BaseException:
            self.close(GuestError("the actor host could not be made"))
            raise

    @property
    def queued(self) -> int:
        """Tasks that wait."""
        return self._queued

    @property
    def busy(self) -> int:
        """Workers that are at a task."""
        return self._busy

    def put(self, actor_id: str, task: Task, seconds: float = 0.0, bounded: bool = True) -> None:
        """Append a task, waiting at most so long for room. ``bounded``: whether there must be room.

        Raises ActorBusyError if there is none, GuestError once it is closed.
        """
        size = task.nbytes + OVERHEAD
        give_up = time.monotonic() + seconds
        with self._lock:
            while True:
                if self._closed:
                    raise closed()
                line = self._lines.get(actor_id) or _Line()
                full = self._full(actor_id, line, size) if bounded else None
                if full is None:
                    break
                left = give_up - time.monotonic()
                if left <= 0:
                    raise full
                self._room.wait(left)
            self._lines[actor_id] = line
            line.tasks.append(task)
            self._nbytes += size
            self._queued += 1
            self._list(actor_id, line)

    def waits(self, actor_id: str) -> bool:
        """Whether a task waits for an actor."""
        line = self._lines.get(actor_id)
        return bool(line and line.tasks)

    def try_take(self, actor_id: str, waiting: bool = False) -> bool:
        """Take the turn of an actor that nobody else has, and, unless ``waiting``, for which no task waits."""
        with self._lock:
            line = self._lines.get(actor_id)
            if self._closed or (line and (line.taken or (line.tasks and not waiting))):
                return False
            self._lines[actor_id] = line = line or _Line()
            line.taken = True
            return True

    def give_back(self, actor_id: str) -> None:
        """End a turn."""
        with self._lock:
            line = self._lines[actor_id]
            line.taken = False
            if line.tasks:
                self._list(actor_id, line)
            elif not line.listed:
                del self._lines[actor_id]

    def close(self, error: BaseException) -> None:
        """Take no more tasks, and fail those that wait. Idempotent."""
        with self._lock:
            self._closed = True
            left = [task for line in self._lines.values() for task in line.tasks]
            for line in self._lines.values():
                line.tasks.clear()
            self._nbytes = self._queued = 0
            for condition in (self._work, self._room, self._idle):
                condition.notify_all()
        for task in left:
            task.fail(error)

    def join(self, seconds: float) -> bool:
        """Wait for the tasks that are being done, once it is closed; return whether all have ended."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._busy, seconds)

    def _full(self, actor_id: str, line: _Line, size: int) -> ActorBusyError | None:
        if len(line.tasks) >= self._each:
            return ActorBusyError(f"{len(line.tasks)} messages wait for actor {actor_id}: send this one later")
        if self._nbytes and self._nbytes + size > self._most:
            return ActorBusyError(
                f"{self._queued} messages of {self._nbytes} bytes wait for the host's actors: send this one later"
            )
        return None

    def _list(self, actor_id: str, line: _Line) -> None:
        if not (line.taken or line.listed):
            line.listed = True
            self._ready.append(actor_id)
            self._work.notify()

    def _next(self) -> tuple[str, Task] | None:
        """The next task; the caller has its actor's turn. None at the end."""
        with self._lock:
            while True:
                while not self._ready:
                    if self._closed:
                        return None
                    self._work.wait()
                actor_id = self._ready.popleft()
                line = self._lines[actor_id]
                line.listed = False
                if line.taken:  # by who will list it again
                    continue
                if not line.tasks:
                    del self._lines[actor_id]
                    continue
                task = line.tasks.popleft()
                line.taken = True
                self._busy += 1
                self._queued -= 1
                self._nbytes -= task.nbytes + OVERHEAD
                self._room.notify_all()
                return actor_id, task

    def _run(self) -> None:
        while found := self._next():
            actor_id, task = found
            try:
                task.run()
            except BaseException as error:
                log.exception("a task of actor %s failed", actor_id)
                task.fail(error)
            finally:
                self.give_back(actor_id)
                with self._lock:
                    self._busy -= 1
                    self._idle.notify_all()
            del found, task  # what it was for is not kept until the next one comes


def closed() -> GuestError:
    """The error of a host that is closed."""
    return GuestError("the actor host is closed")
