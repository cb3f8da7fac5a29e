"""How many completions run, and how many wait."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wasmetal.serve.errors import draining, overloaded

_WEIGHT = 0.2
"""Of the latest completion in the mean of how long one takes."""
_LONGEST = 60
"""Most seconds after which a client is told to come back."""


class Admission:
    """Places for completions, taken in the order in which they came. For one event loop."""

    def __init__(self, running: int, waiting: int) -> None:
        self.draining = False
        """Whether nobody is admitted any more."""
        self.running = 0
        self.waiting = 0
        self._most_running, self._most_waiting = running, waiting
        self._places = asyncio.Semaphore(running)
        self._reserved = 0
        self._mean = 1.0
        """Seconds that a completion takes."""

    def reserve(self, count: int = 1) -> None:
        """Reserve places, running or waiting: each must then be used by :meth:`place`, or given back.

        Raises ApiError: 429 if all are taken, 503 while the server drains.
        """
        if self.draining:
            raise draining()
        if self._reserved >= self._most_running + self._most_waiting:
            raise overloaded(self._retry_after())
        self._reserved += count

    def give_back(self, count: int = 1) -> None:
        """Places that were reserved are free again."""
        self._reserved -= count

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place to run in, and hold it."""
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        begin = time.monotonic()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()
            self._mean += _WEIGHT * (time.monotonic() - begin - self._mean)

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._mean * self.waiting / self._most_running)), _LONGEST)
