"""What an actor was granted, and must be granted again; what it has used of its limits."""

# ruff: noqa: D102

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from wasmetal.actor.json_fields import MOST, Fields, check, hexadecimal, integer, optional, seconds, text
from wasmetal.counters import Counters


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
        name, digest = fields.take("name", text), fields.take("digest", optional, hexadecimal, 32)
        kv_type = fields.take("kv_type", optional, text, 16)
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
            fields.take("folder", optional, text),
        )
        fields.end()
        kinds = (*cls.STREAMS, "folder")
        check(f"{what}.stands_for", descriptor.stands_for in kinds, descriptor.stands_for)
        folder = descriptor.folder
        check(f"{what}.folder", (folder is not None) == (descriptor.stands_for == "folder"), folder)
        return descriptor


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
            fields.take("disk_bytes", integer, 0, MOST),
            fields.take("files", integer, 0, MOST),
            fields.take("host_seconds", seconds),
        )
        fields.end()
        return used


def _counters(what: str, value: object) -> Counters:
    fields = Fields(what, value)
    counters = Counters()
    for name, zero in counters.as_dict().items():
        bounds = (0, MOST) if isinstance(zero, int) else ()
        setattr(counters, name, fields.take(name, integer if bounds else seconds, *bounds))
    fields.end()
    return counters
