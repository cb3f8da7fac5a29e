"""The manifest as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from wasmetal.actor.json_fields import MOST, Fields, check, hexadecimal, integer, optional, text, tuple_of, values_of
from wasmetal.actor.manifest.chunks import Chunk
from wasmetal.actor.manifest.granted import Descriptor, GrantedModel, Used
from wasmetal.actor.manifest.handles import Handles, OpenedModel, Session
from wasmetal.actor.manifest.instance import Global, Memory, Table
from wasmetal.errors import SnapshotError

HOST = "host"
"""The member of a stored manifest that is not the actor's, but that of the host which runs it."""
VERSION = 1
KIND = "wasmetal-actor"
MAX_NAME = 256
"""Bytes of an actor's name."""
_MAX_TEXT = 1 << 20


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
        """A manifest from what ``json.loads`` gave, but for what a host keeps there (HOST).

        Raises SnapshotError if anything about it is wrong.
        """
        own = {name: each for name, each in value.items() if name != HOST} if isinstance(value, dict) else value
        fields = Fields("the manifest", own)
        kind, version = fields.take("kind", text), fields.take("version", integer, 0, MOST)
        if kind != KIND or version != VERSION:
            raise SnapshotError(f"a snapshot of kind {kind!r}, version {version}; {KIND!r}, version {VERSION} is known")
        program, random = fields.take("program", Fields), fields.take("random", Fields)
        manifest = cls(
            program_name=program.take("name", text),
            program_digest=program.take("digest", hexadecimal, 32),
            actor=fields.take("actor", text, MAX_NAME),
            arguments=fields.take("arguments", tuple_of, _text),
            environment=fields.take("environment", values_of, _text),
            models=fields.take("models", values_of, GrantedModel.from_json),
            folders=fields.take("folders", tuple_of, text),
            random_seed=random.take("seed", hexadecimal, 32),
            random_position=random.take("position", integer, 0, MOST),
            timer=fields.take("timer", optional, integer, 0, 1 << 63),
            clock=fields.take("clock", integer, 0, MOST),
            used=fields.take("used", Used.from_json),
            memories=fields.take("memories", tuple_of, Memory.from_json),
            globals=fields.take("globals", tuple_of, Global.from_json),
            tables=fields.take("tables", tuple_of, Table.from_json),
            descriptors=fields.take("descriptors", tuple_of, Descriptor.from_json),
            handles=fields.take("handles", Handles.from_json),
        )
        chunks = fields.take("chunks", tuple_of, Chunk.from_json)
        for members in (program, random, fields):
            members.end()
        manifest._check(chunks)
        return manifest

    def _check(self, chunks: tuple[Chunk, ...]) -> None:
        """What concerns several fields."""
        named = self.chunks()
        own = set(named)  # an exported file has the program, too
        listed = [chunk for chunk in chunks if chunk in own or chunk.digest != self.program_digest]
        check("the list of chunks", listed == named, len(chunks))
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
