"""The envelope of a manifest: a header that says what follows, whose it is, its digest, and who vouches for it.

docs/snapshot-format.md has the table of its fields.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from wasmetal.actor.store import manifest_json
from wasmetal.actor.store.keys import ALGORITHMS, TAG_BYTES, Key
from wasmetal.actor.store.names import is_id
from wasmetal.errors import SnapshotError, printable

MAGIC: Final = b"wmactor\0"
VERSION: Final = 2
"""In version 1 chunks are named by their SHA-256."""
_READ: Final = range(1, VERSION + 1)
HEADER_BYTES: Final = 256
_FIELDS: Final = struct.Struct("<8sIIQ32s104s32s")
"""Magic, format version, algorithm, bytes of the manifest, its SHA-256, the actor's id, reserved."""
_NO_TAG: Final = bytes(TAG_BYTES)

assert _FIELDS.size + TAG_BYTES == HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Envelope:
    """A manifest that was checked."""

    actor_id: str
    manifest: dict[str, Any]
    nbytes: int
    """Of header and manifest."""
    algorithm: str
    """What authenticated it: ``none``, ``HMAC-SHA256`` or ``Ed25519``. Checked only if a key was given."""

    @property
    def chunks(self) -> manifest_json.Chunks:
        """What the manifest names."""
        return manifest_json.chunks_of(self.manifest)


def seal(actor_id: str, manifest: manifest_json.Manifest, key: Key | None) -> bytes:
    """Header and manifest. Raises SnapshotError if the manifest cannot be stored."""
    data = manifest_json.encode(manifest)
    algorithm = key.ALGORITHM if key else 0
    digest = hashlib.sha256(data).digest()
    signed = _FIELDS.pack(MAGIC, VERSION, algorithm, len(data), digest, actor_id.encode(), b"")
    return signed + (key.sign(signed) if key else _NO_TAG) + data


def unseal(
    read: Callable[[int], bytes | bytearray], available: int | None, key: Key | None, actor_id: str | None = None
) -> Envelope:
    """The manifest, from a file at its beginning. Nothing is read, and so allocated, before its header was checked.

    ``read``: gives so many bytes, or fewer at the end of the file. ``available``: bytes that the file has, if that is
    known. With a ``key``, a snapshot that it does not authenticate is refused; without one, damage is found and forgery
    is not. With an ``actor_id``, the snapshot of another actor is refused. Raises SnapshotError.
    """
    header = bytes(read(HEADER_BYTES))
    if len(header) < HEADER_BYTES:
        raise SnapshotError(f"the snapshot ends within its header, after {len(header)} bytes; it was cut off")
    magic, version, algorithm, nbytes, digest, name, reserved = _FIELDS.unpack_from(header)
    signed, tag = header[: _FIELDS.size], header[_FIELDS.size :]
    if magic != MAGIC:
        raise SnapshotError("this is not a snapshot of an actor")
    if version not in _READ:
        raise SnapshotError(
            f"the snapshot has format version {version}; this version of wasmetal reads up to {VERSION}: "
            "use the one that wrote it"
        )
    _authenticate(signed, tag, algorithm, key)
    held_by = name.rstrip(b"\0").decode("ascii", "replace")
    if not is_id(held_by) or any(reserved):
        raise SnapshotError(f"the snapshot's header is damaged: it names an actor {printable(repr(held_by))}")
    if actor_id not in (None, held_by):
        raise SnapshotError(f"the snapshot of actor {actor_id} is that of {held_by}, in its place")
    if nbytes > manifest_json.MOST:
        raise SnapshotError(f"the snapshot's manifest has {nbytes} bytes; at most {manifest_json.MOST} are allowed")
    if available is not None and HEADER_BYTES + nbytes > available:
        raise SnapshotError(
            f"the snapshot has {available} bytes; {HEADER_BYTES + nbytes} are needed for its manifest: it was cut off"
        )
    data = read(nbytes)
    if len(data) != nbytes:
        raise SnapshotError(f"the snapshot ends within its manifest, {nbytes - len(data)} bytes early; it was cut off")
    if hashlib.sha256(data).digest() != digest:
        raise SnapshotError("the snapshot's manifest is damaged: its SHA-256 differs from its header's")
    return Envelope(held_by, manifest_json.decode(data), HEADER_BYTES + nbytes, ALGORITHMS[algorithm])


def _authenticate(signed: bytes, tag: bytes, algorithm: int, key: Key | None) -> None:
    if algorithm not in ALGORITHMS:
        raise SnapshotError(f"the snapshot is authenticated by an unknown algorithm, number {algorithm}")
    if algorithm == 0 and tag != _NO_TAG:
        raise SnapshotError("the snapshot's header is damaged: it has a tag and no algorithm")
    if key is None:
        return
    if algorithm != key.ALGORITHM:
        raise SnapshotError(
            f"the snapshot is authenticated by {ALGORITHMS[algorithm]}, not by {ALGORITHMS[key.ALGORITHM]} as the key "
            "asks: it is refused"
        )
    if not key.verify(signed, tag):
        raise SnapshotError("the snapshot is not authenticated by this key: it was changed, or made with another key")
