"""How many completions run, and how many wait."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wasmetal.serve.errors import draining, overloaded

_WEIGHT = 0.2
"""Of the latest completion in the mean of how long one takes."""
_LONGEST = 60
"""Most seconds after which a client is told to come back."""


class Admission:
    """Places for completions. Who waits for one takes turns by owner; those of one owner come in order.

    For one event loop.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.draining = False
        """Whether nobody is admitted any more."""
        self.running = 0
        self._most_running, self._most_waiting = running, waiting
        self._free = running
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Who waits, by owner; the owner whose turn is next comes first. No queue is empty."""
        self._reserved = 0
        self._mean = 1.0
        """Seconds that a completion takes."""

    @property
    def waiting(self) -> int:
        """Completions that wait for a place."""
        return sum(map(len, self._queues.values()))

    def check(self) -> None:
        """Raise ApiError if nobody is admitted now: 429 if all places are taken, 503 while the server drains."""
        if self.draining:
            raise draining()
        if self._reserved >= self._most_running + self._most_waiting:
            raise overloaded(self._retry_after())

    def reserve(self, count: int = 1) -> None:
        """Reserve places, running or waiting, until they are given back. Raises what :meth:`check` does.

        Those who ask for several get all of them if there is one.
        """
        self.check()
        self._reserved += count

    def give_back(self, count: int = 1) -> None:
        """Places that were reserved are free again."""
        self._reserved -= count

    @asynccontextmanager
    async def place(self, owner: str = "") -> AsyncIterator[None]:
        """Wait for a place to run in, and hold it."""
        if self._free:
            self._free -= 1
        else:
            await self._turn(owner)
        begin = time.monotonic()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._pass_on()
            self._mean += _WEIGHT * (time.monotonic() - begin - self._mean)

    async def _turn(self, owner: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had come just then
                self._pass_on()
            elif turn in (queue := self._queues.get(owner, deque())):
                queue.remove(turn)
                if not queue:
                    del self._queues[owner]
            raise

    def _pass_on(self) -> None:
        """A place is free: it goes to the next who waits."""
        while self._queues:
            owner, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._queues[owner] = queue  # the last, now
            if not turn.done():  # or it was cancelled, which its task has yet to notice
                turn.set_result(None)
                return
        self._free += 1

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._mean * self.waiting / self._most_running)), _LONGEST)
