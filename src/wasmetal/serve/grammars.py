"""The grammar that a request's answers obey."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from wasmetal.errors import ModelError
from wasmetal.models.lm.grammar import MAX_GRAMMAR, Grammar, gbnf_or_lark, json_schema
from wasmetal.serve.errors import bad_request
from wasmetal.serve.schema import ChatBody, Generating
from wasmetal.serve.tools.calling import Calling

if TYPE_CHECKING:
    from wasmetal.models import Model


async def chat_grammar(model: Model, body: ChatBody, calling: Calling | None) -> Grammar | None:
    """Of a chat's answers; None: they are any text. ``calling``: of its tools. Raises ApiError."""
    wanted = body.response_format.wanted if body.response_format else None
    if body.grammar is not None and (wanted is not None or calling):
        raise bad_request("grammar is not supported together with response_format or tools", "grammar")
    if body.stops and (wanted is not None or (calling and calling.required)):
        raise bad_request("what a stop string cuts off is no JSON; give no stop strings", "stop")
    if wanted is not None and len(json.dumps(wanted)) > MAX_GRAMMAR:
        raise bad_request(f"the schema has more than {MAX_GRAMMAR} characters", "response_format")
    if calling:
        return await _made(model, lambda: calling.grammar(model.tokenizer, wanted), "tools")
    if wanted is not None:
        return await _made(model, lambda: json_schema(wanted), "response_format")
    return await text_grammar(model, body)


async def grammar_of_calls(model: Model, calling: Calling) -> Grammar:
    """Of texts with calls of tools. Raises ApiError."""
    return await _made(model, lambda: calling.grammar(model.tokenizer, None), "tools")


async def text_grammar(model: Model, body: Generating) -> Grammar | None:
    """That of the field ``grammar``. Raises ApiError."""
    if (text := body.grammar) is None:
        return None
    if len(text) > MAX_GRAMMAR:
        raise bad_request(f"the grammar has more than {MAX_GRAMMAR} characters", "grammar")
    return await _made(model, lambda: gbnf_or_lark(text), "grammar")


async def _made(model: Model, source: Callable[[], str], param: str) -> Grammar:
    try:
        return await asyncio.to_thread(lambda: Grammar(model.tokenizer, source()))
    except ModelError as error:
        raise bad_request(str(error), param) from None
