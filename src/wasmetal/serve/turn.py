"""One request that a guest answers as an actor: a message to it, on the thread that waits for the reply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from wasmetal.actor.actor import Actor
from wasmetal.actor.hosting.actor_type import WrongTypeError
from wasmetal.actor.store import ActorHeldError
from wasmetal.counters import Counters
from wasmetal.errors import GuestError, WasmetalError
from wasmetal.host.tokens import TokenCounts
from wasmetal.serve.conversations import Conversations, busy
from wasmetal.serve.errors import bad_request
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.guest_reply import GuestReply
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.protocol import End, Token

if TYPE_CHECKING:
    from wasmetal.actor.hosting.reply import PendingReply

_MOST_ERRORS = 500
"""Bytes that are kept of what a guest writes to standard error."""


class Turn(ABC):
    """It can be run once, and stopped at any time, as a Completion can."""

    prompt: tuple[int, ...] = ()
    """The host does not make the prompt."""
    logprobs: int | None = None

    def __init__(self, message: bytes, model: GuestModel, limits: ServerLimits) -> None:
        self.model = model
        self.counters, self.token_counts = Counters(), TokenCounts()
        """What it has cost, once it has ended."""
        self._message = message
        self._reply_bytes = limits.reply_bytes
        self._stopped = False

    def run(self, emit: Callable[[Token | End], object]) -> None:
        """Run it to its end; ``emit`` gets pieces of the text. Raises ApiError if the guest refuses, WasmetalError if
        it fails, or is stopped."""
        reply, left = GuestReply(), self._reply_bytes

        def take(piece: bytes) -> None:
            nonlocal left
            left -= len(piece)
            if left < 0:
                raise GuestError(f"limit reached: a reply of {self._reply_bytes} bytes")
            if text := reply.feed(piece):
                emit(Token(0, text, 0.0))

        try:
            self._run(take)
        except WasmetalError:
            reply.refuse()
            raise
        counts = self.token_counts
        emit(End(reply.reason(), counts.chosen, counts.cached, counts.prompt))

    @abstractmethod
    def stop(self) -> None:
        """Stop it, from any thread."""

    @abstractmethod
    def _run(self, take: Callable[[bytes], object]) -> None:
        """Run it; ``take`` gets the pieces of the reply."""


class FreshTurn(Turn):
    """Of a guest that is made for it, and gone afterwards."""

    def __init__(self, message: bytes, model: GuestModel, limits: ServerLimits, owner: str) -> None:
        super().__init__(message, model, limits)
        self._limits, self._owner = model.limits(limits), owner
        self._actor: Actor | None = None
        self._errors = b""

    def stop(self) -> None:
        """See Turn."""
        self._stopped = True
        if actor := self._actor:
            actor.stop()

    def _run(self, take: Callable[[bytes], object]) -> None:
        model = self.model
        device = next((each.device for each in model.models.values()), None)
        try:
            with Actor(
                model.program,
                device=device,
                models=model.models,
                dirs=model.dirs,
                limits=self._limits,
                stderr=self._add_error,
            ) as actor:
                self._actor = actor
                if self._stopped:  # when there was no actor yet
                    actor.stop()
                try:
                    _pass_on(actor.send(self._message, self._owner), take)
                finally:
                    self._actor = None
                    self.counters, self.token_counts = actor.counters, actor.token_counts
        except GuestError as error:
            lines = self._errors.decode(errors="replace").splitlines()
            raise GuestError(f"{error}: {lines[-1]}" if lines else str(error)) from None

    def _add_error(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-_MOST_ERRORS:]


class ConversationTurn(Turn):
    """Of a conversation's actor. If it fails or is stopped, the conversation stays as it was."""

    def __init__(
        self,
        message: bytes,
        conversations: Conversations,
        model: GuestModel,
        actor_id: str,
        limits: ServerLimits,
        owner: str,
        *,
        origin: str | None = None,
        keep: bool = True,
    ) -> None:
        """``origin``: the actor of which this one is to be a fork.
        ``keep``: whether the actor is kept once it has replied."""
        super().__init__(message, model, limits)
        self._conversations, self._host, self._actor_id = conversations, conversations.host, actor_id
        self._owner, self._origin, self._keep = owner, origin, keep
        self._reply: PendingReply | None = None

    def stop(self) -> None:
        """See Turn."""
        self._stopped = True
        if reply := self._reply:
            reply.cancel()

    def _run(self, take: Callable[[bytes], object]) -> None:
        with self._conversations.alone(self._actor_id):
            ended = False
            try:
                if self._origin is not None:
                    self._host.fork(self._origin, self._actor_id)
                self._send(take)
                ended = True
            except WrongTypeError as error:
                raise bad_request(str(error).replace("actor", "conversation"), "model") from None
            except ActorHeldError:
                raise busy() from None
            finally:
                if (self._origin is not None and not ended) or not self._keep:
                    with suppress(WasmetalError):  # there is none
                        self._host.delete(self._actor_id)

    def _send(self, take: Callable[[bytes], object]) -> None:
        reply = self._reply = self._host.send(self._actor_id, self._message, sender=self._owner, type=self.model.name)
        if self._stopped:  # before it was sent
            reply.cancel()
        try:
            _pass_on(reply, take)
        finally:
            reply.cancel()  # unless it has ended
            reply.wait()
            self.counters, self.token_counts = reply.counters, reply.token_counts


def _pass_on(pieces: Iterable[bytes], take: Callable[[bytes], object]) -> None:
    for piece in pieces:
        take(piece)
