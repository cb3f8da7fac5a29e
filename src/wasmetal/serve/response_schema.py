"""The bodies of ``/v1/responses`` and ``/v1/conversations``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from wasmetal.serve.strict import Body


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

    def plain(self) -> dict[str, str]:
        """What a chat template takes."""
        text = "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


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
    input: Annotated[list[InputMessage], Field(min_length=1)]
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
    # Taken if they ask for nothing:
    tools: list[Any] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    include: Annotated[list[Any], Field(max_length=0)] | None = None
    background: Literal[False] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # Taken, because they change nothing here:
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator(
        "input", mode="before", json_schema_input_type=str | Annotated[list[InputMessage], Field(min_length=1)]
    )
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return [{"role": "user", "content": given}] if isinstance(given, str) else given

    @field_validator("conversation", mode="before", json_schema_input_type=str | ConversationId | None)
    @classmethod
    def _from_id(cls, given: Any) -> Any:
        return {"id": given} if isinstance(given, str) else given

    @field_validator("tools")
    @classmethod
    def _no_tools(cls, tools: list[Any] | None) -> list[Any] | None:
        if tools:
            raise ValueError("tools are not supported in responses")
        return tools


class ConversationBody(Body):
    """Of /v1/conversations."""

    items: Annotated[list[Any], Field(max_length=0)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
