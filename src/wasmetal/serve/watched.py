"""What a request asks for, computed for as long as its client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope

from wasmetal.serve.engine import Engine
from wasmetal.serve.generation import Generation
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.protocol import Request
from wasmetal.serve.record import Record
from wasmetal.serve.turn import Turn

if TYPE_CHECKING:
    from wasmetal.models import Model


@asynccontextmanager
async def watched(
    scope: Scope,
    receive: Receive,
    engine: Engine,
    model: Model | GuestModel,
    requests: Sequence[Request | Turn],
    first: Iterable[int] = (0,),
) -> AsyncIterator[Generation]:
    """The completions of a request, which is recorded. They are given up when its client goes away.

    ``first``: the first of the requests with each prompt. Raises ApiError if there is no place for them.
    """
    state = scope["state"]
    _tell(state["record"], engine, model, requests, first)
    async with Generation(engine, model, requests, state["owner"], state["record"]) as generation:
        watcher = asyncio.create_task(_watch(receive, generation))
        try:
            yield generation
        finally:
            watcher.cancel()


def _tell(
    record: Record,
    engine: Engine,
    model: Model | GuestModel,
    requests: Sequence[Request | Turn],
    first: Iterable[int],
) -> None:
    """Say what is asked for."""
    record.model = model.name
    record.prompt_tokens = sum(len(request.prompt) for request in requests)
    if engine.log_prompts:
        record.prompt = "\n".join(_text(model, requests[index]) for index in first)


def _text(model: Model | GuestModel, request: Request | Turn) -> str:
    if isinstance(request, Turn):
        return request.text
    assert not isinstance(model, GuestModel)
    return model.tokenizer.decode(request.prompt)


async def _watch(receive: Receive, generation: Generation) -> None:
    """Give the generation up when the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.cancel()
