"""``/v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request

from wasmetal.models import Tokenizer
from wasmetal.serve.answer import Answer
from wasmetal.serve.body import engine_of, read
from wasmetal.serve.choice import Choice, finite, spelled
from wasmetal.serve.errors import bad_request
from wasmetal.serve.generating import requests_for, text_tokens
from wasmetal.serve.grammars import text_grammar
from wasmetal.serve.protocol import Token
from wasmetal.serve.schema import CompletionBody

if TYPE_CHECKING:
    from wasmetal.models import Model


async def completions(request: Request) -> Answer:
    """Continue one text, or several."""
    engine = engine_of(request)
    engine.admission.check()  # before the body is read, and again after
    body = await read(request, CompletionBody)
    model = engine.model(body.model)
    if body.echo and body.logprobs is not None:
        raise bad_request("echo is not supported together with logprobs", "echo")
    prompts = await _prompts(model, body, engine.limits.inputs)
    most = 16 if body.max_tokens is None else body.max_tokens  # OpenAI's default
    grammar = await text_grammar(model, body)
    requests = requests_for(engine, model, body, prompts, "prompt", most, body.logprobs, grammar)
    before = [model.tokenizer.decode(each.prompt) if body.echo else "" for each in requests]
    return Answer(
        engine,
        model,
        requests,
        TextShape(model.tokenizer, body.logprobs, before),
        prompts=len(prompts),
        stream=bool(body.stream),
        usage=bool(body.stream_options and body.stream_options.include_usage),
    )


async def _prompts(model: Model, body: CompletionBody, most: int) -> list[list[int]]:
    """The tokens of each prompt. Raises ApiError."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [await text_tokens(model, prompt)]
    if not prompt or isinstance(prompt[0], int):
        return [cast("list[int]", prompt)]
    if len(prompt) > most:
        raise bad_request(f"{len(prompt)} prompts; at most {most} are taken", "prompt")
    return [await text_tokens(model, each) if isinstance(each, str) else each for each in prompt]


class TextShape:
    """Texts."""

    prefix, whole, piece = "cmpl-", "text_completion", "text_completion"

    def __init__(self, tokenizer: Tokenizer, logprobs: int | None, before: Sequence[str]) -> None:
        """``before``: what goes before each choice's text."""
        self._tokenizer = tokenizer
        self._logprobs_wanted = logprobs
        self._before = before
        self._offsets = [0] * len(before)

    def opening(self, index: int) -> dict[str, Any] | None:
        """The prompt, if it is wanted."""
        if not (text := self._before[index]):
            return None
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def part(self, choice: Choice, text: str, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """See Shape."""
        if not (text or choice.reason or self._logprobs_wanted is not None):
            return None
        logprobs = self._logprobs(choice.index, tokens) if tokens else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.reason or None}

    def choice(self, choice: Choice) -> dict[str, Any]:
        """See Shape."""
        return {
            "index": choice.index,
            "text": self._before[choice.index] + choice.text,
            "logprobs": self._logprobs(choice.index, choice.tokens),
            "finish_reason": choice.reason,
        }

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._logprobs_wanted is None:
            return None
        texts = [self._text(each.token) for each in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [finite(each.logprob) for each in tokens],
            "top_logprobs": [{self._text(top): finite(logprob) for top, logprob in each.tops} for each in tokens],
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        return spelled(self._tokenizer, token).decode(errors="replace")
