"""A generation's answer: as one JSON document, or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from wasmetal.serve.choice import Choice
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import ApiError
from wasmetal.serve.generation import Generation
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.protocol import End, Request, Token
from wasmetal.serve.turn import Turn
from wasmetal.serve.watched import watched

if TYPE_CHECKING:
    from wasmetal.models import Model

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_DONE = b"data: [DONE]\n\n"


class Shape(Protocol):
    """How an endpoint writes its answers."""

    prefix: str
    """Of an answer's id."""
    whole: str
    piece: str
    """The object names of an answer, and of a piece of a streamed one."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """What comes before a streamed choice's text, if anything."""

    def part(self, choice: Choice, text: str, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """A piece of a streamed choice, its last one if the choice has a reason; None if there is nothing to tell."""

    def choice(self, choice: Choice) -> dict[str, Any]:
        """A whole choice."""


class Answer:
    """A response for Starlette. The completions are begun when it is sent, and stopped if the client goes away."""

    def __init__(
        self,
        engine: Engine,
        model: Model | GuestModel,
        requests: Sequence[Request | Turn],
        shape: Shape,
        *,
        prompts: int,
        stream: bool = False,
        usage: bool = False,
    ) -> None:
        """``prompts``: how many different ones the requests have, each as often as the others, and one after the other.
        ``usage``: whether a stream ends with the usage."""
        self._engine = engine
        self._model = model
        self._requests = requests
        self._shape = shape
        self._first = range(0, len(requests), len(requests) // prompts)
        """The first choice of each prompt."""
        self._streams = stream
        self._with_usage = usage
        self._choices = [Choice(index) for index in range(len(requests))]
        self._head = {"id": f"{shape.prefix}{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the completions, and send them. Raises ApiError if there is no place for them, or a guest fails."""
        async with watched(scope, receive, self._engine, self._model, self._requests, self._first) as generation:
            if self._streams:
                await self._stream(generation, send)
            else:
                await self._send_whole(generation, scope, receive, send)

    async def _send_whole(self, generation: Generation, scope: Scope, receive: Receive, send: Send) -> None:
        async for number, event in generation.events():
            self._choices[number].add(event)
        if generation.cancelled:
            return
        choices = [self._shape.choice(choice) for choice in self._choices]
        body = self._head | {"object": self._shape.whole, "choices": choices, "usage": self._usage()}
        await JSONResponse(body)(scope, receive, send)

    async def _stream(self, generation: Generation, send: Send) -> None:
        """Send events. An error before the first of them raises ApiError; a later one is an event, the last."""
        pieces = self._pieces(generation)
        first = await anext(pieces, None)
        if first is None:
            return
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await _send_event(send, first)
        try:
            async for piece in pieces:
                await _send_event(send, piece)
            last = _DONE
        except ApiError as error:
            last = _event(error.body)
        if not generation.cancelled:
            await send({"type": "http.response.body", "body": last})

    async def _pieces(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        shape, opened = self._shape, False
        async for number, event in generation.events():
            if not opened:
                for index in range(len(self._choices)):
                    if opening := shape.opening(index):
                        yield self._piece([opening])
                opened = True
            choice = self._choices[number]
            text = choice.add(event)
            if part := shape.part(choice, text, [] if isinstance(event, End) else event):
                yield self._piece([part])
        if self._with_usage and not generation.cancelled:
            yield self._piece([]) | {"usage": self._usage()}

    def _piece(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self._with_usage else {}
        return self._head | {"object": self._shape.piece, "choices": choices} | usage

    def _usage(self) -> dict[str, Any]:
        drawn = sum(choice.drawn for choice in self._choices)
        given = sum(len(self._requests[index].prompt) + self._choices[index].prompt for index in self._first)
        cached = sum(self._choices[index].cached for index in self._first)
        return {
            "prompt_tokens": given,
            "completion_tokens": drawn,
            "total_tokens": given + drawn,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _send_event(send: Send, data: Any) -> None:
    await send({"type": "http.response.body", "body": _event(data), "more_body": True})
    await asyncio.sleep(0)  # or what has piled up would be sent in one go, even to a client that has gone
