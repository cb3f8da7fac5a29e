"""Conversations with tools, for chat templates: those that know tools, and those that do not."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wasmetal.models.lm.chat_template import ChatTemplate
from wasmetal.serve.tools.formats import HERMES, Format

Message = Mapping[str, Any]

_INSTRUCTIONS = """You may call functions to answer. They are described in JSON within <tools></tools>:
<tools>
{tools}
</tools>
To call one, answer with a JSON object with its name and its arguments within <tool_call></tool_call>:
<tool_call>
{{"name": "a function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>"""

_NO_SYSTEM = re.compile("system role not supported", re.IGNORECASE)
"""What Gemma's templates say."""


def for_template(
    template: ChatTemplate, form: Format | None, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> tuple[Sequence[Message], Sequence[Mapping[str, Any]] | None]:
    """What the template is given of a conversation, and of the tools.

    ``form``: how its model writes calls, if it knows tools; without one, instructions and calls become texts, in the
    form :data:`HERMES`. ``messages`` are as in OpenAI's API, with a string for each ``content``.
    """
    if form:
        return [_known(each, form) for each in messages], tools or None
    written: list[dict[str, Any]] = []
    for each in messages:
        message = _written(each)
        if each["role"] == "tool" and written and written[-1].pop("of_tools", False):  # roles are to take turns
            message["content"] = f"{written.pop()['content']}\n{message['content']}"
        written.append(message)
    plain = [{key: value for key, value in each.items() if key != "of_tools"} for each in written]
    return _instructed(template, plain, tools) if tools else plain, None


def _known(message: Message, form: Format) -> dict[str, Any]:
    """A message as templates take it: arguments as objects, and ids that the template accepts."""
    known = dict(message)
    if "tool_calls" in message:
        known["tool_calls"] = [
            {"id": _id(each["id"], form), "type": "function", "function": _with_object(each["function"])}
            for each in message["tool_calls"]
        ]
    if "tool_call_id" in message:
        known["tool_call_id"] = _id(message["tool_call_id"], form)
    return known


def _with_object(function: Mapping[str, str]) -> dict[str, Any]:
    try:
        return {"name": function["name"], "arguments": json.loads(function["arguments"])}
    except (ValueError, RecursionError):  # it was cut off
        return dict(function)


def _id(given: str, form: Format) -> str:
    """An id, perhaps another server's, as short as the template wants it."""
    if form.id_length > 9 or re.fullmatch("[a-zA-Z0-9]{9}", given):
        return given
    return hashlib.sha256(given.encode()).hexdigest()[:9]


def _written(message: Message) -> dict[str, Any]:
    """A message as text alone."""
    if message["role"] == "tool":
        return {
            "role": "user",
            "content": f"<tool_response>\n{message['content']}\n</tool_response>",
            "of_tools": True,
        }
    calls = [
        HERMES.opening + HERMES.before + call["name"] + HERMES.between + call["arguments"] + HERMES.after
        for call in (each["function"] for each in message.get("tool_calls", ()))
    ]
    content = "\n".join([message["content"], *calls] if message["content"] else calls) if calls else message["content"]
    return {"role": message["role"], "content": content}


def _instructed(
    template: ChatTemplate, messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """With a description of the tools, in the system message, or if the template takes none, in the first."""
    text = _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    first = messages[0]
    if first["role"] != "system" and not _NO_SYSTEM.search(template.source):
        return [{"role": "system", "content": text}, *messages]
    content = f"{first['content']}\n\n{text}" if first["role"] == "system" else f"{text}\n\n{first['content']}"
    return [first | {"content": content}, *messages[1:]]
