"""Actor ids: they become names of files and objects, so they are checked before anything is done with them."""

from __future__ import annotations

import re
from typing import Final

from wasmetal.errors import SnapshotError, printable

MOST: Final = 100
"""Characters of an actor id."""

_ID: Final = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MOST - 1}}}")
"""No separators and no leading dot, so that an id cannot lead out of its folder; no capitals, since two ids that differ
in case would be one file on some systems (macOS)."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def checked_id(actor_id: str) -> str:
    """The id itself. Raises SnapshotError unless it is 1 to 100 of a-z, 0-9, ".", "_" and "-", the first no sign."""
    if not isinstance(actor_id, str) or not _ID.fullmatch(actor_id):
        raise SnapshotError(
            f"{printable(repr(actor_id))} is not an actor id: use up to {MOST} of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return actor_id


def is_id(text: str) -> bool:
    """Whether the text is an actor id."""
    return _ID.fullmatch(text) is not None


def is_digest(text: object) -> bool:
    """Whether this is a digest of 32 bytes in lower-case hexadecimal."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None
