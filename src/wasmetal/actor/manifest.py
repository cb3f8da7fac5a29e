"""What a snapshot says of an actor, but for the bytes, which are in chunks.

Dataclasses that convert to values of JSON (``to_json``) and, strictly, back (``from_json``, which raises
SnapshotError): what comes from a file is hostile. Every field is checked before anything is allocated for it; what is
unknown is refused.
"""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Self

from wasmetal.actor.chunks import SnapshotError
from wasmetal.actor.json_fields import Fields, array, check, hexadecimal, integer, mapping, seconds, text
from wasmetal.actor.memory_image import PAGE
from wasmetal.actor.wasm_binary import ValueType
from wasmetal.counters import Counters

VERSION = 1
KIND = "wasmetal-actor"
BLOCK_TOKENS = 32
"""Tokens whose keys and values are one chunk: 1 MiB for a model of a billion weights."""
BLOCK_BYTES = 1 << 20
"""Bytes of a device buffer that are one chunk."""
MAX_CHUNK = 1 << 30
NULL = 0xFFFFFFFF
"""In the chunk of a table: no function."""
VALUE_BYTES = {ValueType.I32: 4, ValueType.I64: 8, ValueType.F32: 4, ValueType.F64: 8, ValueType.V128: 16}
"""Of a global that is no reference."""

_SLOTS, _GENERATIONS = 1 << 19, 1 << 12  # as in host/handles.py
_MOST = 1 << 62


@dataclass(frozen=True, slots=True, order=True)
class Chunk:
    """Bytes elsewhere. In JSON, ``[digest, size]``."""

    digest: str
    """SHA-256, in hexadecimal."""
    size: int

    def to_json(self) -> list[Any]:
        return [self.digest, self.size]

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        pair = array(what, value)
        check(what, len(pair) == 2, value)
        return cls(hexadecimal(f"{what}'s digest", pair[0], 32), integer(f"{what}'s size", pair[1], 1, MAX_CHUNK))


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of ``size`` bytes, but for the last, at multiples of it. Those that are not named are as they were anew.

    In JSON, ``[[index, digest or null], ...]`` in ascending order; null: the piece is zero.
    """

    named: tuple[tuple[int, Chunk | None], ...] = ()

    def to_json(self) -> list[Any]:
        return [[index, chunk and chunk.to_json()] for index, chunk in self.named]

    @classmethod
    def from_json(cls, what: str, value: object, total: int, size: int) -> Self:
        """``total``: bytes of all pieces together."""
        named: list[tuple[int, Chunk | None]] = []
        for pair in array(what, value, -(-total // size)):
            check(what, isinstance(pair, list) and len(pair) == 2, pair)
            least = named[-1][0] + 1 if named else 0
            index = integer(f"{what}: a piece's index", pair[0], least, -(-total // size) - 1)
            chunk = None if pair[1] is None else Chunk.from_json(f"{what}: piece {index}", pair[1])
            if chunk:
                check(f"{what}: the size of piece {index}", chunk.size == min(size, total - index * size), chunk.size)
            named.append((index, chunk))
        return cls(tuple(named))

    def chunks(self) -> Iterator[Chunk]:
        """The chunks."""
        return (chunk for _, chunk in self.named if chunk)


@dataclass(frozen=True, slots=True)
class Memory:
    """A linear memory: the pages that differ from the program's initial image."""

    pages: int
    """Its size, in pages of 64 KiB."""
    content: Pieces

    def to_json(self) -> dict[str, Any]:
        return {"pages": self.pages, "content": self.content.to_json()}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        pages = fields.take("pages", integer, 0, 1 << 47)
        memory = cls(pages, fields.take("content", Pieces.from_json, pages * PAGE, PAGE))
        fields.end()
        return memory


@dataclass(frozen=True, slots=True)
class Global:
    """A mutable global."""

    index: int
    kind: ValueType
    value: str | int | None
    """Its bytes, in hexadecimal; of a reference, the function's index, or None for null."""

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "type": self.kind.name, "value": self.value}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        index = fields.take("index", integer, 0, 1 << 32)
        kind = fields.take("type", _value_type)
        if kind in VALUE_BYTES:
            held: str | int | None = fields.take("value", hexadecimal, VALUE_BYTES[kind])
        else:
            held = fields.take("value", _optional, integer, 0, (1 << 32) - 1)
            check(f"{what}.value", held is None or kind is ValueType.FUNCREF, held)
        fields.end()
        return cls(index, kind, held)


@dataclass(frozen=True, slots=True)
class Table:
    """A table that the program's code may change."""

    index: int
    size: int
    functions: Chunk | None
    """An index of a function for each element, 32 bits, little-endian; all bits set: null. None: all are null."""

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "size": self.size, "functions": self.functions and self.functions.to_json()}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        index = fields.take("index", integer, 0, 1 << 32)
        size = fields.take("size", integer, 0, 1 << 20)
        functions = fields.take("functions", _optional, Chunk.from_json)
        check(f"{what}.functions", functions is None or functions.size == 4 * size, functions)
        fields.end()
        return cls(index, size, functions)


