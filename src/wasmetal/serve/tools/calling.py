"""What a request's tools come to: which may be called, and how an answer with calls is written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wasmetal.models import Tokenizer
from wasmetal.serve.errors import bad_request
from wasmetal.serve.tools.calls_grammar import calls_grammar
from wasmetal.serve.tools.formats import HERMES, Format
from wasmetal.serve.tools.parsing import CallParser
from wasmetal.serve.tools.schema import Function, NamedTool, Tool, ToolChoice

MAX_TOOLS = 1 << 16
"""Characters of all schemas of a request's tools: parsing them is not interrupted."""


@dataclass(frozen=True, slots=True)
class Calling:
    """For a request with tools."""

    form: Format
    functions: Sequence[Function]
    """Those that may be called."""
    required: bool
    parallel: bool

    def grammar(self, tokenizer: Tokenizer, otherwise: Mapping[str, Any] | None) -> str:
        """Of an answer. ``otherwise``: the JSON schema of one that calls nothing, if it is not any text."""
        return calls_grammar(
            tokenizer,
            self.form,
            {each.name: each.schema_of_arguments for each in self.functions},
            required=self.required,
            parallel=self.parallel,
            otherwise=otherwise,
        )

    def parser(self) -> CallParser:
        """Reads one answer."""
        return CallParser(self.form, [each.name for each in self.functions])


def calling(
    form: Format | None, tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> Calling | None:
    """What a request's fields say; None if nothing may be called. ``form``: of the model, if one is known.

    Raises ApiError.
    """
    functions = [tool.function for tool in tools or ()]
    if not functions and choice not in (None, "none", "auto"):
        raise bad_request("tool_choice needs tools", "tool_choice")
    if not functions or choice == "none":
        return None
    if len({each.name for each in functions}) < len(functions):
        raise bad_request("two tools have the same name", "tools")
    if sum(len(json.dumps(each.parameters)) for each in functions) > MAX_TOOLS:
        raise bad_request(f"the schemas of the tools have more than {MAX_TOOLS} characters", "tools")
    if isinstance(choice, NamedTool):
        functions = [each for each in functions if each.name == choice.function.name]
        if not functions:
            raise bad_request(f"there is no tool {choice.function.name!r}", "tool_choice")
    required = choice == "required" or isinstance(choice, NamedTool)
    return Calling(form or HERMES, functions, required, parallel is not False)
