"""JSON objects that are calls: a name and arguments; and where one ends in a text that comes in pieces."""

from __future__ import annotations

import json
import re

HEADER = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""The beginning of a call, up to its arguments, if the name comes first."""
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


def loaded(text: str) -> tuple[str, str] | None:
    """The name and the arguments of a call; None if it is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = call.get("name")
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str) and isinstance(parsed := _parsed(arguments), dict):
        arguments = parsed
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
