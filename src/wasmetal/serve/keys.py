"""API keys, of which the server keeps digests alone.

A file of keys has a line for each: its owner's name, a space, and the SHA-256 of the key in hexadecimal. A fast digest
is enough for keys that are long and random, as those of :func:`new_key` are.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from wasmetal.errors import WasmetalError, setting_up

LEAST = 16
"""Characters of a key."""
_LINE = re.compile(r"([\w.@-]{1,64})\s+([0-9a-f]{64})")


class KeysError(WasmetalError):
    """A key, or a file of keys, that cannot be used."""


class Keys:
    """Who may use the server. Without any keys, everybody."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        """``digests``: of each key, by its owner's name."""
        self._digests = dict(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, key: str) -> str | None:
        """Whose key it is. Takes the same time whoever's it is, and however much of it is right."""
        digest, found = _digest(key), None
        for owner, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = owner
        return found


def read_keys(key: str | None, file: Path | None) -> Keys:
    """A key that was given, whose owner is "default", and those of a file. Raises a WasmetalError."""
    digests = {}
    if key is not None:
        if len(key) < LEAST:
            raise KeysError(f"the API key has {len(key)} characters; it must have {LEAST} or more")
        digests["default"] = _digest(key)
    if file is not None:
        with setting_up(f"read the keys in {file}", KeysError):
            lines = file.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if not (text := line.split("#")[0].strip()):
                continue
            if not (found := _LINE.fullmatch(text)):
                raise KeysError(f"{file}, line {number}: not a name and the SHA-256 of a key in hexadecimal")
            if found[1] in digests:
                raise KeysError(f"{file}, line {number}: there is another key of {found[1]}")
            digests[found[1]] = bytes.fromhex(found[2])
        if not digests:
            raise KeysError(f"{file} has no keys")
    return Keys(digests)


def new_key(owner: str) -> tuple[str, str]:
    """A new key, and its line for a file of keys."""
    key = f"wm-{secrets.token_urlsafe(32)}"
    return key, f"{owner} {_digest(key).hex()}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
