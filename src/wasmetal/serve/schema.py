"""The bodies of requests. Unknown fields are refused: nothing that changes an answer is ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from wasmetal.models.lm.heads import MOST_TOP
from wasmetal.serve.errors import invalid
from wasmetal.serve.protocol import MAX_STOP, MAX_STOPS
from wasmetal.serve.response_format import ResponseFormat
from wasmetal.serve.strict import Body
from wasmetal.serve.tools.schema import Tool, ToolCall, ToolChoice

MOST_LOGPROBS = 20
_U64 = 2**64 - 1

Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
B = TypeVar("B", bound=Body)


class StreamOptions(Body):
    """How an answer is streamed."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Generating(Body):
    """What chats and completions have in common."""

    model: str
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=_U64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    # Not of OpenAI's API, but of other servers':
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    grammar: str | None = None
    """GBNF, or llguidance's Lark."""
    # Taken, because they change nothing here:
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOPS:
            raise ValueError(f"{len(stops)} stop strings; at most {MAX_STOPS} are supported")
        if any(not 1 <= len(each.encode()) <= MAX_STOP for each in stops):
            raise ValueError(f"a stop string has 1 to {MAX_STOP} bytes")
        return stop

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        for token in biases or {}:
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ValueError("the keys are token ids")
        return biases

    @property
    def stops(self) -> list[bytes]:
        """The stop strings' bytes."""
        return [each.encode() for each in ([self.stop] if isinstance(self.stop, str) else self.stop or [])]


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    # As clients send back what they got:
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _whole(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError("a message with the role 'tool' has a tool_call_id, and no other has")
        if self.content is None and not self.tool_calls:
            raise ValueError("a message has content, or tool_calls")
        return self

    def plain(self) -> dict[str, Any]:
        """What a chat template takes."""
        content = self.content or ""
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        plain: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            plain["tool_calls"] = [call.model_dump(exclude={"index"}) for call in self.tool_calls]
        if self.role == "tool":
            plain["tool_call_id"] = self.tool_call_id
            plain |= {"name": self.name} if self.name else {}
        return plain


class ChatBody(Generating):
    """Of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(Generating):
    """Of /v1/completions."""

    prompt: str | list[TokenId] | Annotated[list[str], Field(min_length=1)] | Annotated[
        list[list[TokenId]], Field(min_length=1)
    ]  # fmt: skip
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=min(MOST_LOGPROBS, MOST_TOP))] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class EmbeddingBody(Body):
    """Of /v1/embeddings."""

    model: str
    input: str | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class TokenizeBody(Body):
    """Of /tokenize: a text, or a conversation."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None


class DetokenizeBody(Body):
    """Of /detokenize."""

    model: str
    tokens: list[TokenId]


def parse(kind: type[B], data: bytes) -> B:
    """A body from JSON. Raises ApiError."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise invalid(error) from None