@dataclass(frozen=True, slots=True)
class GrantedModel:
    """A model that the actor was granted."""

    name: str
    """What it was called where it was granted, for messages."""
    digest: str | None = None
    """Of its file, in hexadecimal; None for a model that has no sessions."""
    kv_type: str | None = None
    """The type of the KV cache that sessions were saved from; None if the model has none."""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "digest": self.digest, "kv_type": self.kv_type}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        name, digest = fields.take("name", text), fields.take("digest", _optional, hexadecimal, 32)
        kv_type = fields.take("kv_type", _optional, text, 16)
        check(f"{what}.kv_type", (kv_type is None) == (digest is None), kv_type)
        fields.end()
        return cls(name, digest, kv_type)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a WASI descriptor stands for: a standard stream, or a granted folder."""

    number: int
    stands_for: str
    """ "stdin", "stdout", "stderr" or "folder"."""
    folder: str | None = None
    """The guest's name for the folder."""

    STREAMS: ClassVar = ("stdin", "stdout", "stderr")

    def to_json(self) -> dict[str, Any]:
        return {"number": self.number, "stands_for": self.stands_for, "folder": self.folder}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        descriptor = cls(
            fields.take("number", integer, 0, 1 << 31),
            fields.take("stands_for", text, 16),
            fields.take("folder", _optional, text),
        )
        fields.end()
        kinds = (*cls.STREAMS, "folder")
        check(f"{what}.stands_for", descriptor.stands_for in kinds, descriptor.stands_for)
        folder = descriptor.folder
        check(f"{what}.folder", (folder is not None) == (descriptor.stands_for == "folder"), folder)
        return descriptor


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
            fields.take("offset", integer, 0, _MOST),
            fields.take("bytes", integer, 1, _MOST),
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
    content: Pieces = Pieces()
    """Pieces of BLOCK_BYTES; those that are not named are zero."""

    kind: ClassVar = "device_buffer"

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.nbytes, "usage": self.usage, "content": self.content.to_json()}

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From the fields of a held object."""
        nbytes, usage = fields.take("bytes", integer, 1, _MOST), fields.take("usage", integer, 1, 3)
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


@dataclass(frozen=True, slots=True)
class Used:
    """What the actor has used of its limits, and caused."""

    counters: Counters = field(default_factory=Counters)
    disk_bytes: int = 0
    files: int = 0
    host_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        own = {"disk_bytes": self.disk_bytes, "files": self.files, "host_seconds": self.host_seconds}
        return {"counters": self.counters.as_dict(), **own}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        used = cls(
            fields.take("counters", _counters),
            fields.take("disk_bytes", integer, 0, _MOST),
            fields.take("files", integer, 0, _MOST),
            fields.take("host_seconds", seconds),
        )
        fields.end()
        return used


@dataclass(frozen=True, slots=True)
class Manifest:
    """An actor, frozen."""

    program_name: str
    program_digest: str
    """SHA-256 of the module."""
    actor: str
    """The actor's name."""
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    models: Mapping[str, GrantedModel]
    """By the guest's names: who thaws the actor must grant them again."""
    folders: tuple[str, ...]
    """The guest's names of granted folders, which must be granted again, too."""
    random_seed: str
    """In hexadecimal."""
    random_position: int
    timer: int | None
    """When it is due, in nanoseconds since 1970."""
    clock: int
    """The guest's monotonic clock, in nanoseconds."""
    used: Used
    memories: tuple[Memory, ...]
    globals: tuple[Global, ...]
    tables: tuple[Table, ...]
    descriptors: tuple[Descriptor, ...]
    handles: Handles

    def chunks(self) -> list[Chunk]:
        """All chunks that are named, each once, in ascending order."""
        found = {chunk for memory in self.memories for chunk in memory.content.chunks()}
        found |= {table.functions for table in self.tables if table.functions}
        found |= {chunk for held in self.handles.held.values() for chunk in held.chunks()}
        return sorted(found)

    def to_json(self) -> dict[str, Any]:
        """Values for ``json.dumps``; ``chunks`` has the digest and size of every chunk that is named."""
        return {
            "version": VERSION,
            "kind": KIND,
            "program": {"name": self.program_name, "digest": self.program_digest},
            "actor": self.actor,
            "arguments": list(self.arguments),
            "environment": dict(self.environment),
            "models": {name: model.to_json() for name, model in self.models.items()},
            "folders": list(self.folders),
            "random": {"seed": self.random_seed, "position": self.random_position},
            "timer": self.timer,
            "clock": self.clock,
            "used": self.used.to_json(),
            "memories": [memory.to_json() for memory in self.memories],
            "globals": [each.to_json() for each in self.globals],
            "tables": [table.to_json() for table in self.tables],
            "descriptors": [descriptor.to_json() for descriptor in self.descriptors],
            "handles": self.handles.to_json(),
            "chunks": [chunk.to_json() for chunk in self.chunks()],
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """A manifest from what ``json.loads`` gave. Raises SnapshotError if anything about it is wrong."""
        fields = Fields("the manifest", value)
        kind, version = fields.take("kind", text), fields.take("version", integer, 0, _MOST)
        if kind != KIND or version != VERSION:
            raise SnapshotError(f"a snapshot of kind {kind!r}, version {version}; {KIND!r}, version {VERSION} is known")
        program, random = fields.take("program", _members), fields.take("random", _members)
        manifest = cls(
            program_name=program.take("name", text),
            program_digest=program.take("digest", hexadecimal, 32),
            actor=fields.take("actor", text, MAX_NAME),
            arguments=fields.take("arguments", _tuple, _text),
            environment=fields.take("environment", _values, _text),
            models=fields.take("models", _values, GrantedModel.from_json),
            folders=fields.take("folders", _tuple, text),
            random_seed=random.take("seed", hexadecimal, 32),
            random_position=random.take("position", integer, 0, _MOST),
            timer=fields.take("timer", _optional, integer, 0, 1 << 63),
            clock=fields.take("clock", integer, 0, _MOST),
            used=fields.take("used", Used.from_json),
            memories=fields.take("memories", _tuple, Memory.from_json),
            globals=fields.take("globals", _tuple, Global.from_json),
            tables=fields.take("tables", _tuple, Table.from_json),
            descriptors=fields.take("descriptors", _tuple, Descriptor.from_json),
            handles=fields.take("handles", Handles.from_json),
        )
        chunks = fields.take("chunks", _tuple, Chunk.from_json)
        for members in (program, random, fields):
            members.end()
        manifest._check(chunks)
        return manifest

    def _check(self, chunks: tuple[Chunk, ...]) -> None:
        """What concerns several fields."""
        check("the list of chunks", list(chunks) == self.chunks(), len(chunks))
        digests = [chunk.digest for chunk in chunks]
        check("a chunk of two sizes", len(set(digests)) == len(digests), len(digests))
        for what, numbers in (
            ("global", [each.index for each in self.globals]),
            ("table", [each.index for each in self.tables]),
            ("descriptor", [each.number for each in self.descriptors]),
        ):
            check(f"the order of a {what}", all(a < b for a, b in pairwise(numbers)), numbers)
        check("a folder", len(set(self.folders)) == len(self.folders), self.folders)
        used = [(each.stands_for, each.folder) for each in self.descriptors]
        check("what descriptors stand for", len(set(used)) == len(used), used)
        for descriptor in self.descriptors:
            name = descriptor.folder
            check("a descriptor's folder", name is None or name in self.folders, name)
        for held in self.handles.held.values():
            if isinstance(held, OpenedModel | Session):
                check("the model of a handle", held.model in self.models, held.model)


MAX_NAME = 256
"""Bytes of an actor's name."""
_MAX_TEXT = 1 << 20


def check_texts(arguments: Sequence[str], environment: Mapping[str, str], names: Iterable[str]) -> None:
    """Raise SnapshotError for what a manifest could not hold: texts that are too long, or have zeros.

    ``names``: the guest's names of models and folders.
    """
    for value in (*arguments, *environment.values()):
        _text("an argument, or a variable's value,", value)
    for name in (*environment, *names):
        text("a name", name)


def _text(what: str, value: object) -> str:
    return text(what, value, _MAX_TEXT)


def _value_type(what: str, value: object) -> ValueType:
    check(what, isinstance(value, str) and value in ValueType.__members__, value)
    return ValueType[value]  # type: ignore[misc]


def _members(what: str, value: object) -> Fields:
    return Fields(what, value)


def _optional(what: str, value: object, read: Callable[..., Any], *bounds: Any) -> Any:
    return None if value is None else read(what, value, *bounds)


def _tuple(what: str, value: object, read: Callable[..., Any]) -> tuple[Any, ...]:
    return tuple(read(f"{what}[{index}]", each) for index, each in enumerate(array(what, value)))


def _values(what: str, value: object, read: Callable[..., Any]) -> dict[str, Any]:
    return {name: read(f"{what}.{name}", each) for name, each in mapping(what, value).items()}


def _counters(what: str, value: object) -> Counters:
    fields = Fields(what, value)
    counters = Counters()
    for name, zero in counters.as_dict().items():
        bounds = (0, _MOST) if isinstance(zero, int) else ()
        setattr(counters, name, fields.take(name, integer if bounds else seconds, *bounds))
    fields.end()
    return counters


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
