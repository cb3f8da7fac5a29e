"""Guests that clients see as models: ``wasmetal serve --guest``."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wasmetal.actor.program import ActorProgram
from wasmetal.host.grants import Dir
from wasmetal.host.limits import Limits
from wasmetal.serve.limits import ServerLimits

if TYPE_CHECKING:
    from wasmetal.models import Model

_OVERHEAD = 64 << 20
"""Device memory of a guest, beside its sessions."""
_CONTEXTS = 4
"""Contexts of each model that a guest's sessions may hold, as far as the KV cache has them."""
_SEEDS = 2**53
"""Numbers that every reader of JSON reads exactly."""


@dataclass(frozen=True, slots=True)
class GuestModel:
    """A guest, and what it is granted."""

    name: str
    """Under which clients ask for it."""
    program: ActorProgram
    models: Mapping[str, Model] = field(default_factory=dict)
    """By the guest's names."""
    dirs: Mapping[str, str | Path | Dir] = field(default_factory=dict)
    """By the guest's names."""

    def limits(self, server: ServerLimits) -> Limits:
        """Of one guest."""
        held = sum(model.context_length * model.cache.position_bytes for model in self.models.values())
        return Limits(
            memory_bytes=server.memory_bytes,
            device_bytes=_OVERHEAD + _CONTEXTS * held,
            wall_seconds=server.seconds,
            disk_bytes=server.disk_bytes,
        )


def message(
    messages: Sequence[Mapping[str, str]],
    *,
    continues: bool = False,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> bytes:
    """A request as guests get it. ``continues``: whether the messages go on with the actor's conversation, of which
    they are the whole otherwise."""
    chosen = secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS
    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": chosen}
    given = {name: value for name, value in settings.items() if value is not None}
    head = {"messages": list(messages), "continues": continues}
    return json.dumps(head | given, ensure_ascii=False).encode(errors="replace")
