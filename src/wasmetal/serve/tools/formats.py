"""How the models of a family write calls of tools, as their chat templates show."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wasmetal.models.lm.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write calls."""

    opening: str
    """The text that begins a call, or all calls."""
    before: str
    """What goes before a call's name,"""
    between: str
    """between name and arguments,"""
    after: str
    """and after the arguments."""
    separator: str = ""
    """What goes between two calls."""
    first: str = ""
    last: str = ""
    """What goes before the first call, after the opening, and after the last one."""
    repeats: bool = False
    """Whether each call begins with the opening, and not just the first."""
    bare: bool = False
    """Whether calls need no opening: then they are all of the answer, which begins with a brace."""
    closing: str = ""
    """The text that ends a call, if there is one."""
    id_length: int = 24
    """Letters and digits of a call's id."""


HERMES = Format(
    "<tool_call>",
    '\n{"name": "',
    '", "arguments": ',
    "}\n</tool_call>",
    separator="\n",
    repeats=True,
    closing="</tool_call>",
)
"""NousResearch's Hermes 2 Pro, and Qwen 2.5 and 3: https://github.com/NousResearch/Hermes-Function-Calling. Also for
models whose templates know no tools: see :mod:`~wasmetal.serve.tools.rendering`."""
LLAMA = Format("<|python_tag|>", '{"name": "', '", "parameters": ', "}", separator="; ", bare=True)
"""Llama 3.1 to 3.3: JSON and nothing else, sometimes after ``<|python_tag|>``:
https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/."""
MISTRAL = Format(
    "[TOOL_CALLS]", '{"name": "', '", "arguments": ', "}", separator=", ", first="[", last="]", id_length=9
)
"""Mistral's tokenizers v3 to v7: a list. Their templates refuse ids that do not have 9 letters and digits."""
MISTRAL_ARGS = Format("[TOOL_CALLS]", "", "[ARGS]", "", repeats=True, id_length=9)
"""Mistral's tokenizers v11 and later: a name, and then JSON. All of Mistral's forms:
https://github.com/mistralai/mistral-common."""

_TOOLS = re.compile(r"\btools\b")


def format_of(template: ChatTemplate) -> Format | None:
    """How a template's model writes calls; None if the template knows no tools, or a form that is not known here."""
    source = (template.with_tools or template).source
    if not _TOOLS.search(source) or "<function=" in source:  # Qwen3-Coder's calls are no JSON
        return None
    if HERMES.opening in source:
        return HERMES
    if MISTRAL.opening in source:
        return MISTRAL_ARGS if MISTRAL_ARGS.between in source else MISTRAL
    if LLAMA.opening in source or "<|start_header_id|>" in source:
        return LLAMA
    return None
