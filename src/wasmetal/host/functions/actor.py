"""The interface ``wasmetal_actor``. ``wasmetal.h`` says what each function means."""

# ruff: noqa: D102

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wasmetal.host import abi
from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.functions.output import Output
from wasmetal.host.randomness import RandomStream
from wasmetal.host.view import GuestMemory

MAX_PIECE = 1 << 18
"""Bytes that a guest may reply, or ask for at random, in one call."""
_MAX_DELAY = 1 << 62


@dataclass(frozen=True, slots=True)
class Message:
    """A message that an actor handles."""

    data: bytes
    sender: str
    kind: abi.MessageKind
    reply: Callable[[bytes], object]
    """Called with the pieces of the reply, on the guest's thread."""


class Mailbox:
    """What an actor's guest knows of the world outside. Each public method is a host function."""

    def __init__(self, name: str, random: RandomStream) -> None:
        self.name = name
        """The actor's own."""
        self.random = random
        self.due: int | None = None
        """When the timer is due, in nanoseconds since 1970; None if it is not set."""
        self.message: Message | None = None
        """The message that is being handled."""

    def message_describe(self, memory: GuestMemory, out: int) -> None:
        record = memory.array(out, 1, abi.MESSAGE_INFO)
        message = self._handled()
        record[0] = np.zeros((), abi.MESSAGE_INFO)
        record["kind"], record["length"] = message.kind, len(message.data)

    def message_read(self, memory: GuestMemory, out: int, cap: int, needed: int) -> None:
        output = Output(memory, out, cap, needed, np.uint8)
        output.give_bytes(self._handled().data)

    def message_sender(self, memory: GuestMemory, out: int, cap: int, needed: int) -> None:
        output = Output(memory, out, cap, needed, np.uint8)
        output.give_bytes(self._handled().sender.encode())

    def reply_write(self, memory: GuestMemory, ptr: int, nbytes: int) -> None:
        data = memory.array(ptr, nbytes)
        message = self._handled()
        _check_piece(nbytes)
        if nbytes:
            message.reply(data.tobytes())

    def actor_id(self, memory: GuestMemory, out: int, cap: int, needed: int) -> None:
        Output(memory, out, cap, needed, np.uint8).give_bytes(self.name.encode())

    def timer_set(self, memory: GuestMemory, delay_ns: int) -> None:
        if delay_ns == abi.FOREVER:
            self.due = None
        elif delay_ns > _MAX_DELAY:
            raise Refusal(Errno.INVAL, f"a timer of {delay_ns} ns; at most {_MAX_DELAY} are possible")
        else:
            self.due = time.time_ns() + delay_ns

    def random_fill(self, memory: GuestMemory, out: int, nbytes: int) -> None:
        room = memory.array(out, nbytes)
        _check_piece(nbytes)
        room[:] = np.frombuffer(self.random(nbytes), np.uint8)

    def _handled(self) -> Message:
        if self.message is None:
            raise Refusal(Errno.INVAL, "no message is being handled")
        return self.message


def _refuse(*_: object) -> None:
    raise Refusal(Errno.NOTSUP, "the guest is not run as an actor")


class NoMailbox:
    """The interface of a guest that is no actor: every function is refused."""

    message_describe = message_read = message_sender = reply_write = staticmethod(_refuse)
    actor_id = timer_set = random_fill = staticmethod(_refuse)


def _check_piece(nbytes: int) -> None:
    if nbytes > MAX_PIECE:
        raise Refusal(Errno.TOOBIG, f"{nbytes} bytes; at most {MAX_PIECE} are taken or given in one call")
