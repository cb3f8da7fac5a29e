"""The items of a response: those that a request gives, as the messages of a chat, and those that its answer has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from wasmetal.serve.ids import call_id, new_id
from wasmetal.serve.response_schema import CallItem, CallOutput, InputItem
from wasmetal.serve.schema import Message
from wasmetal.serve.tools.calling import Calling
from wasmetal.serve.tools.parsing import Argued, Called, Said
from wasmetal.serve.tools.schema import FunctionCall, ToolCall

Event = dict[str, Any]


def messages(instructions: str | None, items: Sequence[InputItem]) -> list[Message]:
    """Items as the messages of a chat: calls belong to the assistant's message before them, or are one."""
    said = [] if instructions is None else [Message(role="system", content=instructions)]
    for item in items:
        if isinstance(item, CallItem):
            if not said or said[-1].role != "assistant":
                said.append(Message(role="assistant", content=""))
            call = ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments))
            said[-1] = said[-1].model_copy(update={"tool_calls": [*(said[-1].tool_calls or ()), call]})
        elif isinstance(item, CallOutput):
            said.append(Message(role="tool", content=item.text, tool_call_id=item.call_id))
        else:
            said.append(Message(role=item.role, content=item.text))
    return said


def message_item(item_id: str, status: str, text: str | None) -> dict[str, Any]:
    """A message of the assistant; None: its text is still to come."""
    content = [] if text is None else [text_part(text)]
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def text_part(text: str) -> dict[str, Any]:
    """The one part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class Output:
    """The items of one answer, as it is made, and the events that tell of them."""

    def __init__(self, message_id: str, calling: Calling | None = None) -> None:
        """``message_id``: of its message, the first if there are several. ``calling``: of the request's tools."""
        self.items: list[dict[str, Any]] = []
        self._message_id = message_id
        self._calling = calling
        self._parser = calling.parser() if calling else None
        self._text = ""
        """Of the last item, or its arguments."""

    def begin(self) -> Iterator[Event]:
        """Before the text: an answer that calls nothing is a message."""
        if not self._parser:
            yield from self._open_message()

    def feed(self, text: str, *, final: bool = False) -> Iterator[Event]:
        """A piece of the text."""
        pieces = self._parser.feed(text, final) if self._parser else [Said(text)] if text else []
        for piece in pieces:
            if isinstance(piece, Called):
                yield from self._open_call(piece.name)
                continue
            if isinstance(piece, Said) and (not self.items or self.items[-1]["type"] != "message"):
                yield from self._open_message()
            self._text += piece.text
            if isinstance(piece, Argued):
                yield {"type": "response.function_call_arguments.delta", **self._place, "delta": piece.text}
            else:
                yield {"type": "response.output_text.delta", **self._part, "delta": piece.text, "logprobs": []}

    def finish(self, status: str) -> Iterator[Event]:
        """After the text; ``status``: of the last item."""
        if not self.items:
            yield from self._open_message()
        yield from self._close(status)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    @property
    def _part(self) -> dict[str, Any]:
        return self._place | {"content_index": 0}

    def _open(self, item: dict[str, Any]) -> Iterator[Event]:
        if self.items:
            yield from self._close("completed")
        self.items.append(item)
        self._text = ""
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": item}

    def _open_message(self) -> Iterator[Event]:
        first = all(item["type"] != "message" for item in self.items)
        yield from self._open(message_item(self._message_id if first else new_id("msg"), "in_progress", None))
        yield {"type": "response.content_part.added", **self._part, "part": text_part("")}

    def _open_call(self, name: str) -> Iterator[Event]:
        assert self._calling
        call = {"id": new_id("fc"), "type": "function_call", "status": "in_progress"}
        yield from self._open(call | {"call_id": call_id(self._calling.form), "name": name, "arguments": ""})

    def _close(self, status: str) -> Iterator[Event]:
        item, text = self.items[-1], self._text
        if item["type"] == "message":
            yield {"type": "response.output_text.done", **self._part, "text": text, "logprobs": []}
            yield {"type": "response.content_part.done", **self._part, "part": text_part(text)}
            item = message_item(item["id"], status, text)
        else:
            done = {"name": item["name"], "arguments": text}
            yield {"type": "response.function_call_arguments.done", **self._place, **done}
            item = item | {"status": status, "arguments": text}
        self.items[-1] = item
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}
