"""Reading messages at a terminal, with editing and a history across runs. Slow to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

Read = Callable[[], str]
"""Reads a message. Raises EOFError when there are no more."""


def prompt_reader(history: Path) -> Read:
    """A reader with line editing, and a history in a file."""
    session = prompt_session(history)
    return lambda: session.prompt("> ", prompt_continuation="  ")


def prompt_session(history: Path) -> PromptSession[str]:
    """Enter ends a message, Alt-Enter a line of it; Ctrl-C clears it. Only the user can read the history file."""
    keys = KeyBindings()
    editing = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=editing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=editing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=editing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
        lines: FileHistory | InMemoryHistory = FileHistory(history)
    except OSError as error:
        print(f"{history}: {error.strerror}; messages are remembered until you leave")
        lines = InMemoryHistory()
    return PromptSession(history=lines, key_bindings=keys, multiline=True)
