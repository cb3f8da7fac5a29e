"""A program on a terminal of its own, as a user would have it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Self

from tests.cli.command import SCRIPT

PROMPT = b"\x1b[?2004h"
"""Switches bracketed paste on: the line editor does it when it begins to read a line."""
CTRL_C, CTRL_D, UP = b"\x03", b"\x04", b"\x1b[A"
_SECONDS = 120
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes standard input the terminal that Ctrl-C comes from, then becomes the program."""


class Terminal:
    """``wasmetal arguments…`` on a terminal of so many columns. All waits end after _SECONDS."""

    def __init__(self, *arguments: object, columns: int = 80, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        # Without PROMPT_TOOLKIT_NO_CPR the line editor waits for an answer that only a real terminal gives.
        given = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | environment
        unset = {"COLUMNS", "LINES"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, SCRIPT, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={name: value for name, value in os.environ.items() if name not in unset} | given,
            start_new_session=True,
        )
        os.close(slave)
        self._shown = b""

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def until(self, text: bytes) -> bytes:
        """What is shown, byte for byte, from what was returned last to this text."""
        end = time.monotonic() + _SECONDS
        while text not in self._shown:
            more = self._read(end)
            assert more, f"{text!r} does not come after {self._shown!r}"
            self._shown += more
        found, _, self._shown = self._shown.partition(text)
        return found

    def line(self, text: str) -> str:
        """Type a line at the prompt; return what is shown between it and the next prompt."""
        self.type(text.encode() + b"\r")
        self.until(b"\x1b[?2004l")
        return plain(self.until(PROMPT))

    def rest(self) -> bytes:
        """What is shown until the program ends."""
        end = time.monotonic() + _SECONDS
        while more := self._read(end):
            self._shown += more
        found, self._shown = self._shown, b""
        return found

    def wait(self) -> int:
        """The exit status."""
        return self._process.wait(timeout=_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self, end: float) -> bytes:
        """Some bytes; none at the end of the program or of the time."""
        if not select.select([self._master], [], [], max(end - time.monotonic(), 0))[0]:
            return b""
        try:
            return os.read(self._master, 65536)
        except OSError:  # on Linux, the end
            return b""


def plain(shown: bytes) -> str:
    """The text of it, without the escape sequences of the line editor."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode(errors="replace")).replace("\r\n", "\n")
