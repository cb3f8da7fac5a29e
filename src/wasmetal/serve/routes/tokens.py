"""``/tokenize`` and ``/detokenize``, in the shape that vLLM gave them."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wasmetal.errors import ModelError
from wasmetal.serve.body import engine_of, read
from wasmetal.serve.errors import bad_request
from wasmetal.serve.generating import chat_tokens, text_tokens
from wasmetal.serve.schema import DetokenizeBody, TokenizeBody


async def tokenize(request: Request) -> Response:
    """A text, or a conversation, as tokens."""
    engine, body = engine_of(request), await read(request, TokenizeBody)
    model = engine.model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either a prompt or messages", "prompt")
    if body.prompt is not None:
        ids = await text_tokens(model, body.prompt, add_bos=False if body.add_special_tokens is False else None)
    else:
        ids = await chat_tokens(engine, model, body.messages or [])
    return JSONResponse({"count": len(ids), "max_model_len": model.context_length, "tokens": ids})


async def detokenize(request: Request) -> Response:
    """Tokens as a text."""
    engine, body = engine_of(request), await read(request, DetokenizeBody)
    model = engine.model(body.model)
    try:
        text = await asyncio.to_thread(model.tokenizer.decode, body.tokens)
    except ModelError as error:
        raise bad_request(str(error), "tokens") from None
    return JSONResponse({"prompt": text})
