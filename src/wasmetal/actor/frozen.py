"""What an actor's memories and buffers held when it was frozen or thawed last: what is the same still has its digest.

Pieces are compared with copies, or with the bytes of a snapshot in memory, byte by byte. So nothing that a guest writes
can pass for what was there before, as it could with a checksum; the system's own records of written pages miss what
GPUs write, or cannot be had everywhere. Comparing takes less time than hashing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from wasmetal.actor.chunks import ChunkSink
from wasmetal.actor.manifest import BLOCK_BYTES, Chunk
from wasmetal.actor.memory_image import PAGE, equal
from wasmetal.device.base import Bytes
from wasmetal.errors import MemoryRefusedError
from wasmetal.memory.copies import Copies

MOST: Final = 64 << 20
"""Bytes of an actor's copies. What does not fit is hashed each time."""

_WARM: Final = 16 << 20
"""Bytes that are kept for copies to come, once others were freed: fresh memory costs more than the copy."""
_COPIES: Final = {nbytes: Copies(nbytes, _WARM // nbytes) for nbytes in (PAGE, BLOCK_BYTES)}
"""Of whole pages of memory and pieces of buffers. The last piece of a buffer may be smaller."""

Place = tuple[str, int, int]
"""Memory or buffer, its number, and the piece's index. Only where to look: what lies there is compared."""


@dataclass(slots=True)
class Frozen:
    """The pieces, and their chunks."""

    pieces: dict[Place, tuple[Bytes, Chunk]] = field(default_factory=dict)
    nbytes: int = 0

    def keep(self, place: Place, data: Bytes, chunk: Chunk) -> None:
        """Keep a copy of a piece, uint8 of shape [n], if there is room for it."""
        if self._has_room(data):
            copies = _COPIES.get(data.size)
            with suppress(MemoryRefusedError):  # then it is hashed
                self._add(place, copies.copy(data) if copies else data.copy(), chunk)

    def share(self, place: Place, data: Bytes, chunk: Chunk) -> None:
        """Keep a piece that nobody changes, uint8 of shape [n], itself, if there is room for it."""
        if self._has_room(data):
            self._add(place, data, chunk)

    def put(self, sink: ChunkSink, place: Place, data: Bytes, before: Frozen) -> Chunk:
        """Put a piece into a sink, unless it has it and the piece is as it was ``before``; keep it here."""
        kept, chunk = before.pieces.get(place, (None, None))
        if kept is None or chunk is None or not equal(kept, data):
            chunk = Chunk(sink.put(data.data), data.size)
            self.keep(place, data, chunk)
        else:
            if not sink.has(chunk.digest, chunk.size):
                chunk = Chunk(sink.put(data.data), data.size)
            if self._has_room(kept):
                self._add(place, kept, chunk)
        return chunk

    def fork(self) -> Frozen:
        """The same pieces, for another actor. The copies are shared."""
        return Frozen(dict(self.pieces), self.nbytes)

    def _has_room(self, data: Bytes) -> bool:
        return self.nbytes + data.size <= MOST

    def _add(self, place: Place, data: Bytes, chunk: Chunk) -> None:
        self.pieces[place] = data, chunk
        self.nbytes += data.size
