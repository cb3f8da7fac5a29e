"""Chats with guests, and chats that are conversations: what a guest answers as an actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from wasmetal.serve.answer import Answer
from wasmetal.serve.body import engine_of
from wasmetal.serve.choice import Choice
from wasmetal.serve.errors import ApiError, bad_request
from wasmetal.serve.guest_model import message
from wasmetal.serve.protocol import Token
from wasmetal.serve.schema import ChatBody
from wasmetal.serve.turn import Turn
from wasmetal.serve.turns import conversation_turn, fresh_turn, named_conversation

_TAKEN = {
    "model", "messages", "stream", "stream_options", "temperature", "top_p", "seed", "max_tokens",
    "max_completion_tokens", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "modalities", "parallel_tool_calls",
}  # fmt: skip
"""Fields that guests get, or that change nothing."""
_PLAIN: dict[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "response_format": ({"type": "text"},), "tool_choice": ("none", "auto"),
}  # fmt: skip
"""Values of others that ask for nothing."""


async def guest_chat(request: Request, body: ChatBody) -> Answer | None:
    """The answer, if a guest is to give it: the model is one, or a conversation is named. Raises ApiError."""
    engine, name = engine_of(request), named_conversation(request)
    if name is None and body.model not in engine.guests:
        return None
    _check(body)
    if len(body.messages) > engine.limits.messages:
        raise bad_request(f"{len(body.messages)} messages; at most {engine.limits.messages} are taken", "messages")
    asked = [body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens]
    told = message(
        [each.plain() for each in body.messages],
        continues=name is not None and not any(each.role == "assistant" for each in body.messages),
        max_tokens=min([each for each in (*asked, engine.limits.max_tokens) if each is not None], default=None),
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
    )
    owner = request.scope["state"]["owner"]
    turn: Turn
    if name is None:
        turn = fresh_turn(engine, body.model, told, owner, "messages")
    else:
        turn = conversation_turn(engine, body.model, told, owner, name, "messages")
    return Answer(
        engine,
        turn.model,
        [turn],
        GuestShape(),
        prompts=1,
        stream=bool(body.stream),
        usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def _check(body: ChatBody) -> None:
    """Raise ApiError for what guests are not told of."""
    for field, value in body.model_dump(mode="json", exclude_none=True).items():
        if field not in _TAKEN and value not in ([], {}) and value not in _PLAIN.get(field, ()):
            raise _unsupported(field)
    for number, each in enumerate(body.messages):
        if each.role == "tool":
            raise _unsupported(f"messages.{number}.role")
        if each.tool_calls:
            raise _unsupported(f"messages.{number}.tool_calls")


def _unsupported(field: str) -> ApiError:
    return bad_request(f"{field} is not supported with guests and conversations", field, "unsupported_value")


class GuestShape:
    """Messages: text alone."""

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        """Whose message it is."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, choice: Choice, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """See Shape."""
        delta = {"content": text} if text else {}
        return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": choice.reason or None}

    def choice(self, choice: Choice) -> dict[str, Any]:
        """See Shape."""
        said = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"index": choice.index, "message": said, "logprobs": None, "finish_reason": choice.reason}
