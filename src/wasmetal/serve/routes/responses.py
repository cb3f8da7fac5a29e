"""``/v1/responses`` and ``/v1/conversations``.

A response that is stored has an actor of its own, whose state is that after the answer: the next response forks it. One
of a conversation goes on with the conversation's.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wasmetal.serve.body import engine_of, read
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import ApiError, bad_request
from wasmetal.serve.generating import chat_tokens, requests_for
from wasmetal.serve.grammars import grammar_of_calls
from wasmetal.serve.guest_model import message
from wasmetal.serve.ids import new_id
from wasmetal.serve.response import ResponseShape
from wasmetal.serve.response_answer import ResponseAnswer
from wasmetal.serve.response_items import messages
from wasmetal.serve.response_schema import ConversationBody, InputMessage, ResponseBody
from wasmetal.serve.schema import Generating
from wasmetal.serve.tools.calling import calling
from wasmetal.serve.tools.formats import format_of
from wasmetal.serve.turn import Own
from wasmetal.serve.turns import conversation_turn, fresh_turn, kept, named_conversation


async def create(request: Request) -> ResponseAnswer:
    """Answer."""
    engine = engine_of(request)
    engine.admission.check()  # before the body is read, and again after
    body = await read(request, ResponseBody)
    owner = request.scope["state"]["owner"]
    if len(body.input) > engine.limits.messages:
        raise bad_request(f"{len(body.input)} messages; at most {engine.limits.messages} are taken", "input")
    named = named_conversation(request)
    if sum(each is not None for each in (named, body.conversation, body.previous_response_id)) > 1:
        raise bad_request("a response goes on with one conversation, or with another response", "previous_response_id")
    # A guest, which is not told of tools, speaks for what is kept.
    stored = engine.conversations is not None and not body.has_tools if body.store is None else body.store
    if stored or named or body.conversation or body.previous_response_id:
        return await _kept_answer(engine, body, owner, stored, named)
    if body.truncation == "auto":
        raise bad_request("only what the server keeps is truncated; this is not", "truncation")
    if body.model in engine.guests:
        _check_no_tools(body)
        turn = fresh_turn(engine, body.model, _message(engine, body, continues=False), owner, "input")
        shape = ResponseShape.of(body, stored=False, truncation="disabled")
        return ResponseAnswer(engine, turn.model, turn, shape, stream=bool(body.stream))
    return await _plain_answer(engine, body)


async def retrieve(request: Request) -> Response:
    """A response that is stored."""
    return JSONResponse(await _recall(request, "resp"))


async def delete(request: Request) -> Response:
    """Delete it."""
    return JSONResponse({"id": await _forget(request, "resp"), "object": "response", "deleted": True})


async def create_conversation(request: Request) -> Response:
    """A new conversation, without messages."""
    engine, body = engine_of(request), await read(request, ConversationBody)
    document: dict[str, Any] = {
        "id": new_id("conv"),
        "object": "conversation",
        "created_at": int(time.time()),
        "metadata": body.metadata or {},
    }
    owner = request.scope["state"]["owner"]
    await asyncio.to_thread(kept(engine).remember, owner, document["id"], document)
    return JSONResponse(document)


async def retrieve_conversation(request: Request) -> Response:
    """A conversation."""
    return JSONResponse(await _recall(request, "conv"))


async def delete_conversation(request: Request) -> Response:
    """Delete it."""
    return JSONResponse({"id": await _forget(request, "conv"), "object": "conversation.deleted", "deleted": True})


async def _plain_answer(engine: Engine, body: ResponseBody) -> ResponseAnswer:
    """By a model itself, of which nothing is kept."""
    model = engine.model(body.model)
    form = format_of(model.chat_template) if model.chat_template else None
    tools = [each.for_chat() for each in body.tools or ()]
    calls = calling(form, tools, body.choice_for_chat, body.parallel_tool_calls)
    said = messages(body.instructions, body.input)
    prompt = await chat_tokens(engine, model, said, tools if calls else (), param="input")
    grammar = await grammar_of_calls(model, calls) if calls else None
    settings = Generating(model=body.model, temperature=body.temperature, top_p=body.top_p)
    (wanted,) = requests_for(engine, model, settings, [prompt], "input", body.max_output_tokens, None, grammar)
    shape = ResponseShape.of(body, stored=False, truncation="disabled", prompt=len(prompt), calling=calls)
    return ResponseAnswer(engine, model, wanted, shape, stream=bool(body.stream))


async def _kept_answer(
    engine: Engine, body: ResponseBody, owner: str, stored: bool, named: str | None
) -> ResponseAnswer:
    """By an actor: the conversation's, which its name or the body's id says, or one that is the response's own."""
    conversations = kept(engine)
    _check_no_tools(body)
    if body.truncation == "disabled":
        raise bad_request("what no longer fits is forgotten where the server keeps a conversation", "truncation")
    shape = ResponseShape.of(body, stored=stored, truncation="auto")
    own = None
    if named is not None:
        name = named
        shape.opening["conversation"] = {"id": named.removeprefix("header ")}
    elif body.conversation:
        name = body.conversation.id
        await _find(engine, owner, name, "conversation")
    else:
        name, before = shape.id, body.previous_response_id
        if before is not None:
            found = await _find(engine, owner, before, "previous_response_id")
            if found["conversation"]:
                raise bad_request(
                    f"response {before!r} belongs to a conversation: go on with that", "previous_response_id"
                )
        own = Own(None if before is None else conversations.actor_id(owner, before), keep=stored)

    def remember(text: str, end: Any) -> None:
        conversations.remember(owner, shape.id, shape.said(text, end))

    told = _message(engine, body, continues=True)
    turn = conversation_turn(engine, body.model, told, owner, name, "input", own, remember if stored else None)
    return ResponseAnswer(engine, turn.model, turn, shape, stream=bool(body.stream))


