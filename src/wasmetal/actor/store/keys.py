"""Keys that authenticate snapshots: who holds one can tell whether a snapshot was made by a holder of the key."""

from __future__ import annotations

import hashlib
import hmac
from typing import ClassVar, Final, Protocol

from wasmetal.errors import SnapshotError

ALGORITHMS: Final = {0: "none", 1: "HMAC-SHA256", 2: "Ed25519"}
"""Names of the numbers in a header."""
TAG_BYTES: Final = 64
"""Room for a tag in a header. Shorter tags are followed by zeros."""
_SECRET_BYTES: Final = 16


class Key(Protocol):
    """Signs snapshots that are saved, and checks those that are loaded."""

    ALGORITHM: ClassVar[int]
    """One of ``ALGORITHMS``, not 0."""

    def sign(self, message: bytes) -> bytes:
        """The tag of a message, of 64 bytes. Raises SnapshotError if the key can only check."""

    def verify(self, message: bytes, tag: bytes) -> bool:
        """Whether ``tag`` is the one that a holder of the key gave the message."""


class HmacKey:
    """A secret that whoever saves and whoever loads share: HMAC-SHA256 (RFC 2104)."""

    ALGORITHM: ClassVar[int] = 1

    def __init__(self, secret: bytes) -> None:
        """``secret``: at least 16 random bytes; 32 are usual. Raises SnapshotError if there are fewer."""
        if len(secret) < _SECRET_BYTES:
            raise SnapshotError(
                f"a secret of {len(secret)} bytes is too short to authenticate snapshots; use 32 random bytes"
            )
        self._secret = bytes(secret)

    def sign(self, message: bytes) -> bytes:
        """The tag of a message."""
        return hmac.digest(self._secret, message, hashlib.sha256).ljust(TAG_BYTES, b"\0")

    def verify(self, message: bytes, tag: bytes) -> bool:
        """Whether it is the message's tag, compared in constant time."""
        return hmac.compare_digest(self.sign(message), tag)
