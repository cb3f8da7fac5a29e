"""An answer's text as a message of OpenAI's API, with the calls that are in it."""

from __future__ import annotations

from typing import Any

from wasmetal.serve.ids import call_id
from wasmetal.serve.tools.calling import Calling
from wasmetal.serve.tools.parsing import Argued, Called, Said


class MessageReader:
    """Reads one answer."""

    def __init__(self, calling: Calling | None) -> None:
        """``calling``: of the request's tools; without any, an answer is text."""
        self._calling = calling
        self._parser = calling.parser() if calling else None

    def delta(self, text: str, final: bool) -> dict[str, Any]:
        """What a piece of the text adds to a streamed message."""
        if not (self._calling and self._parser):
            return {"content": text} if text else {}
        said, calls = "", dict[int, dict[str, Any]]()
        for piece in self._parser.feed(text, final):
            if isinstance(piece, Said):
                said += piece.text
            elif isinstance(piece, Called):
                calls[piece.index] = {
                    "index": piece.index,
                    "id": call_id(self._calling.form),
                    "type": "function",
                    "function": {"name": piece.name, "arguments": ""},
                }
            elif isinstance(piece, Argued):
                call = calls.setdefault(piece.index, {"index": piece.index, "function": {"arguments": ""}})
                call["function"]["arguments"] += piece.text
        return ({"content": said} if said else {}) | ({"tool_calls": list(calls.values())} if calls else {})

    def message(self, text: str) -> dict[str, Any]:
        """The content, and the calls if there are any, of a whole message."""
        delta = self.delta(text, final=True)
        if "tool_calls" not in delta:
            return {"content": delta.get("content", "")}
        calls = [{key: value for key, value in each.items() if key != "index"} for each in delta["tool_calls"]]
        return {"content": delta.get("content"), "tool_calls": calls}

    def reason(self, reason: str) -> str:
        """Why the message has ended, for this reason that its text has."""
        return "tool_calls" if reason == "stop" and self._parser and self._parser.calls else reason
