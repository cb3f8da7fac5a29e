"""``wasmetal chat`` at a terminal: answers messages and carries out slash commands."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from wasmetal.cli.terminal import Wrapped, harmless
from wasmetal.conversation import Conversation, Stats, read_messages
from wasmetal.errors import GuestError

if TYPE_CHECKING:
    from wasmetal.cli.prompt import Read
    from wasmetal.device import DeviceInfo

HELP = """\
/system [TEXT]  set the system message; without TEXT, drop it
/reset          forget what was said, but not the system message
/save FILE      write the conversation to a file, as JSON
/load FILE      continue a saved conversation
/stats          tokens per second, and how full the context is
/help           this list
/bye            leave; so does Ctrl-D
Ctrl-C stops an answer, or clears the line. Alt-Enter begins another line of the same message.
To send a message that begins with /, put a space before it."""


def converse(conversation: Conversation, out: Wrapped, read: Read) -> None:
    """Answer messages and carry out commands until ``/bye`` or the end of the input."""
    commands = Commands(conversation)
    while commands.more:
        try:
            line = read()
        except EOFError:
            break
        if line.startswith("/"):
            commands.obey(line)
        elif message := line.strip():
            answer(conversation, message)
            out.close()
    if conversation.stats().prefill_tokens:
        commands.stats("")


def answer(conversation: Conversation, message: str) -> None:
    """Answer a message. Ctrl-C stops the answer; another one, before it has stopped, raises KeyboardInterrupt."""
    with _interrupt() as interrupted:
        more = conversation.ask(message)
        while more and not interrupted.is_set():
            more = conversation.go_on()
        if more:
            conversation.end()


@contextmanager
def _interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets. (The KeyboardInterrupt that it raises otherwise would end the guest.)"""
    interrupted = threading.Event()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


class Commands:
    """The slash commands. Each public method but :meth:`obey` is one, and takes the rest of its line."""

    def __init__(self, conversation: Conversation) -> None:
        self.more = True
        """False after ``/bye``."""
        self._conversation = conversation

    def obey(self, line: str) -> None:
        """Carry out a command line, or print why that is not possible."""
        name, _, rest = line[1:].partition(" ")
        known = {each: getattr(self, each) for each in ("system", "reset", "save", "load", "stats", "help", "bye")}
        if name not in known:
            _tell(f"/{name} is not a command; /help lists the commands")
            return
        try:
            known[name](rest.strip())
        except OSError as error:
            _tell(f"{error.filename}: {error.strerror}")

    def system(self, text: str) -> None:
        """Set or drop the system message."""
        if self._conversation.set_system(text):
            _tell("system message set" if text else "no system message")

    def reset(self, _rest: str) -> None:
        """Forget the conversation."""
        self._conversation.reset()
        _tell("conversation forgotten")

    def save(self, file: str) -> None:
        """Write the conversation to a file."""
        messages = self._conversation.messages()
        if path := _path(file):
            path.write_text(json.dumps(messages, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            _tell(f"{_messages(len(messages))} saved to {path}")

    def load(self, file: str) -> None:
        """Continue a conversation from a file."""
        if not (path := _path(file)):
            return
        try:
            messages = read_messages(path.read_text(encoding="utf-8", errors="replace"))
        except GuestError as error:
            _tell(f"{path}: {error}")
            return
        if self._conversation.load(messages):
            _tell(f"{_messages(len(messages))} loaded from {path}")

    def stats(self, _rest: str) -> None:
        """Show speed and context use."""
        _tell(describe(self._conversation.stats()))

    def help(self, _rest: str) -> None:
        """Show the commands."""
        _tell(HELP)

    def bye(self, _rest: str) -> None:
        """Leave."""
        self.more = False


def describe(stats: Stats) -> str:
    """One line on speed and context use."""
    parts = [f"context {stats.context_tokens} of {stats.context_length} tokens"]
    for name, tokens, seconds in (
        ("prompts", stats.prefill_tokens, stats.prefill_seconds),
        ("answers", stats.decode_tokens, stats.decode_seconds),
    ):
        speed = f" at {tokens / seconds:.1f} tokens/s" if tokens and seconds else ""
        parts.append(f"{name} {tokens} tokens{speed}")
    return ", ".join(parts)


def greeting(model: str, device: DeviceInfo, stats: Stats) -> str:
    """One line that names the model, the device and the context length."""
    context = f"{stats.context_length} tokens of context"
    return harmless(f"{model} on {device.spec} ({device.name}), {context}; /help lists the commands")


def columns() -> int:
    """The terminal's width."""
    return shutil.get_terminal_size().columns


def _tell(text: str) -> None:
    print(harmless(text))
    sys.stdout.flush()


def _path(text: str) -> Path | None:
    if not text:
        _tell("name a file")
        return None
    return Path(text).expanduser()


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"
