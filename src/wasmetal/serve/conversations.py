"""Conversations that the server keeps: each is an actor, frozen when it is idle, and thawed by its next request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wasmetal.actor.hosting import ActorHost, ActorType
from wasmetal.actor.store.directory import DirectoryStore
from wasmetal.errors import SnapshotError, printable
from wasmetal.serve.documents import Documents, key_of
from wasmetal.serve.errors import ApiError
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.limits import ServerLimits


class Conversations:
    """By what an owner calls them: another owner's are other ones. Any thread may use it."""

    def __init__(self, folder: Path, models: Mapping[str, GuestModel], limits: ServerLimits) -> None:
        """``folder``: a store of actors, which is made if there is none. ``models``: what a conversation may be with.

        Raises SnapshotError if the folder is no store, and what ActorHost raises.
        """
        store = DirectoryStore(folder)
        self.models = models
        self._documents = Documents(folder / "documents", limits.stored)
        self._most = limits.conversations
        self._there: frozenset[str] = frozenset()
        """Actors that were there when the store was last asked."""
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        types = {
            name: ActorType(program=each.program, models=each.models, dirs=each.dirs, limits=each.limits(limits))
            for name, each in models.items()
        }
        self.host = ActorHost(
            store,
            types,
            resident=limits.resident,
            workers=limits.running,
            idle_seconds=limits.idle_seconds,
            message_bytes=4 * limits.body_bytes,  # as guests get it, it may be longer
            reply_bytes=limits.reply_bytes,
            timers=False,
        )

    @staticmethod
    def actor_id(owner: str, name: str) -> str:
        """The actor of a conversation."""
        return f"chat-{key_of(owner, name)}"

    @contextmanager
    def alone(self, actor_id: str) -> Iterator[None]:
        """One request at a time. Raises ApiError if there is another."""
        with self._lock:
            if actor_id in self._busy:
                raise busy()
            self._busy.add(actor_id)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(actor_id)

    def admit(self, actor_id: str) -> None:
        """Raise ApiError if it is a new conversation, and there are as many as may be."""
        if actor_id not in self._there:
            self._there = frozenset(self.host.actors())
            if actor_id not in self._there and len(self._there) >= self._most:
                raise ApiError(
                    507,
                    f"the server keeps no more than {self._most} conversations: go on with one of them, or have some "
                    "removed (wasmetal actor rm)",
                    code="conversations_full",
                    kind="server_error",
                )

    def remember(self, owner: str, name: str, document: dict[str, Any]) -> None:
        """Keep what clients may ask for again. The oldest goes, with its actor, if there are too many."""
        for key in self._documents.save(key_of(owner, name), document):
            self._drop(f"chat-{key}")

    def recall(self, owner: str, name: str) -> dict[str, Any] | None:
        """What was kept; None if there is nothing of that name."""
        key = key_of(owner, name)
        self._documents.touch(key)
        return self._documents.load(key)

    def forget(self, owner: str, name: str) -> None:
        """Remove it, and its actor if there is one. Raises ApiError if that has a request."""
        actor_id = self.actor_id(owner, name)
        with self.alone(actor_id):
            self._drop(actor_id)
            self._documents.delete(key_of(owner, name))

    def close(self) -> None:
        """Freeze all. Idempotent. Raises SnapshotError if one could not be frozen."""
        self.host.close()

    def _drop(self, actor_id: str) -> None:
        with suppress(SnapshotError):  # there is none
            self.host.delete(actor_id)


def unusable(why: str) -> ApiError:
    """What was stored cannot be gone on with, for example with another program or model than it began with."""
    return ApiError(409, f"the conversation cannot go on: {printable(why)}", code="conversation_unusable")


def busy() -> ApiError:
    """A conversation has one request at a time."""
    return ApiError(
        409,
        "the conversation is answering another request; wait for that to end",
        code="conversation_busy",
        headers={"Retry-After": "1"},
    )
