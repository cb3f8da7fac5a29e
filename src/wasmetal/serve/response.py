"""A response of ``/v1/responses``, as the JSON that clients get, and the events in which it is streamed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wasmetal.serve.ids import new_id
from wasmetal.serve.protocol import End
from wasmetal.serve.response_items import Event, Output, message_item
from wasmetal.serve.response_schema import ResponseBody
from wasmetal.serve.tools.calling import Calling

_REASONS = {"length": "max_output_tokens"}


@dataclass(frozen=True, slots=True)
class ResponseShape:
    """What a response says, at its beginning and at its end."""

    opening: dict[str, Any]
    """The response in progress."""
    message_id: str
    prompt: int
    """Tokens of the prompt, if the host has made it."""
    calling: Calling | None = None
    """What the answer may call."""

    @classmethod
    def of(
        cls, body: ResponseBody, *, stored: bool, truncation: str, prompt: int = 0, calling: Calling | None = None
    ) -> ResponseShape:
        """For what a body asks for."""
        asked = body.model_dump(mode="json", include={"tools", "tool_choice"})
        opening = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "conversation": body.conversation and {"id": body.conversation.id},
            "reasoning": {"effort": None, "summary": None},
            "store": stored,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": truncation,
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
        }
        return cls(opening, new_id("msg"), prompt, calling)

    @property
    def id(self) -> str:
        """The response's."""
        return str(self.opening["id"])

    def output(self) -> Output:
        """For the items of its answer."""
        return Output(self.message_id, self.calling)

    def said(self, text: str, end: End) -> dict[str, Any]:
        """The response that has ended, with a text that calls nothing."""
        return self.whole([message_item(self.message_id, self.status(end), text)], end)

    def whole(self, items: Sequence[dict[str, Any]], end: End) -> dict[str, Any]:
        """The response that has ended, with these items."""
        given = self.prompt + end.prompt
        reason = _REASONS.get(end.reason)
        return self.opening | {
            "status": self.status(end),
            "incomplete_details": reason and {"reason": reason},
            "output": list(items),
            "usage": {
                "input_tokens": given,
                "input_tokens_details": {"cached_tokens": end.cached},
                "output_tokens": end.drawn,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": given + end.drawn,
            },
        }

    def status(self, end: End) -> str:
        """Of a response that has ended so, and of its last item."""
        return "incomplete" if end.reason in _REASONS else "completed"

    def begin(self) -> Iterator[Event]:
        """The events before its items."""
        yield {"type": "response.created", "response": self.opening}
        yield {"type": "response.in_progress", "response": self.opening}

    def finish(self, items: Sequence[dict[str, Any]], end: End) -> Event:
        """The event after them."""
        return {"type": f"response.{self.status(end)}", "response": self.whole(items, end)}

    def failed(self, message: str) -> Event:
        """The last event of a response that has failed."""
        error = {"code": "server_error", "message": message}
        return {"type": "response.failed", "response": self.opening | {"status": "failed", "error": error}}
