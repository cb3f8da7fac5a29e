"""Reads calls of tools from an answer, as it is made, in whatever pieces it comes."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from wasmetal.serve.tools.call_json import HEADER, JsonEnd, loaded
from wasmetal.serve.tools.formats import Format

_MOST_HEADER = 1024
"""Characters of a call up to its arguments, beyond which it is read as a whole."""
_NAMED = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
"""A call that begins with its name; Mistral's."""
_BETWEEN = " \t\r\n,;]"
"""What may stand between calls; a bracket may stand before the first, too."""


@dataclass(slots=True)
class Said:
    """A piece of text."""

    text: str


@dataclass(slots=True)
class Called:
    """A call begins."""

    index: int
    name: str


@dataclass(slots=True)
class Argued:
    """A piece of the arguments of a call, which are JSON."""

    index: int
    text: str


Piece = Said | Called | Argued


class CallParser:
    """Splits one answer into text and calls. What only looks like a call stays text."""

    def __init__(self, form: Format, names: Collection[str]) -> None:
        """``names``: those of the tools that there are."""
        self.calls = 0
        """Calls so far."""
        self._form = form
        self._names = names
        self._rest = ""
        """What is not understood yet."""
        self._read = self._begin if form.bare else self._text
        self._raw = ""
        """Since the last call: what is text if it turns out to be none."""
        self._called = False
        """Whether there was a call since the opening."""
        self._end = JsonEnd()
        """Of the object that is being read,"""
        self._looked = 0
        """and in how much of the rest it was looked for."""
        self._in_object = False
        """Whether the arguments that are being read are in another object."""
        self._out: list[Piece] = []

    def feed(self, text: str, final: bool = False) -> list[Piece]:
        """What is known with this piece; ``final``: it was the last."""
        self._rest += text
        self._out = []
        while self._read(final):
            pass
        return self._out

    # Each of these reads on from self._rest, and returns whether another is to go on with what is left.

    def _begin(self, final: bool) -> bool:
        """At the beginning of an answer that may be nothing but calls."""
        rest = self._rest.lstrip()
        if rest.startswith("{"):
            self._rest, self._read = rest, self._calls
        elif rest and not (self._form.opening.startswith(rest) and not final):
            self._read = self._text
        else:
            return self._finish(final)
        return True

    def _text(self, final: bool) -> bool:
        """In a text."""
        rest, opening = self._rest, self._form.opening
        at = rest.find(opening)
        if at >= 0:
            said = rest[:at].rstrip()
            self._say(said)
            self._raw, self._rest, self._read = rest[len(said) : at] + opening, rest[at + len(opening) :], self._calls
            self._called = False
            return True
        if final:
            return self._finish(final)
        kept = next((n for n in range(min(len(opening) - 1, len(rest)), 0, -1) if opening.startswith(rest[-n:])), 0)
        said = rest[: len(rest) - kept].rstrip()  # white space before a call is not told
        self._say(said)
        self._rest = rest[len(said) :]
        return False

    def _calls(self, final: bool) -> bool:
        """Where a call begins, or nothing follows."""
        rest = self._skip(_BETWEEN)
        for marker in (self._form.closing, self._form.opening):
            if marker and rest.startswith(marker):
                closes = marker == self._form.closing
                if closes and not self._called:
                    return self._give_up()
                self._rest, self._raw = rest[len(marker) :], "" if closes else self._raw + marker
                self._read, self._called = self._text if closes else self._calls, False
                return True
            if marker and rest and marker.startswith(rest) and (self.calls or not final):
                return False  # it goes on, or was cut off
        if not (rest := self._skip("[" + _BETWEEN)):
            return self._finish(final)
        if rest[0] == "{":
            self._read, self._end, self._looked = self._call, JsonEnd(), 0
            return True
        named = _NAMED.match(rest)
        if self._form.closing or self._form.bare or not (named or _may_be_named(rest, final)):
            return self._give_up()
        return self._begin_arguments(named) if named else False

    def _call(self, final: bool) -> bool:
        """In an object with a name and arguments."""
        rest = self._rest
        if len(rest) < _MOST_HEADER and (header := HEADER.match(rest)):
            return self._begin_arguments(header)
        end = self._end.find(rest[self._looked :])
        if end is None:
            self._looked = len(rest)
            return self._give_up() if final and not self.calls else False  # or it was cut off
        end += self._looked
        call = loaded(rest[:end])
        if call is None or call[0] not in self._names:
            return self._give_up()
        name, arguments = call
        self._out += [Called(self.calls, name), Argued(self.calls, arguments)]
        self._rest, self._read, self._raw = rest[end:], self._calls, ""
        self._called = True
        self.calls += 1
        return True

    def _arguments(self, final: bool) -> bool:
        """In a call's arguments, which are passed on as they come."""
        end = self._end.find(self._rest)
        data = self._rest if end is None else self._rest[:end]
        if data:
            self._out.append(Argued(self.calls, data))
        self._rest = self._rest[len(data) :]
        if end is None:
            self.calls += final
            return False
        self._called = True
        self.calls += 1
        self._read, self._end, self._raw = self._after if self._in_object else self._calls, JsonEnd(depth=1), ""
        return True

    def _after(self, final: bool) -> bool:
        """After the arguments, in the object that they are in."""
        end = self._end.find(self._rest)
        self._rest = "" if end is None else self._rest[end:]
        if end is not None:
            self._read = self._calls
        return end is not None

    def _begin_arguments(self, header: re.Match[str]) -> bool:
        if header[1] not in self._names:
            return self._give_up()
        self._out.append(Called(self.calls, header[1]))
        self._in_object = header.re is HEADER
        self._rest, self._read, self._end = self._rest[header.end() :], self._arguments, JsonEnd()
        return True

    def _skip(self, characters: str) -> str:
        """What is left after these characters, which belong to a call that may follow."""
        rest = self._rest.lstrip(characters)
        self._raw += self._rest[: len(self._rest) - len(rest)]
        self._rest = rest
        return rest

    def _give_up(self) -> bool:
        """It is no call."""
        self._rest, self._raw, self._read = self._raw + self._rest, "", self._no_calls
        return True

    def _no_calls(self, final: bool) -> bool:
        """In what follows something that is no call."""
        self._say(self._rest)
        self._rest = ""
        return False

    def _finish(self, final: bool) -> bool:
        """Wait for more; if there is no more, white space after a call is not told."""
        if final:
            self._say(self._rest.rstrip() if self.calls else self._raw + self._rest)
            self._rest = self._raw = ""
        return False

    def _say(self, text: str) -> None:
        if text:
            self._out.append(Said(text))


def _may_be_named(text: str, final: bool) -> bool:
    """Whether this may be the beginning of a name before arguments."""
    return not final and len(text) < _MOST_HEADER and bool(re.fullmatch(r"[\w.-]+[\w\[\]]*\s*", text))
