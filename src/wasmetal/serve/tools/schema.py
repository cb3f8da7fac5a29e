"""Tools, and calls of them, as requests have them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from wasmetal.serve.strict import Body

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=256)]
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class Function(Body):
    """What a model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """The JSON schema of its arguments; None: there are none."""
    strict: bool | None = None
    """Ignored: arguments always obey the schema."""

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The same, always a schema."""
        return NO_PARAMETERS if self.parameters is None else self.parameters


class Tool(Body):
    """One that a request offers."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """Of the tool that is to be called."""

    name: Name


class NamedTool(Body):
    """The tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class FunctionCall(Body):
    """What was called."""

    name: Name
    arguments: str
    """JSON; but a model that was cut off has not written all of it."""


class ToolCall(Body):
    """A call in a conversation, by the assistant."""

    id: CallId
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None
    """As clients send back what was streamed to them."""
