"""From a request's body to what guests are asked for."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wasmetal.errors import ModelError
from wasmetal.models.lm.grammar import Grammar
from wasmetal.models.lm.prompt import prompt_tokens
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import bad_request
from wasmetal.serve.protocol import Request, Sampling
from wasmetal.serve.schema import Generating, Message
from wasmetal.serve.tools.formats import format_of
from wasmetal.serve.tools.rendering import for_template
from wasmetal.serve.tools.schema import Tool

if TYPE_CHECKING:
    from wasmetal.models import Model

_U64 = 2**64 - 1


def requests_for(
    engine: Engine, model: Model, body: Generating, prompts: Sequence[Sequence[int]], param: str, most: int | None,
    logprobs: int | None, grammar: Grammar | None = None,
) -> list[Request]:  # fmt: skip
    """``body.n`` completions of each prompt, in order. ``param``: the prompt's field; ``most``: tokens that are wanted;
    ``grammar``: what each obeys.

    Raises ApiError.
    """
    n, limits = body.n or 1, engine.limits
    if n * len(prompts) > limits.choices:
        raise bad_request(f"{n * len(prompts)} completions; at most {limits.choices} are made for a request", "n")
    for prompt in prompts:
        if not prompt:
            raise bad_request("the prompt has no tokens", param)
        if len(prompt) > model.context_length:
            raise bad_request(
                f"the prompt has {len(prompt)} tokens; the model's context is {model.context_length}",
                param,
                "context_length_exceeded",
            )
        if max(prompt) >= model.vocab_size:
            raise bad_request(f"token {max(prompt)} is not in the vocabulary of {model.vocab_size}", param)
    wanted = [each for each in (most, limits.max_tokens, model.context_length) if each is not None]
    least = body.min_tokens or 0
    if most is not None and least > most:
        raise bad_request(f"min_tokens is {least}, and more than the {most} that there may be", "min_tokens")
    if least and grammar:
        raise bad_request("min_tokens is not supported together with a grammar, response_format or tools", "min_tokens")
    seed = secrets.randbits(64) if body.seed is None else body.seed
    return [
        Request(
            prompt,
            min(wanted),
            _sampling(model, body, (seed + index) & _U64),
            least,
            body.stops,
            logprobs,
            grammar and grammar.copy(),
            limits.piece_tokens,
        )
        for prompt in prompts
        for index in range(n)
    ]


def _sampling(model: Model, body: Generating, seed: int) -> Sampling:
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    if biases and max(biases) >= model.vocab_size:
        raise bad_request(f"token {max(biases)} is not in the vocabulary of {model.vocab_size}", "logit_bias")
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        biases=biases,
        seed=seed,
    )


async def chat_tokens(
    engine: Engine, model: Model, messages: Sequence[Message], tools: Sequence[Tool] = (), *, param: str = "messages"
) -> list[int]:
    """A conversation's tokens. ``tools``: those that the model is told of; ``param``: the field with the messages.

    Raises ApiError.
    """
    if len(messages) > engine.limits.messages:
        raise bad_request(f"{len(messages)} messages; at most {engine.limits.messages} are taken", param)

    def tokens() -> list[int]:
        template = model.chat_template
        plain: Sequence[Mapping[str, Any]] = [message.plain() for message in messages]
        known: Sequence[Mapping[str, Any]] | None = None
        if template and (tools or any(message.tool_calls or message.role == "tool" for message in messages)):
            told = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]
            plain, known = for_template(template, format_of(template), plain, told)
        return prompt_tokens(model.tokenizer, template, plain, known)

    try:
        return await asyncio.to_thread(tokens)
    except ModelError as error:
        raise bad_request(str(error), param) from None


async def text_tokens(model: Model, text: str, *, add_bos: bool | None = None) -> list[int]:
    """A text's tokens: what it spells out stays text. Raises ApiError."""
    try:
        return await asyncio.to_thread(model.tokenizer.encode, text, parse_special=False, add_bos=add_bos)
    except ModelError as error:
        raise bad_request(str(error), "prompt") from None
