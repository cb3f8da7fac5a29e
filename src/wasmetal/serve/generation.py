"""The completions of one request: their tokens, as they are made on other threads, for the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from wasmetal.errors import WasmetalError
from wasmetal.serve.completion import Completion
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import ApiError, failed
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.protocol import End, News, Request, Token
from wasmetal.serve.record import Record
from wasmetal.serve.turn import Turn

if TYPE_CHECKING:
    from wasmetal.models import Model

log = logging.getLogger("wasmetal.serve")


class Generation:
    """Completions side by side. Use it as an asynchronous context manager: leaving it stops them."""

    def __init__(
        self,
        engine: Engine,
        model: Model | GuestModel,
        requests: Sequence[Request | Turn],
        owner: str = "",
        record: Record | None = None,
    ) -> None:
        """They begin when there is a place to run in. ``owner``: whose request it is. ``record``: what is to be told of
        it. Raises ApiError if not even a place to wait in is left."""
        self._record = record or Record("", "", "", "")
        self.cancelled = False
        """Whether nobody waits for it any more."""
        self._stopped = False
        self._engine = engine
        self._owner = owner
        self._model = model
        self._begin = time.monotonic()
        self._news: asyncio.Queue[tuple[int, News | ApiError | None]] = asyncio.Queue()
        self._completions = [self._work(each) for each in requests]
        engine.admission.reserve(len(requests))
        self._started: set[Completion | Turn] = set()
        engine.unfinished[self] = self.give_up
        self._tasks = [asyncio.create_task(self._run(*each)) for each in enumerate(self._completions)]
        for request, completion, task in zip(requests, self._completions, self._tasks, strict=True):
            engine.metrics.prompt(model.name, owner, len(request.prompt))
            engine.roster.add(completion)
            engine.tasks.add(task)
            task.add_done_callback(partial(self._leave, completion))
            task.add_done_callback(engine.tasks.discard)
            task.add_done_callback(lambda _: engine.admission.give_back())

    async def events(self) -> AsyncIterator[tuple[int, News]]:
        """Tokens and ends as they come, each with its completion's number. Ends early if it is cancelled.

        Raises ApiError if a guest fails, or it is given up.
        """
        metrics, name, key, record = self._engine.metrics, self._model.name, self._owner, self._record
        last: dict[int, float] = {}
        left = len(self._completions)
        while left:
            number, event = await self._news.get()
            if self.cancelled or event is None:
                record.finish = "cancelled"
                return
            if isinstance(event, ApiError):
                record.finish = "error"
                raise event
            completion = self._completions[number]
            if record.started is None:
                record.started = completion.begun - record.came
            if isinstance(event, End):
                left -= 1
                self._ended(completion, event)
            else:
                now = time.monotonic()
                if record.first is None:
                    record.first = now - record.came
                if number not in last:
                    metrics.began(name, completion.begun - self._begin)
                metrics.pieces(name, now - last.get(number, self._begin), len(event), first=number not in last)
                if not isinstance(completion, Turn):  # whose pieces are not tokens
                    metrics.drew(name, key, len(event))
                    record.completion_tokens += len(event)
                last[number] = now
            yield number, event

    def _ended(self, completion: Completion | Turn, end: End) -> None:
        """Count what is known at the end."""
        metrics, name, key, record = self._engine.metrics, self._model.name, self._owner, self._record
        if isinstance(completion, Turn):
            drawn = end.drawn
        else:
            metrics.cached(name, key, end.cached)
            drawn = max(end.drawn - completion.tokens, 0)  # those without text of their own
            metrics.drew(name, key, drawn)
        record.finish = end.reason
        record.prompt_tokens += end.prompt
        record.completion_tokens += drawn
        record.cached_tokens += end.cached
        record.device_seconds += completion.counters.device_seconds

    def _count(self, turn: Turn) -> None:
        """Count a turn's tokens, which are known once it has ended, failed or been stopped."""
        metrics, name, key, counts = self._engine.metrics, self._model.name, self._owner, turn.token_counts
        metrics.prompt(name, key, counts.prompt)
        metrics.cached(name, key, counts.cached)
        metrics.drew(name, key, counts.chosen)

    def cancel(self) -> None:
        """Stop all that have not ended: those that run within a token, those that wait at once."""
        self.cancelled = True
        self._stop(None)

    def give_up(self, error: ApiError) -> None:
        """Stop them likewise, and tell whoever waits for them why."""
        self._stop(error)

    def _stop(self, reason: ApiError | None) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._engine.unfinished.pop(self)
        self._news.put_nowait((0, reason))
        for completion, task in zip(self._completions, self._tasks, strict=True):
            if completion in self._started:
                completion.stop()
            else:
                task.cancel()

    def _leave(self, completion: Completion | Turn, task: asyncio.Task[None]) -> None:
        self._engine.roster.remove(completion)

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()

    def _work(self, request: Request | Turn) -> Completion | Turn:
        if isinstance(request, Turn):
            return request
        assert not isinstance(self._model, GuestModel)
        return Completion(self._engine.program, self._model, request, self._engine.limits, self._owner)

    async def _run(self, number: int, completion: Completion | Turn) -> None:
        engine, loop = self._engine, asyncio.get_running_loop()

        def emit(tokens: list[Token]) -> None:
            loop.call_soon_threadsafe(self._tell, number, tokens)

        async with engine.admission.place(self._owner):
            self._started.add(completion)
            try:
                self._tell(number, await loop.run_in_executor(engine.pool, completion.run, emit))
            except ApiError as error:
                self._tell(number, error)
            except WasmetalError as error:
                if not self._stopped:
                    engine.metrics.failed(self._model.name)
                    log.warning("a completion of %s failed: %s", self._model.name, error)
                    self._tell(number, failed(str(error)))
            except Exception:
                log.exception("a completion of %s failed", self._model.name)
                self._tell(number, failed("internal error"))
            finally:
                # Before anybody hears of the end: nothing is awaited in between.
                engine.metrics.ended(self._model.name, self._owner, completion.counters)
                if isinstance(completion, Turn):
                    self._count(completion)

    def _tell(self, number: int, event: News | ApiError) -> None:
        self._news.put_nowait((number, event))
