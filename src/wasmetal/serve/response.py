"""A response of ``/v1/responses``, as the JSON that clients get, and the events in which it is streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wasmetal.serve.protocol import End
from wasmetal.serve.response_schema import ResponseBody

_REASONS = {"length": "max_output_tokens"}


def new_id(kind: str) -> str:
    """A new id."""
    return f"{kind}_{secrets.token_hex(20)}"


@dataclass(frozen=True, slots=True)
class ResponseShape:
    """What a response says, at its beginning and at its end."""

    opening: dict[str, Any]
    """The response in progress."""
    message_id: str
    prompt: int
    """Tokens of the prompt, if the host has made it."""

    @classmethod
    def of(cls, body: ResponseBody, *, stored: bool, truncation: str, prompt: int = 0) -> ResponseShape:
        """For what a body asks for."""
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
            "parallel_tool_calls": True,
            "previous_response_id": body.previous_response_id,
            "conversation": body.conversation and {"id": body.conversation.id},
            "reasoning": {"effort": None, "summary": None},
            "store": stored,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": truncation,
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
        }
        return cls(opening, new_id("msg"), prompt)

    @property
    def id(self) -> str:
        """The response's."""
        return str(self.opening["id"])

    def whole(self, text: str, end: End) -> dict[str, Any]:
        """The response that has ended."""
        given = self.prompt + end.prompt
        reason = _REASONS.get(end.reason)
        return self.opening | {
            "status": "incomplete" if reason else "completed",
            "incomplete_details": reason and {"reason": reason},
            "output": [self._message("incomplete" if reason else "completed", [_part(text)])],
            "usage": {
                "input_tokens": given,
                "input_tokens_details": {"cached_tokens": end.cached},
                "output_tokens": end.drawn,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": given + end.drawn,
            },
        }

    def begin(self) -> Iterator[dict[str, Any]]:
        """The events before the text."""
        yield {"type": "response.created", "response": self.opening}
        yield {"type": "response.in_progress", "response": self.opening}
        yield {"type": "response.output_item.added", "output_index": 0, "item": self._message("in_progress", [])}
        yield {"type": "response.content_part.added", **self._place, "part": _part("")}

    def delta(self, text: str) -> dict[str, Any]:
        """The event of a piece of text."""
        return {"type": "response.output_text.delta", **self._place, "delta": text, "logprobs": []}

    def finish(self, text: str, end: End) -> Iterator[dict[str, Any]]:
        """The events after the text."""
        whole = self.whole(text, end)
        yield {"type": "response.output_text.done", **self._place, "text": text, "logprobs": []}
        yield {"type": "response.content_part.done", **self._place, "part": _part(text)}
        yield {"type": "response.output_item.done", "output_index": 0, "item": whole["output"][0]}
        yield {"type": f"response.{whole['status']}", "response": whole}

    def failed(self, message: str) -> dict[str, Any]:
        """The last event of a response that has failed."""
        error = {"code": "server_error", "message": message}
        return {"type": "response.failed", "response": self.opening | {"status": "failed", "error": error}}

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.message_id, "output_index": 0, "content_index": 0}

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
