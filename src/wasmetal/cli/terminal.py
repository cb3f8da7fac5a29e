"""A model's text on a terminal: without control characters, and wrapped between words as it arrives."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable

from rich.cells import cell_len

_TAB = 8


def harmless(text: str) -> str:
    """The text with every control character but newline and tab made visible, so that a terminal obeys none of them."""
    return "".join(_visible(c) if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def _visible(control: str) -> str:
    code = ord(control)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


class Plain:
    """Writes text as it arrives, made :func:`harmless`. ``write`` must flush."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, data: bytes) -> None:
        """Write the characters that are complete by now."""
        if text := harmless(self._decoder.decode(data)):
            self._write(text)

    def close(self) -> None:
        """Write what there is of an incomplete character."""
        if text := self._decoder.decode(b"", final=True):
            self._write(text)


class Wrapped:
    """Writes text :func:`harmless` and wrapped between words at ``width()`` columns. ``write`` must flush.

    A word is written when it is complete. Spaces at which a line is broken are dropped; others are kept, so code keeps
    its indentation. A word wider than a line may be broken anywhere, and so may text in wide characters.
    """

    def __init__(self, write: Callable[[str], object], width: Callable[[], int]) -> None:
        self._write = write
        self._width = width
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = False
        self._column = 0
        self._spaces = ""
        self._word = ""
        self._ready = ""

    def __call__(self, data: bytes) -> None:
        """Write the words that are complete by now."""
        self._feed(self._decoder.decode(data))
        self._flush()

    def close(self) -> None:
        """Write the last word. Later text begins a new line, or continues this one."""
        self._feed(self._decoder.decode(b"", final=True))
        self._end_word()
        self._flush()
        self._decoder.reset()

    def _feed(self, text: str) -> None:
        for c in harmless(text):
            if c == "\n":
                self._end_word()
                self._end_line()
            elif c == "\t":
                self._end_word()
                self._spaces += " " * (_TAB - (self._column + len(self._spaces)) % _TAB)
            elif c == " ":
                self._end_word()
                self._spaces += c
            else:
                wide = cell_len(c) == 2
                if wide or cell_len(self._word + c) > self._width():
                    self._end_word()
                self._word += c
                if wide:
                    self._end_word()

    def _end_word(self) -> None:
        if not self._word:
            return
        if self._begun and self._column + len(self._spaces) + cell_len(self._word) > self._width():
            self._end_line()
        self._ready += self._spaces + self._word
        self._column += len(self._spaces) + cell_len(self._word)
        self._begun, self._spaces, self._word = True, "", ""

    def _end_line(self) -> None:
        self._ready += "\n"
        self._begun, self._spaces, self._column = False, "", 0

    def _flush(self) -> None:
        if self._ready:
            self._write(self._ready)
            self._ready = ""
