"""Where a JSON object ends in a text that comes in pieces."""

from __future__ import annotations

import re

_MARK = re.compile(r'[{}\[\]"]')
_IN_STRING = re.compile(r'["\\]')


class JsonEnd:
    """Counts braces and brackets outside of strings. It does not check that the rest is JSON."""

    def __init__(self, depth: int = 0) -> None:
        """``depth``: how many braces and brackets are open already."""
        self._depth = depth
        self._in_string = self._escaped = False

    def find(self, text: str) -> int | None:
        """How many characters of this next piece belong to the object; None: all of them, and it goes on."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_IN_STRING if self._in_string else _MARK).search(text, at)
            if not found:
                return None
            at = found.end()
            self._count(found.group())
            if not self._depth:
                return at
        return None

    def _count(self, mark: str) -> None:
        if mark == "\\":
            self._escaped = True
        elif mark == '"':
            self._in_string = not self._in_string
        else:
            self._depth += 1 if mark in "{[" else -1
