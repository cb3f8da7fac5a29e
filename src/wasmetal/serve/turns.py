"""Turns by the names that clients use."""

from __future__ import annotations

from wasmetal.serve.conversations import Conversations
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import ApiError
from wasmetal.serve.turn import ConversationTurn, FreshTurn


def fresh_turn(engine: Engine, model: str, message: bytes, owner: str) -> FreshTurn:
    """A turn with a guest that is a model. Raises KeyError if there is none."""
    return FreshTurn(message, engine.guests[model], engine.limits, owner)


def conversation_turn(
    engine: Engine,
    model: str,
    message: bytes,
    owner: str,
    name: str,
    *,
    origin: str | None = None,
    keep: bool = True,
) -> ConversationTurn:
    """A turn of an owner's conversation. ``origin``: the one of which it is to be a fork. Raises ApiError."""
    conversations = kept(engine)
    with_whom = conversations.models.get(model) or engine.model(model)  # which says what is wrong
    assert with_whom.name in conversations.models
    actor_id = conversations.actor_id(owner, name)
    forked = None if origin is None else conversations.actor_id(owner, origin)
    return ConversationTurn(
        message, conversations, conversations.models[model], actor_id, engine.limits, owner, origin=forked, keep=keep
    )


def kept(engine: Engine) -> Conversations:
    """The conversations of a server that keeps them. Raises ApiError for another."""
    if engine.conversations is None:
        raise ApiError(400, "this server keeps no conversations: it was started without --actors")
    return engine.conversations
