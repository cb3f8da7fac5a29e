"""A conversation in the chat guest, turn by turn.

The guest keeps the conversation, applies the template and chooses the tokens; ``guests/chat/main.c`` documents the
functions that it exports for this. Between two turns no code of the guest runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wasmetal import packaged
from wasmetal.closing import Closing
from wasmetal.device import Device
from wasmetal.errors import GuestError
from wasmetal.host.guest import Guest
from wasmetal.host.wasi import Output

if TYPE_CHECKING:
    from wasmetal.models import Model

ROLES = ("system", "user", "assistant")
_SLICE_MS = 50
"""Milliseconds, or up to twice as many, that the guest decodes before the host gets a chance to stop the answer."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a conversation has cost until now."""

    context_tokens: int
    """Tokens in the session."""
    context_length: int
    """Tokens that the session can hold."""
    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of the drafted tokens."""


class Conversation(Closing):
    """A chat guest that stays open between questions. Use it as a context manager, or call :meth:`close`.

    ``arguments`` are those of the guest's command line; with ``--draft-model draft`` among them, ``draft_model`` makes
    the drafts. ``stdout`` receives answers as they are generated, ``stderr`` the guest's error messages, one line each;
    both are called on the guest's thread. Raises what :class:`Guest` does.
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        draft_model: str | Path | Model | None = None,
        device: str | Device | None = None,
        arguments: Sequence[str] = (),
        stdout: Output | None = None,
        stderr: Output | None = None,
    ) -> None:
        self.guest = Guest(
            packaged.guest("chat"),
            device=device,
            models={"default": model} if draft_model is None else {"default": model, "draft": draft_model},
            args=arguments,
            trusted=True,  # wasmetal's own guest
            stdout=stdout,
            stderr=stderr,
        )

    def open(self) -> int:
        """Start the guest. Returns its exit code: 0, 1 if the model cannot be used, 2 if the arguments are wrong."""
        return int(self.guest.call("chat_open"))

    def ask(self, text: str) -> bool:
        """Ask a question; :meth:`go_on` then writes the answer. False if the guest refuses."""
        return self._give("chat_ask", text)

    def go_on(self) -> bool:
        """Write some more of the answer. False once it has ended."""
        return bool(self.guest.call("chat_continue", _SLICE_MS))

    def end(self) -> None:
        """Stop the answer; the conversation keeps what there is of it."""
        self.guest.call("chat_end")

    def set_system(self, text: str) -> bool:
        """Replace the system message, or drop it if the text is empty. False if the guest refuses."""
        return self._give("chat_system", text)

    def reset(self) -> None:
        """Forget all messages but the system message."""
        self.guest.call("chat_forget", 0)

    def messages(self) -> list[dict[str, str]]:
        """The conversation: a "role" (one of ROLES) and a "content" for each message."""
        messages: list[dict[str, str]] = json.loads(self._take("chat_messages"))
        return messages

    def load(self, messages: Sequence[Mapping[str, str]]) -> bool:
        """Replace the conversation with these messages. False if the guest refuses one."""
        self.guest.call("chat_forget", 1)
        return all(self._give("chat_add", each["content"], ROLES.index(each["role"])) for each in messages)

    def stats(self) -> Stats:
        """What the conversation has cost until now."""
        return Stats(**json.loads(self._take("chat_stats")))

    def close(self) -> None:
        """End the guest and release what it held. Idempotent."""
        self.guest.close()

    def _give(self, function: str, text: str, *before: int) -> bool:
        data = text.encode(errors="replace")
        self.guest.write(self._address(len(data)), data)
        return bool(self.guest.call(function, *before, len(data)))

    def _take(self, function: str) -> str:
        nbytes = int(self.guest.call(function)) & 0xFFFFFFFF
        return self.guest.read(self._address(0), nbytes).decode(errors="replace")

    def _address(self, nbytes: int) -> int:
        return int(self.guest.call("chat_text", nbytes)) & 0xFFFFFFFF


def read_messages(text: str) -> list[dict[str, str]]:
    """Parse messages from JSON. Raises GuestError if the text is anything else."""
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError):
        raise GuestError("not a conversation: the text is not JSON") from None
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise GuestError(
            "not a conversation: the text is not a JSON array of objects with the strings role and content, "
            f"role one of {', '.join(ROLES)}"
        )
    return messages


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and value["role"] in ROLES
        and isinstance(value["content"], str)
    )
