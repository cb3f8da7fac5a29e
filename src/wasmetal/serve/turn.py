"""One request that a guest answers as an actor: a message to it, on the thread that waits for the reply."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wasmetal.actor.actor import Actor
from wasmetal.actor.hosting.actor_type import WrongTypeError
from wasmetal.actor.store import ActorHeldError
from wasmetal.counters import Counters
from wasmetal.errors import GuestError, SnapshotError, WasmetalError
from wasmetal.host.tokens import TokenCounts
from wasmetal.serve.conversations import Conversations, busy, unusable
from wasmetal.serve.errors import bad_request
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.guest_reply import GuestReply
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.protocol import End, Token

if TYPE_CHECKING:
    from wasmetal.actor.hosting.reply import PendingReply

_MOST_ERRORS = 500
"""Bytes that are kept of what a guest writes to standard error."""

Remember = Callable[[str, End], object]
"""Called with an answer's text and its end, before anybody is told that it has ended."""


class Turn(ABC):
    """It can be run once, and stopped at any time, as a Completion can."""

    prompt: tuple[int, ...] = ()
    """The host does not make the prompt."""
    logprobs: int | None = None

    def __init__(self, message: bytes, model: GuestModel, limits: ServerLimits, owner: str, param: str) -> None:
        """``owner``: whose request it is. ``param``: the field of the request that has the messages."""
        self.model, self.model_name = model, model.name
        self.owner = owner
        self.begun = 0.0
        """When it began to run, by ``time.monotonic``."""
        self.counters, self.token_counts = Counters(), TokenCounts()
        """What it has cost, once it has ended."""
        self._message = message
        self._phase, self._ended = "waiting", 0.0
        self._reply_bytes = self._left = limits.reply_bytes
        self._reader = GuestReply(param)
        self._stopped = False

    def run(self, emit: Callable[[list[Token]], object]) -> End:
        """Run it to its end; ``emit`` gets pieces of the text. Raises ApiError if the guest refuses, WasmetalError if
        it fails, or is stopped."""
        self.begun, self._phase = time.monotonic(), "prompt"

        def piece(text: bytes) -> None:
            self._phase = "decoding"
            emit([Token(0, text, 0.0)])

        try:
            return self._run(piece)
        except WasmetalError:
            self._reader.refuse()
            raise
        finally:
            self._ended, self._phase = time.monotonic(), "stopped" if self._stopped else "ended"

    @property
    def text(self) -> str:
        """What it is asked, as the guest gets it."""
        return self._message.decode()

    def cost(self) -> Counters:
        """What it has cost, as far as that is known. From any thread, as :meth:`state`."""
        return self.counters

    def state(self) -> dict[str, Any]:
        """What it is doing, and what it has used, for JSON: see Completion. Tokens are known once it has ended."""
        cost, counts = self.cost(), self.token_counts
        return {
            "model": self.model_name,
            "state": self._phase,
            "prompt_tokens": counts.prompt,
            "tokens": counts.chosen,
            "seconds": round((self._ended or time.monotonic()) - self.begun, 3) if self.begun else 0.0,
            "tokens_per_second": None,
            "device_seconds": round(cost.device_seconds, 4),
            "bytes_copied": cost.bytes_copied,
            "bytes_shared": cost.bytes_shared,
            "memory": None,
        }

    @abstractmethod
    def stop(self) -> None:
        """Stop it, from any thread."""

    @abstractmethod
    def _run(self, emit: Callable[[bytes], object]) -> End:
        """Run it; ``emit`` gets pieces of the text."""

    def _text(self, piece: bytes) -> bytes:
        """The text in a piece of the reply."""
        self._left -= len(piece)
        if self._left < 0:
            raise GuestError(f"limit reached: a reply of {self._reply_bytes} bytes")
        return self._reader.feed(piece)

    def _end(self) -> End:
        counts = self.token_counts
        return End(self._reader.reason(), counts.chosen, counts.cached, counts.prompt)


class FreshTurn(Turn):
    """Of a guest that is made for it, and gone afterwards."""

    def __init__(self, message: bytes, model: GuestModel, limits: ServerLimits, owner: str, param: str) -> None:
        super().__init__(message, model, limits, owner, param)
        self._limits = model.limits(limits)
        self._actor: Actor | None = None
        self._errors = b""

    def stop(self) -> None:
        """See Turn."""
        self._stopped = True
        if actor := self._actor:
            actor.stop()

    def _run(self, emit: Callable[[bytes], object]) -> End:
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
                    for piece in actor.send(self._message, self.owner):
                        if text := self._text(piece):
                            emit(text)
                finally:
                    self._actor = None
                    self.counters, self.token_counts = actor.counters, actor.token_counts
        except GuestError as error:
            lines = self._errors.decode(errors="replace").splitlines()
            raise GuestError(f"{error}: {lines[-1]}" if lines else str(error)) from None
        return self._end()

    def _add_error(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-_MOST_ERRORS:]


@dataclass(frozen=True, slots=True)
class Own:
    """An actor that is made for one turn, and gone if that fails."""

    origin: str | None = None
    """The actor of which it is to be a fork."""
    keep: bool = True
    """Whether it is kept afterwards."""


class ConversationTurn(Turn):
    """Of a conversation's actor. If it fails or is stopped, the conversation stays as it was."""

    def __init__(
        self,
        message: bytes,
        model: GuestModel,
        limits: ServerLimits,
        owner: str,
        param: str,
        conversations: Conversations,
        actor_id: str,
        own: Own | None = None,
        remember: Remember | None = None,
    ) -> None:
        """``own``: if the actor is to be this turn's own."""
        super().__init__(message, model, limits, owner, param)
        self._conversations, self._actor_id, self._own, self._remember = conversations, actor_id, own, remember
        self._reply: PendingReply | None = None

    def stop(self) -> None:
        """See Turn."""
        self._stopped = True
        if reply := self._reply:
            reply.cancel()

    def _run(self, emit: Callable[[bytes], object]) -> End:
        host, own, kept = self._conversations.host, self._own, False
        with self._conversations.alone(self._actor_id):
            try:
                if own is None:
                    self._conversations.admit(self._actor_id)
                elif own.origin is not None:
                    host.fork(own.origin, self._actor_id)
                text = self._send(emit)
                end = self._end()
                if self._remember:
                    self._remember(text, end)
                kept = own is None or own.keep
            except WrongTypeError as error:
                raise bad_request(str(error).replace("actor", "conversation"), "model") from None
            except ActorHeldError:
                raise busy() from None
            except SnapshotError as error:
                if isinstance(error.__cause__, OSError):  # the disk's
                    raise
                raise unusable(str(error)) from None
            finally:
                if own and not kept:
                    with suppress(WasmetalError):  # there is none
                        host.delete(self._actor_id)
        return end

    def _send(self, emit: Callable[[bytes], object]) -> str:
        """Send the message; return the whole text."""
        said = bytearray()
        host = self._conversations.host
        reply = self._reply = host.send(self._actor_id, self._message, sender=self.owner, type=self.model.name)
        if self._stopped:  # before it was sent
            reply.cancel()
        try:
            for piece in reply:
                if text := self._text(piece):
                    said += text
                    emit(text)
        finally:
            reply.cancel()  # unless it has ended
            reply.wait()
            self.counters, self.token_counts = reply.counters, reply.token_counts
        return said.decode(errors="replace")
