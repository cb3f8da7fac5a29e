"""What waits for an actor's turn: messages, and whatever else is done with an actor in its order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from wasmetal.actor.hosting.answered import digest_of, name_of
from wasmetal.actor.hosting.reply import PendingReply

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Message:
    """A message that somebody has sent."""

    actor_id: str
    data: bytes
    sender: str
    name: str | None
    """Of its key; None if it has none."""
    digest: str
    """Of the message; empty if it has no key."""
    kind: str | None
    """The type that the actor is to have."""
    create: bool
    handle: Callable[[Message], None]
    ended: Callable[[Message], None]
    reply: PendingReply = field(default_factory=PendingReply)

    @classmethod
    def of(
        cls,
        actor_id: str,
        data: bytes,
        sender: str,
        key: str | None,
        kind: str | None,
        create: bool,
        handle: Callable[[Message], None],
        ended: Callable[[Message], None],
    ) -> Message:
        """``handle`` handles it, ``ended`` is called once it was handled or has failed, before its sender is told."""
        name, digest = (None, "") if key is None else (name_of(sender, key), digest_of(data))
        return cls(actor_id, data, sender, name, digest, kind, create, handle, ended)

    @property
    def nbytes(self) -> int:
        """See :class:`Task`."""
        return len(self.data) + len(self.sender)

    def run(self) -> None:
        """See :class:`Task`."""
        try:
            self.handle(self)
        except BaseException as error:
            self.fail(error)
        else:
            self.ended(self)
            self.reply.finish()

    def fail(self, error: BaseException) -> None:
        """See :class:`Task`."""
        self.ended(self)
        self.reply.finish(error)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """Something else, whose result somebody waits for."""

    function: Callable[[], T]
    result: Future[T] = field(default_factory=Future)
    nbytes: int = 0

    def run(self) -> None:
        """See :class:`Task`."""
        try:
            self.result.set_result(self.function())
        except BaseException as error:
            self.result.set_exception(error)

    def fail(self, error: BaseException) -> None:
        """See :class:`Task`."""
        if not self.result.done():
            self.result.set_exception(error)


@dataclass(frozen=True, slots=True)
class Wake:
    """The timer of an actor is due."""

    function: Callable[[], None]
    nbytes: int = 0

    def run(self) -> None:
        """See :class:`Task`."""
        self.function()

    def fail(self, error: BaseException) -> None:
        """Nobody waits for it."""
