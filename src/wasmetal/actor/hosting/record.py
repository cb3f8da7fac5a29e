"""What a host keeps with an actor's snapshot: in the manifest, as its member ``host``, so that both change at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from wasmetal.actor.hosting.answered import Answered
from wasmetal.actor.json_fields import Fields, check, integer, text
from wasmetal.actor.manifest import HOST, Manifest
from wasmetal.actor.store import Store

VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What a host knows of an actor that the actor does not know itself."""

    kind: str
    """The name of its :class:`ActorType`."""
    answered: Answered

    def beside(self, manifest: Manifest) -> dict[str, Any]:
        """The manifest with this record, to be stored."""
        own = {"version": VERSION, "type": self.kind, "answered": self.answered.to_json()}
        return {**manifest.to_json(), HOST: own}

    @classmethod
    def from_json(cls, value: object, keys: int) -> Self:
        """From a stored manifest's member. ``keys``: how many are remembered. Raises SnapshotError."""
        fields = Fields(f"the manifest's {HOST}", value)
        version = fields.take("version", integer, 0, 1 << 31)
        check(f"the version of {fields.what}", version == VERSION, version)
        record = cls(fields.take("type", text), fields.take("answered", Answered.from_json, keys))
        fields.end()
        return record


def timer_of(store: Store, actor_id: str) -> float | None:
    """When a stored actor's timer is due, in seconds since 1970; None if it is not set. Raises SnapshotError."""
    with store.load(actor_id) as snapshot:
        due = snapshot.manifest.get("timer")
    return due / 1e9 if type(due) is int else None


def split(stored: Mapping[str, Any], keys: int) -> tuple[Manifest, Record | None]:
    """The actor's manifest, and the host's record if a host has stored it. Raises SnapshotError."""
    record = Record.from_json(stored[HOST], keys) if HOST in stored else None
    return Manifest.from_json(stored), record
