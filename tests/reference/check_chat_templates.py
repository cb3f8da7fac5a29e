"""Prompts against transformers: of own templates, and of published ones in llama.cpp's folder ``models``.

The folder is the one that WASMETAL_LLAMA_CPP_MODELS names; without it only the own ones are compared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from tests.models.test_chat_template import LLAMA_3, TOOL, WITH_TOOLS
from wasmetal.errors import ModelError
from wasmetal.models import FAMILIES, ChatTemplate

SYSTEM = {"role": "system", "content": "Be <brief> & kind."}
USER = {"role": "user", "content": "What is the weather in Köln?"}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"place": "Köln"}}}
ANSWER = {"role": "assistant", "content": "Rain."}
CALLED = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "rain"},
]
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "user": ([USER], None),
    "system": ([SYSTEM, USER], None),
    "turns": ([SYSTEM, USER, ANSWER, USER], None),
    "tools": ([SYSTEM, USER], [TOOL]),
    "calls": ([USER, *CALLED], [TOOL]),
}
OWN = {
    "llama 3": LLAMA_3,
    "tools": WITH_TOOLS,
    "features": "{% generation %}{{ messages | tojson(indent=2) }}{% endgeneration %}{{ strftime_now('%Y') }}"
    "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
    "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}",
    **{name: family.template for name, family in FAMILIES.items()},
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def theirs(source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str | None:
    try:
        rendered, _ = render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=True, **TOKENS
        )
    except Exception:
        return None
    return str(rendered[0])


def ours(source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str | None:
    try:
        return ChatTemplate(source, bos=TOKENS["bos_token"], eos=TOKENS["eos_token"]).render(messages, tools=tools)
    except ModelError:
        return None


def main() -> int:
    templates = dict(OWN)
    if folder := os.environ.get("WASMETAL_LLAMA_CPP_MODELS"):
        templates |= {path.stem: path.read_text() for path in sorted(Path(folder, "templates").glob("*.jinja"))}
    different, refused, same = [], 0, 0
    for name, source in templates.items():
        for conversation, (messages, tools) in CONVERSATIONS.items():
            expected, rendered = theirs(source, messages, tools), ours(source, messages, tools)
            if expected != rendered:
                different.append(f"{name}, {conversation}")
            elif expected is None:
                refused += 1
            else:
                same += 1
    print(f"{len(templates)} templates: {same} prompts are the same, {refused} are refused by both")
    for each in different:
        print("different:", each)
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
