"""Turns by the names that clients use."""

from __future__ import annotations

from starlette.requests import Request

from wasmetal.serve.conversations import Conversations
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import ApiError, bad_request
from wasmetal.serve.turn import ConversationTurn, FreshTurn, Own, Remember

ACTOR = "X-Wasmetal-Actor"
"""The header that names a conversation."""
_MOST_NAME = 256
"""Characters of that name."""


def named_conversation(request: Request) -> str | None:
    """What its owner calls the conversation that a request names in its header. Raises ApiError."""
    name = request.headers.get(ACTOR)
    if name is None:
        return None
    if not 0 < len(name) <= _MOST_NAME:
        raise ApiError(400, f"the header {ACTOR} is a name of 1 to {_MOST_NAME} characters")
    return f"header {name}"  # which no id of a conversation is


def fresh_turn(engine: Engine, model: str, message: bytes, owner: str, param: str) -> FreshTurn:
    """A turn with a guest that is a model. ``param``: the field of the request that has the messages."""
    return FreshTurn(message, engine.guests[model], engine.limits, owner, param)


def conversation_turn(
    engine: Engine,
    model: str,
    message: bytes,
    owner: str,
    name: str,
    param: str,
    own: Own | None = None,
    remember: Remember | None = None,
) -> ConversationTurn:
    """A turn of the conversation that an owner calls so; the rest as for ConversationTurn. Raises ApiError."""
    conversations = kept(engine)
    if model not in conversations.models:
        engine.model(model)  # raises what is wrong with it, or it is one that may be unloaded
        raise bad_request(
            f'{model} is loaded when it is asked for: conversations, and responses without "store": false, are with '
            "models that are loaded when the server starts",
            "model",
        )
    return ConversationTurn(
        message,
        conversations.models[model],
        engine.limits,
        owner,
        param,
        conversations,
        conversations.actor_id(owner, name),
        own,
        remember,
    )


def kept(engine: Engine) -> Conversations:
    """The conversations of a server that keeps them. Raises ApiError for another."""
    if engine.conversations is None:
        raise ApiError(400, "this server keeps no conversations and responses: it was started without --actors")
    return engine.conversations
