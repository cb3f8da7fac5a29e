"""One file that holds a snapshot and its chunks, to be carried elsewhere.

It begins as the snapshot's file in a store does. The chunks follow, as they are, in the order of the manifest's list,
at places that follow from their sizes: so there are no offsets that could be wrong, and the file's length is known
beforehand.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from wasmetal.actor.chunks import digest_of_program
from wasmetal.actor.store import chunk_bytes
from wasmetal.actor.store.base import Store, StoredSnapshot, check_named
from wasmetal.actor.store.envelope import Envelope, seal, unseal
from wasmetal.actor.store.keys import Key
from wasmetal.actor.store.leasing import Lease
from wasmetal.actor.store.names import checked_id
from wasmetal.errors import SnapshotError, setting_up
from wasmetal.memory.mapped import map_file

ALIGNED: Final = 16 << 10
"""Chunks of at least so many bytes begin at a multiple of it: the largest page of the systems that wasmetal runs on."""
_SMALL: Final = 64
"""What smaller chunks begin at a multiple of."""
_PIECE: Final = 1 << 20
"""Bytes that are read at a time, so that memory grows with what is there and not with what is promised."""


def positions(manifest_end: int, sizes: Iterable[int]) -> Iterator[int]:
    """Where each chunk begins, and then where the file ends."""
    at = manifest_end
    for size in sizes:
        alignment = ALIGNED if size >= ALIGNED else _SMALL
        at = -(-at // alignment) * alignment
        yield at
        at += size
    yield at


def write(out: BinaryIO, snapshot: StoredSnapshot, key: Key | None = None, program: bytes | None = None) -> int:
    """Write a stored snapshot to a file or pipe, and return how many bytes that was.

    ``key`` signs it. ``program``: the actor's module, in binary, which becomes one more chunk.
    Raises SnapshotError if a chunk is missing or damaged, or the file cannot be written.
    """
    chunks, manifest = snapshot.chunks, snapshot.manifest
    added = {} if program is None else {digest_of_program(program): program}
    if added:
        chunks = dict(sorted((chunks | {digest: len(data) for digest, data in added.items()}).items()))
        manifest = {**manifest, "chunks": [list(each) for each in chunks.items()]}
    sealed = seal(snapshot.actor_id, manifest, key)
    starts = positions(len(sealed), chunks.values())
    with setting_up(f"export actor {snapshot.actor_id}", SnapshotError):
        out.write(sealed)
        at = len(sealed)
        for (digest, size), start in zip(chunks.items(), starts, strict=False):
            out.write(bytes(start - at))
            out.write(added[digest] if digest in added else snapshot.get(digest, size))
            at = start + size
    return at


def read_into(
    store: Store,
    file: BinaryIO,
    *,
    actor_id: str | None = None,
    key: Key | None = None,
    lease: Lease | None = None,
    replace: bool = True,
) -> str:
    """Store the snapshot in a file or pipe, under its own id or another; return that id.

    ``replace``: also if there is a snapshot of that actor.
    With a ``key``, a snapshot that it does not authenticate is refused before anything is stored. Chunks come from the
    file alone: one that names what only the store has gets nothing. Raises SnapshotError if the file is no snapshot, or
    damaged, or something follows it; ActorHeldError if somebody has the actor awake.
    """
    if actor_id is not None:
        checked_id(actor_id)
    with setting_up("import a snapshot", SnapshotError):
        envelope = unseal(lambda nbytes: _read(file, nbytes), None, key)
        chunks = envelope.chunks
        name = actor_id or envelope.actor_id
        with store.saving(name, lease) as save:
            if not replace and name in store.actors():
                raise SnapshotError(
                    f"there is a snapshot of actor {name} already: replace it, or import under another id"
                )
            at = envelope.nbytes
            for (digest, size), start in zip(chunks.items(), positions(at, chunks.values()), strict=False):
                if _exactly(file, start - at, digest).strip(b"\0"):
                    raise _filled()
                save.keep(digest, chunk_bytes.check(_exactly(file, size, digest), digest))
                at = start + size
            if file.read(1):
                raise SnapshotError("the snapshot is damaged: something follows its last chunk")
            save.commit(envelope.manifest)
    return name


class SnapshotFile(StoredSnapshot):
    """An exported file, mapped: a :class:`ChunkSource` whose chunks are its pages, read when they are touched."""

    def __init__(self, path: str | os.PathLike[str], key: Key | None = None) -> None:
        """Raises SnapshotError if it is no snapshot, or damaged, or the ``key`` does not authenticate it."""
        with setting_up(f"open the snapshot {path}", SnapshotError), Path(path).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            envelope = unseal(file.read, size, key)
            self._starts, end = _placed(envelope)
            if end != size:
                raise SnapshotError(
                    f"the snapshot has {size} bytes; with its chunks it would have {end}: it was cut off, or is damaged"
                )
            self._bytes = map_file(file.fileno(), size).data
        super().__init__(envelope)
        self._check_filling(envelope.nbytes)

    def get(self, digest: str, size: int) -> memoryview:
        """See :class:`StoredSnapshot`."""
        check_named(self.chunks, digest, size)
        start = self._starts[digest]
        return chunk_bytes.check(self._bytes[start : start + size], digest)

    def close(self) -> None:
        """Does nothing: the file stays mapped as long as this object, or a chunk from it, exists."""

    def _check_filling(self, manifest_end: int) -> None:
        at = manifest_end
        for digest, start in self._starts.items():
            if bytes(self._bytes[at:start]).strip(b"\0"):
                raise _filled()
            at = start + self.chunks[digest]


def _placed(envelope: Envelope) -> tuple[Mapping[str, int], int]:
    """Where each chunk begins, and where the file ends."""
    chunks: Mapping[str, Any] = envelope.chunks
    *starts, end = positions(envelope.nbytes, chunks.values())
    return dict(zip(chunks, starts, strict=True)), end


def _read(file: BinaryIO, nbytes: int) -> bytearray:
    """So many bytes of a file or pipe, or what there is."""
    data = bytearray()
    while len(data) < nbytes and (piece := file.read(min(_PIECE, nbytes - len(data)))):
        data += piece
    return data


def _exactly(file: BinaryIO, nbytes: int, digest: str) -> bytearray:
    data = _read(file, nbytes)
    if len(data) != nbytes:
        raise SnapshotError(f"the snapshot ends before its chunk {digest}, or within it: it was cut off")
    return data


def _filled() -> SnapshotError:
    return SnapshotError("the snapshot is damaged: there is something between its chunks")
