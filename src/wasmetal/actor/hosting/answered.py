"""Which messages with a key an actor has handled, and what it replied: so that none is handled twice."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Self

from wasmetal.actor.json_fields import array, check, hexadecimal, integer
from wasmetal.errors import AlreadyHandledError, GuestError

REPLY_BYTES = 256 << 10
"""Bytes of replies that are kept of one actor, the latest first."""
MOST_KEYS = 65_536
"""Keys that a snapshot may have."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A message with a key that was handled."""

    message: str
    """SHA-256 of the message."""
    nbytes: int
    """Of the reply."""
    reply: bytes | None
    """None if it is no longer kept."""


class Answered:
    """The answers to an actor's last messages with keys, by sender and key.

    It is part of the actor's snapshot, and so written in one step with what the messages have changed.
    """

    def __init__(self, most: int) -> None:
        """``most``: keys that are remembered."""
        self._most = most
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, name: str, message: str) -> bytes | None:
        """The reply that the message was given; None if it was not handled, as far as is remembered.

        Raises GuestError if its key was another message's, AlreadyHandledError if it was handled and the reply is
        no longer kept.
        """
        answer = self._answers.get(name)
        if answer is None:
            return None
        if answer.message != message:
            raise different()
        if answer.reply is None:
            raise AlreadyHandledError(
                f"the message with this key was handled already; its reply of {answer.nbytes} bytes is no longer kept"
            )
        return answer.reply

    def add(self, name: str, message: str, reply: bytes) -> None:
        """A message was handled. The oldest keys and replies are forgotten."""
        self._answers[name] = Answer(message, len(reply), reply)
        while len(self._answers) > self._most:
            self._answers.popitem(last=False)
        left = REPLY_BYTES
        for each, answer in reversed(list(self._answers.items())):
            left -= answer.nbytes
            if left < 0 and answer.reply is not None:
                self._answers[each] = Answer(answer.message, answer.nbytes, None)

    def to_json(self) -> list[Any]:
        """For :meth:`from_json`: the oldest first."""
        return [
            [name, each.message, each.nbytes, None if each.reply is None else base64.b64encode(each.reply).decode()]
            for name, each in self._answers.items()
        ]

    @classmethod
    def from_json(cls, what: str, value: object, most: int) -> Self:
        """From a snapshot. Raises SnapshotError if anything about it is wrong."""
        found = cls(most)
        for each in array(what, value, MOST_KEYS):
            check(what, isinstance(each, list) and len(each) == 4, each)
            name, message = (hexadecimal(f"a digest of {what}", digest, 32) for digest in each[:2])
            nbytes = integer(f"a reply's bytes of {what}", each[2], 0, 1 << 62)
            reply = None if each[3] is None else _decoded(what, each[3])
            check(f"a reply of {what}", reply is None or len(reply) == nbytes, nbytes)
            found._answers[name] = Answer(message, nbytes, reply)
        while len(found._answers) > most:
            found._answers.popitem(last=False)
        return found


def different() -> GuestError:
    """The error for a key that was used for another message."""
    return GuestError("this key was used for another message of the same sender: give each message a key of its own")


def name_of(sender: str, key: str) -> str:
    """What stands for a sender's key."""
    return hashlib.sha256(b"\0".join((sender.encode(), key.encode()))).hexdigest()


def digest_of(message: bytes) -> str:
    """What stands for a message."""
    return hashlib.sha256(message).hexdigest()


def _decoded(what: str, value: object) -> bytes:
    check(f"a reply of {what}", isinstance(value, str) and len(value) <= 2 * REPLY_BYTES, value)
    try:
        return base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError):
        check(f"a reply of {what}", False, value)
        raise AssertionError from None
