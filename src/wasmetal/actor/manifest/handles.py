"""The handles of a guest, and what each names: buffers, models, sessions."""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from wasmetal.actor.json_fields import MOST, Fields, array, check, integer, text
from wasmetal.actor.manifest.chunks import Chunk, Pieces
from wasmetal.errors import SnapshotError

BLOCK_TOKENS = 32
"""Tokens whose keys and values are one chunk: 1 MiB for a model of a billion weights."""
BLOCK_BYTES = 1 << 20
"""Bytes of a device buffer that are one chunk."""

_SLOTS, _GENERATIONS = 1 << 19, 1 << 12  # as in host/handles.py


@dataclass(frozen=True, slots=True)
class SharedBuffer:
    """A buffer that shares pages of the guest's memory."""

    offset: int
    nbytes: int
    usage: int

    kind: ClassVar = "shared_buffer"

    def to_json(self) -> dict[str, Any]:
        return {"offset": self.offset, "bytes": self.nbytes, "usage": self.usage}

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From the fields of a held object."""
        return cls(
            fields.take("offset", integer, 0, MOST),
            fields.take("bytes", integer, 1, MOST),
            fields.take("usage", integer, 1, 3),
        )

    def chunks(self) -> Iterator[Chunk]:
        """None: the bytes are in the memory."""
        return iter(())


@dataclass(frozen=True, slots=True)
class DeviceBuffer:
    """A buffer in device memory."""

    nbytes: int
    usage: int
    content: Pieces = field(default_factory=Pieces)
    """Pieces of BLOCK_BYTES; those that are not named are zero."""

    kind: ClassVar = "device_buffer"

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.nbytes, "usage": self.usage, "content": self.content.to_json()}

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From the fields of a held object."""
        nbytes, usage = fields.take("bytes", integer, 1, MOST), fields.take("usage", integer, 1, 3)
        return cls(nbytes, usage, fields.take("content", Pieces.from_json, nbytes, BLOCK_BYTES))

    def chunks(self) -> Iterator[Chunk]:
        """Of the content."""
        return self.content.chunks()


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A handle of a granted model."""

    model: str

    kind: ClassVar = "model"

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model}

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From the fields of a held object."""
        return cls(fields.take("model", text))

    def chunks(self) -> Iterator[Chunk]:
        """None."""
        return iter(())


@dataclass(frozen=True, slots=True)
class Session:
    """A session: keys and values of its tokens, in blocks of BLOCK_TOKENS tokens, of which the last may have fewer.

    A block is, for each layer, the rows of keys and then those of values, [tokens, kv_heads, head_dim] in the cache's
    type. So equal beginnings of sessions are equal blocks.
    """

    model: str
    """The guest's name for its model."""
    tokens: int
    blocks: tuple[Chunk, ...] = ()

    kind: ClassVar = "session"

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, "tokens": self.tokens, "blocks": [block.to_json() for block in self.blocks]}

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From the fields of a held object."""
        model, tokens = fields.take("model", text), fields.take("tokens", integer, 0, 1 << 31)
        count = -(-tokens // BLOCK_TOKENS)
        blocks = fields.take("blocks", array, count)
        check(f"the number of {fields.what}.blocks", len(blocks) == count, len(blocks))
        return cls(model, tokens, tuple(Chunk.from_json(f"a block of {fields.what}", block) for block in blocks))

    def chunks(self) -> Iterator[Chunk]:
        """The blocks."""
        return iter(self.blocks)


Held = SharedBuffer | DeviceBuffer | OpenedModel | Session
_HELD: tuple[type[Held], ...] = (SharedBuffer, DeviceBuffer, OpenedModel, Session)


@dataclass(frozen=True, slots=True)
class Handles:
    """The guest's handles: what each names, and which numbers are used up."""

    key: int
    generations: tuple[int, ...]
    """Of each slot."""
    free: tuple[int, ...]
    """Slots, in the order in which they became free."""
    held: dict[int, Held]
    """By slot, in ascending order."""

    def to_json(self) -> dict[str, Any]:
        held = [{"slot": slot, "kind": each.kind, **each.to_json()} for slot, each in self.held.items()]
        return {"key": self.key, "generations": list(self.generations), "free": list(self.free), "held": held}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        key = fields.take("key", integer, 0, (1 << 32) - 1)
        generations = fields.take("generations", array, _SLOTS)
        for generation in generations:
            integer(f"a generation of {what}", generation, 0, _GENERATIONS)
        free = fields.take("free", array, len(generations))
        held: dict[int, Held] = {}
        least = 0
        for entry in fields.take("held", array, len(generations)):
            slot, each = _held(f"what {what} hold", entry, least, len(generations) - 1)
            held[slot] = each
            least = slot + 1
        fields.end()
        used = set(held)
        for slot in free:
            integer(f"a free slot of {what}", slot, 0, len(generations) - 1)
            check(f"a free slot of {what}, which is taken,", slot not in used, slot)
            used.add(slot)
        for slot, generation in enumerate(generations):
            check(f"the generation of slot {slot}", (generation == _GENERATIONS) != (slot in used), generation)
        return cls(key, tuple(generations), tuple(free), held)


def _held(what: str, value: object, least: int, most: int) -> tuple[int, Held]:
    fields = Fields(what, value)
    slot, kind = fields.take("slot", integer, least, most), fields.take("kind", text, 16)
    fields.what = f"the {kind} in slot {slot}"
    for each in _HELD:
        if each.kind == kind:
            held = each.read(fields)
            fields.end()
            return slot, held
    raise SnapshotError(f"the snapshot's manifest is damaged: {fields.what} is of an unknown kind")
