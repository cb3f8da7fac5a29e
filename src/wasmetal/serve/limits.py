"""What clients may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass

PIECE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of one server."""

    running: int = 8
    """Completions at a time; each has a thread, a guest and its share of the KV cache."""
    waiting: int = 64
    """Completions that may wait for their turn; others get status 429."""
    connections: int = 256
    """Connections at a time; others get status 503."""
    body_bytes: int = 4 << 20
    """Bytes of a request; larger ones get status 413."""
    messages: int = 2048
    """Messages of a conversation."""
    inputs: int = 2048
    """Texts of one request for embeddings, prompts of one for completions."""
    choices: int = 16
    """Completions of one request."""
    max_tokens: int | None = None
    """Tokens of a completion; those who ask for more get so many."""
    piece_tokens: int = PIECE_TOKENS
    """Tokens of a completion that come together, at most, where the device chooses one after another. With 1, a client
    that goes away stops its completion within a token; with more, there are more tokens a second."""
    memory_bytes: int = 256 << 20
    """Linear memory of a completion's guest."""
    resident: int = 8
    """Conversations that are awake; others are frozen."""
    idle_seconds: float = 300.0
    """Time after which a conversation is frozen that has no request."""
    stored: int = 1000
    """Responses, and conversations of their own, that are stored; the oldest go."""
    conversations: int = 10_000
    """Conversations in the store, those included: from then on one that a header names anew gets status 507."""
    reply_bytes: int = 16 << 20
    """Bytes of a guest's reply, where a guest is the model."""
    disk_bytes: int = 64 << 20
    """Bytes that such a guest may add to files of folders that it was granted for writing."""
    seconds: float = 600.0
    """Time that a completion may take."""
    header_seconds: float = 10.0
    """Time that a client may take for a request's head, also from when it connects,"""
    body_seconds: float = 30.0
    """for its body,"""
    send_seconds: float = 30.0
    """and to take each piece of an answer."""
    drain_seconds: float = 30.0
    """Time that running requests get to finish when the server is told to end."""
