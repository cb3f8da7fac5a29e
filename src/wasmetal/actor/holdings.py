"""What a snapshot's actor holds: pages of memory, tokens of conversations, buffers; and what of that others share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum

from wasmetal.actor.manifest import Chunk, DeviceBuffer, Manifest, Memory, Session


class Piece(StrEnum):
    """Where a piece of the state is, each as the character that stands for it in a drawing; the dearest last."""

    PROGRAM = "."
    """As in a new instance: the snapshot does not have it."""
    ZERO = "0"
    """It has become zero."""
    SHARED = "="
    """In a chunk that snapshots of other actors name too."""
    OWN = "#"
    """In a chunk of this snapshot's alone."""


@dataclass(frozen=True, slots=True)
class MemoryHeld:
    """A linear memory, in pages of 64 KiB."""

    pages: int
    kept: int
    """Pages that are chunks, since they differ from a new instance's."""
    shared: int
    """How many of those other snapshots have too."""
    zero: int
    pieces: tuple[tuple[int, Piece], ...]
    """The pages that are not as in the program, in ascending order."""


@dataclass(frozen=True, slots=True)
class SessionHeld:
    """A session's keys and values."""

    model: str
    """The guest's name for its model."""
    tokens: int
    bytes: int
    blocks: int
    shared: int
    """How many of the blocks other snapshots have too, or other sessions of this actor."""
    pieces: tuple[Piece, ...]
    """Of each block."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What an actor holds."""

    memories: tuple[MemoryHeld, ...]
    sessions: tuple[SessionHeld, ...]
    buffers: int
    """In device memory."""
    buffer_bytes: int


def holdings(manifest: Manifest, shared: Set[str]) -> Holdings:
    """What a manifest says of that. ``shared``: digests of chunks that other snapshots name too."""
    sessions = [held for held in manifest.handles.held.values() if isinstance(held, Session)]
    buffers = [held for held in manifest.handles.held.values() if isinstance(held, DeviceBuffer)]
    times = Counter(digest for held in sessions for digest in {block.digest for block in held.blocks})
    common = {digest for digest, count in times.items() if count > 1}
    return Holdings(
        tuple(_memory(memory, shared) for memory in manifest.memories),
        tuple(_session(held, shared | common) for held in sessions),
        len(buffers),
        sum(held.nbytes for held in buffers),
    )


def _memory(memory: Memory, shared: Set[str]) -> MemoryHeld:
    pieces = tuple((index, _piece(chunk, shared)) for index, chunk in memory.content.named)
    kinds = [kind for _, kind in pieces]
    zero = kinds.count(Piece.ZERO)
    return MemoryHeld(memory.pages, len(kinds) - zero, kinds.count(Piece.SHARED), zero, pieces)


def _session(held: Session, shared: Set[str]) -> SessionHeld:
    pieces = tuple(_piece(block, shared) for block in held.blocks)
    nbytes = sum(block.size for block in held.blocks)
    return SessionHeld(held.model, held.tokens, nbytes, len(pieces), pieces.count(Piece.SHARED), pieces)


def _piece(chunk: Chunk | None, shared: Set[str]) -> Piece:
    if chunk is None:
        return Piece.ZERO
    return Piece.SHARED if chunk.digest in shared else Piece.OWN
