"""``/v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from wasmetal.models import Tokenizer
from wasmetal.serve.answer import Answer
from wasmetal.serve.body import engine_of, read
from wasmetal.serve.choice import Choice, finite, spelled
from wasmetal.serve.errors import bad_request
from wasmetal.serve.generating import chat_tokens, requests_for
from wasmetal.serve.grammars import chat_grammar
from wasmetal.serve.protocol import Token
from wasmetal.serve.routes.guest_chat import guest_chat
from wasmetal.serve.schema import ChatBody
from wasmetal.serve.tools.calling import Calling, calling
from wasmetal.serve.tools.formats import format_of
from wasmetal.serve.tools.messages import MessageReader


async def chat(request: Request) -> Answer:
    """Answer a conversation."""
    engine = engine_of(request)
    engine.admission.check()  # before the body is read, and again after
    body = await read(request, ChatBody)
    if turn := await guest_chat(request, body):
        return turn
    model = engine.model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    form = format_of(model.chat_template) if model.chat_template else None
    tools = calling(form, body.tools, body.tool_choice, body.parallel_tool_calls)
    prompt = await chat_tokens(engine, model, body.messages, body.tools or () if tools else ())
    logprobs = body.top_logprobs or 0 if body.logprobs else None
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    grammar = await chat_grammar(model, body, tools)
    requests = requests_for(engine, model, body, [prompt], "messages", most, logprobs, grammar)
    return Answer(
        engine,
        model,
        requests,
        ChatShape(model.tokenizer, logprobs is not None, tools),
        prompts=1,
        stream=bool(body.stream),
        usage=bool(body.stream_options and body.stream_options.include_usage),
    )


class ChatShape:
    """Messages."""

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, with_logprobs: bool, tools: Calling | None = None) -> None:
        self._tokenizer = tokenizer
        self._with_logprobs = with_logprobs
        self._tools = tools
        self._readers: dict[int, MessageReader] = {}

    def opening(self, index: int) -> dict[str, Any]:
        """Whose message it is."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, choice: Choice, text: str, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """See Shape."""
        reader = self._readers.setdefault(choice.index, MessageReader(self._tools))
        delta = reader.delta(text, final=bool(choice.reason))
        logprobs = self._logprobs(tokens) if tokens else None
        if not (delta or logprobs or choice.reason):
            return None
        if logprobs:
            delta = {"content": ""} | delta
        return {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reader.reason(choice.reason) or None,
        }

    def choice(self, choice: Choice) -> dict[str, Any]:
        """See Shape."""
        reader = MessageReader(self._tools)
        message = reader.message(choice.text)
        return {
            "index": choice.index,
            "message": {"role": "assistant", "refusal": None} | message,
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": reader.reason(choice.reason),
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        content = [
            self._one(each.token, each.logprob) | {"top_logprobs": [self._one(*top) for top in each.tops]}
            for each in tokens
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = spelled(self._tokenizer, token)
        return {"token": text.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(text)}
