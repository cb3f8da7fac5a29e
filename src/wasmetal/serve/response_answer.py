"""Sending a response: as one JSON document, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import chain, count
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from wasmetal.serve.choice import Choice
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import ApiError
from wasmetal.serve.generation import Generation
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.protocol import End, News, Request
from wasmetal.serve.response import ResponseShape
from wasmetal.serve.response_items import Event
from wasmetal.serve.turn import Turn
from wasmetal.serve.watched import watched

if TYPE_CHECKING:
    from wasmetal.models import Model

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class ResponseAnswer:
    """A response for Starlette. What it takes is begun when it is sent, and stopped if the client goes away."""

    def __init__(
        self, engine: Engine, model: Model | GuestModel, request: Request | Turn, shape: ResponseShape, *, stream: bool
    ) -> None:
        self._engine, self._model, self._request = engine, model, request
        self._shape, self._streams = shape, stream
        self._choice, self._output = Choice(0), shape.output()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make it, and send it. Raises ApiError if there is no place for it, or a guest fails or refuses."""
        async with watched(scope, receive, self._engine, self._model, [self._request]) as generation:
            if self._streams:
                await self._stream(generation, send)
            else:
                await self._send_whole(generation, scope, receive, send)

    async def _send_whole(self, generation: Generation, scope: Scope, receive: Receive, send: Send) -> None:
        async for _, event in generation.events():
            self._choice.add(event)
            if isinstance(event, End):
                for _ in self._told(self._choice.text, event):  # the events are not wanted
                    pass
                await JSONResponse(self._shape.whole(self._output.items, event))(scope, receive, send)

    async def _stream(self, generation: Generation, send: Send) -> None:
        """Send events. An error before the first of them raises ApiError; a later one is an event, the last."""
        events, numbers = self._events(generation), count()

        async def send_event(event: Event) -> None:
            data = json.dumps(event | {"sequence_number": next(numbers)}, ensure_ascii=False, separators=(",", ":"))
            body = f"event: {event['type']}\ndata: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.sleep(0)  # or what has piled up would be sent in one go, even to a client that has gone

        if (first := await anext(events, None)) is None:
            return
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send_event(first)
        try:
            async for event in events:
                await send_event(event)
        except ApiError as error:
            await send_event(self._shape.failed(str(error)))
        if not generation.cancelled:
            await send({"type": "http.response.body", "body": b""})

    async def _events(self, generation: Generation) -> AsyncIterator[Event]:
        begun = False
        async for _, event in generation.events():
            if not begun:
                for each in chain(self._shape.begin(), self._output.begin()):
                    yield each
                begun = True
            for each in self._told(self._choice.add(event), event):
                yield each
            if isinstance(event, End):
                yield self._shape.finish(self._output.items, event)

    def _told(self, text: str, event: News) -> Iterator[Event]:
        """What a piece of the text adds to the output."""
        yield from self._output.feed(text, final=isinstance(event, End))
        if isinstance(event, End):
            yield from self._output.finish(self._shape.status(event))
