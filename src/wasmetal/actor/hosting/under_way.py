"""Messages with a key that have not ended: one that is sent again meanwhile gets the same reply."""

from __future__ import annotations

from threading import Lock

from wasmetal.actor.hosting.answered import different
from wasmetal.actor.hosting.reply import PendingReply
from wasmetal.actor.hosting.tasks import Message


class UnderWay:
    """The messages, by actor and key. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._messages: dict[tuple[str, str], Message] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: Message) -> PendingReply | None:
        """Add a message; or the reply of the one with its key that is there.

        Raises GuestError if that is another message.
        """
        if message.name is None:
            return None
        with self._lock:
            before = self._messages.setdefault((message.actor_id, message.name), message)
        if before is message:
            return None
        if before.digest != message.digest:
            raise different()
        return before.reply

    def remove(self, message: Message) -> None:
        """A message has ended, or was not taken."""
        if message.name is not None:
            with self._lock:
                if self._messages.get((message.actor_id, message.name)) is message:
                    del self._messages[message.actor_id, message.name]
