"""The bodies of ``/v1/responses`` and ``/v1/conversations``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from wasmetal.serve.strict import Body
from wasmetal.serve.tools.schema import CallId, Function, FunctionName, Name, NamedTool, Tool, ToolChoice


class Part(Body):
    """A part of a message: text."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Body):
    """A message, as clients write it or as they got it."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    @field_validator("content", mode="before", json_schema_input_type=str | list[Part])
    @classmethod
    def _from_text(cls, content: Any) -> Any:
        return [{"type": "input_text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        """Its parts' texts."""
        return "\n".join(part.text for part in self.content)

    def plain(self) -> dict[str, str]:
        """What a chat template takes."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class CallItem(Body):
    """A call of a tool, by the assistant."""

    type: Literal["function_call"]
    call_id: CallId
    name: Name
    arguments: str
    id: str | None = None
    status: str | None = None


class CallOutput(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: str | list[Part]
    id: str | None = None
    status: str | None = None

    @property
    def text(self) -> str:
        """It as one text."""
        return self.output if isinstance(self.output, str) else "\n".join(part.text for part in self.output)


def _kind(item: Any) -> str:
    """What an item is: a message, unless it says otherwise. In parentheses, for paths in errors to be without it."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return f"({kind})" if kind in ("function_call", "function_call_output") else "(message)"


InputItem = Annotated[
    Annotated[InputMessage, Tag("(message)")]
    | Annotated[CallItem, Tag("(function_call)")]
    | Annotated[CallOutput, Tag("(function_call_output)")],
    Discriminator(_kind),
]
_Input = Annotated[list[InputItem], Field(min_length=1)]


class FunctionTool(Function):
    """A tool that a request offers."""

    type: Literal["function"]

    def for_chat(self) -> Tool:
        """As chats have it."""
        function = Function(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(type="function", function=function)


class FunctionChoice(Body):
    """The tool that is to be called."""

    type: Literal["function"]
    name: Name


class Format(Body):
    """Text alone."""

    type: Literal["text"]


class TextOptions(Body):
    """Of the answer."""

    format: Format | None = None


class ConversationId(Body):
    """A conversation."""

    id: str


class ResponseStream(Body):
    """How a response is streamed."""

    include_obfuscation: bool | None = None


class ResponseBody(Body):
    """Of /v1/responses."""

    model: str
    input: _Input
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: ResponseStream | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: ConversationId | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    # Taken if they ask for nothing:
    include: Annotated[list[Any], Field(max_length=0)] | None = None
    background: Literal[False] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # Taken, because they change nothing here:
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("input", mode="before", json_schema_input_type=str | _Input)
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return [{"role": "user", "content": given}] if isinstance(given, str) else given

    @field_validator("conversation", mode="before", json_schema_input_type=str | ConversationId | None)
    @classmethod
    def _from_id(cls, given: Any) -> Any:
        return {"id": given} if isinstance(given, str) else given

    @property
    def has_tools(self) -> bool:
        """Whether there are tools, or calls of them."""
        return bool(self.tools) or any(not isinstance(each, InputMessage) for each in self.input)

    @property
    def choice_for_chat(self) -> ToolChoice | None:
        """``tool_choice`` as chats have it."""
        choice = self.tool_choice
        if isinstance(choice, FunctionChoice):
            return NamedTool(type="function", function=FunctionName(name=choice.name))
        return choice


class ConversationBody(Body):
    """Of /v1/conversations."""

    items: Annotated[list[Any], Field(max_length=0)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
