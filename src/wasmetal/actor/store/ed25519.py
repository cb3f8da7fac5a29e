"""Signatures of snapshots by a pair of keys: who loads needs no secret."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from wasmetal.errors import SnapshotError


class Ed25519Key:
    """A pair of keys, or its public half, which checks and cannot sign: Ed25519 (RFC 8032), from ``cryptography``."""

    ALGORITHM: ClassVar[int] = 2

    def __init__(self, private: Any, public: Any) -> None:
        """Of ``cryptography``'s types; ``private`` may be None. See ``from_private`` and ``from_public``."""
        self._private, self._public = private, public

    @classmethod
    def from_private(cls, seed: bytes) -> Self:
        """The pair of a private key of 32 bytes. Raises SnapshotError if it is none, or without ``cryptography``."""
        ed25519 = _ed25519()
        try:
            private = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        except ValueError as error:
            raise SnapshotError(f"a private key of Ed25519 has 32 bytes, not {len(seed)}") from error
        return cls(private, private.public_key())

    @classmethod
    def from_public(cls, public: bytes) -> Self:
        """The public half alone, of 32 bytes. Raises SnapshotError if it is none, or without ``cryptography``."""
        ed25519 = _ed25519()
        try:
            return cls(None, ed25519.Ed25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise SnapshotError(f"a public key of Ed25519 has 32 bytes, not {len(public)}") from error

    @property
    def public(self) -> bytes:
        """The public half, 32 bytes."""
        return bytes(self._public.public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """The signature of a message. Raises SnapshotError if this is the public half."""
        if self._private is None:
            raise SnapshotError("a public key checks snapshots and cannot sign them; save with the private key")
        return bytes(self._private.sign(message))

    def verify(self, message: bytes, tag: bytes) -> bool:
        """Whether it is a signature of the message."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

        try:
            self._public.verify(tag, message)
        except InvalidSignature:
            return False
        return True


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ImportError as error:
        raise SnapshotError(
            "keys of Ed25519 need the package cryptography: pip install 'wasmetal[signatures]'"
        ) from error
    return ed25519
