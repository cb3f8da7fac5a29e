"""An application as it was asked for, which any process can make: here, or each replica of a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from starlette.applications import Starlette

from wasmetal.device import open_device
from wasmetal.errors import WasmetalError
from wasmetal.models import Embedder, Model
from wasmetal.serve import log
from wasmetal.serve.app import application
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.guest_spec import GuestSpec
from wasmetal.serve.keys import Keys
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.loading import Loading
from wasmetal.serve.record import Record
from wasmetal.serve.shelf import Room
from wasmetal.serve.tracing import traces


@dataclass(frozen=True, slots=True)
class Recipe:
    """It can be pickled."""

    models: Sequence[str]
    limits: ServerLimits
    keys: Keys
    loading: Mapping[str, Any]
    """Options of :func:`load_model`."""
    device: str | None = None
    precision: Literal["exact", "standard", "fast"] | None = None
    resident: int | None = None
    memory_bytes: int | None = None
    """That models may take; None: what the device has."""
    idle_seconds: float | None = None
    guests: tuple[GuestSpec, ...] = ()
    """Guests that are models themselves."""
    actors: Path | None = None
    """The folder for conversations; None: none are kept."""
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    log_json: bool = False
    log_prompts: bool = False

    def make(self, stack: ExitStack) -> Starlette:
        """Open the device, load models, make the application. Leaving ``stack`` closes them. Raises WasmetalError."""
        log.configure(as_json=self.log_json)
        opened = stack.enter_context(open_device(self.device, self.precision))
        most = opened.info.memory_bytes if self.memory_bytes is None else self.memory_bytes
        room = Room(self.resident or math.inf, most, self.idle_seconds or math.inf)
        engine = self._engine(Loading(opened, **self.loading), room, stack)
        engine.log_prompts = self.log_prompts
        return application(
            engine, keys=self.keys, hosts=self.hosts, origins=self.origins, observers=self._observers(stack)
        )

    def _engine(self, loading: Loading, room: Room, stack: ExitStack) -> Engine:
        """With what is loaded at the start. What a guest was granted always is, and stays."""
        given = (source for spec in self.guests for source in spec.models.values())
        sources = [*self.models, *dict.fromkeys(source for source in given if source not in self.models)]
        now, later = loading.share_out(sources, room)
        plans = dict(zip(sources, [*now, *later], strict=True))
        first = next((source for source in self.models if not plans[source].plan.embeds), None)
        default = {} if first is None else {"default": first}
        grants = [spec.models or default for spec in self.guests]
        kept = {source for grant in grants for source in grant.values()}
        if embedding := [source for source in kept if plans[source].plan.embeds]:
            raise WasmetalError(f"{embedding[0]} makes embeddings, and cannot be granted to a guest")
        stored = [plans[source] for source in self.models if later and source not in kept]
        if later:
            taken = sum(plans[source].plan.nbytes for source in kept)
            room = replace(room, count=room.count - len(kept), nbytes=room.nbytes - taken)
            if stored and room.count < 1:
                raise WasmetalError(
                    f"guests keep {len(kept)} models loaded, which leaves no place for {stored[0].plan.name}"
                )
        loaded: dict[str, Model | Embedder] = {}
        for source, each in plans.items():
            if now or source in kept:
                loaded[source] = each.load()
                stack.enter_context(loaded[source])
        models = [loaded[source] for source in self.models if source in loaded]
        guests = [_guest(spec, grant, loaded) for spec, grant in zip(self.guests, grants, strict=True)]
        return Engine(models, self.limits, stored=stored, room=room, guests=guests, actors=self.actors)

    def _observers(self, stack: ExitStack) -> list[Callable[[Record], object]]:
        observers: list[Callable[[Record], object]] = [log.write] if self.log_json else []
        if tracing := traces():
            stack.callback(tracing.close)
            observers.append(tracing.write)
        return observers


def _guest(spec: GuestSpec, grant: Mapping[str, str], loaded: Mapping[str, Model | Embedder]) -> GuestModel:
    models = {name: loaded[source] for name, source in grant.items()}
    return spec.make({name: model for name, model in models.items() if isinstance(model, Model)})