def _check_no_tools(body: ResponseBody) -> None:
    """Raise ApiError for what guests are not told of."""
    if body.has_tools:
        raise bad_request(
            "tools, and calls of them, are not supported with guests, nor where the server keeps the conversation: "
            'give all of it as input, to a model, without "store": true',
            "tools" if body.tools else "input",
            "unsupported_value",
        )


def _message(engine: Engine, body: ResponseBody, *, continues: bool) -> bytes:
    """The request as guests get it. Instructions hold for one response: an empty message takes those before away."""
    system = [{"role": "system", "content": body.instructions or ""}]
    most = [each for each in (body.max_output_tokens, engine.limits.max_tokens) if each is not None]
    return message(
        (system if continues or body.instructions else [])
        + [each.plain() for each in body.input if isinstance(each, InputMessage)],
        continues=continues,
        max_tokens=min(most, default=None),
        temperature=body.temperature,
        top_p=body.top_p,
    )


async def _find(engine: Engine, owner: str, name: str, param: str) -> dict[str, Any]:
    """What is kept of a response or a conversation. Raises ApiError if there is none, or it is another owner's."""
    kind = "conv" if param == "conversation" else "resp"
    found = await asyncio.to_thread(kept(engine).recall, owner, name) if name.startswith(f"{kind}_") else None
    if found is None:
        what = "conversation" if kind == "conv" else "response"
        raise ApiError(404, f"there is no {what} {name[:100]!r}", param=param, code=f"{what}_not_found")
    return found


async def _recall(request: Request, kind: str) -> dict[str, Any]:
    param = "conversation" if kind == "conv" else "response_id"
    return await _find(engine_of(request), request.scope["state"]["owner"], request.path_params["id"], param)


async def _forget(request: Request, kind: str) -> str:
    found = await _recall(request, kind)
    owner = request.scope["state"]["owner"]
    await asyncio.to_thread(kept(engine_of(request)).forget, owner, found["id"])
    return str(found["id"])
