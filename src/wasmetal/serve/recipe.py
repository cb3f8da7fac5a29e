"""An application as it was asked for, which any process can make: here, or each replica of a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from starlette.applications import Starlette

from wasmetal.device import open_device
from wasmetal.errors import WasmetalError
from wasmetal.models import Embedder, Model
from wasmetal.serve import log
from wasmetal.serve.app import application
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.keys import Keys
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.loading import Loading
from wasmetal.serve.record import Record
from wasmetal.serve.shelf import Room, Stored
from wasmetal.serve.tracing import traces


class GuestRecipe(Protocol):
    """A guest that is to be a model."""

    def load(self, default: Model | None, model_of: Callable[[str], Model]) -> GuestModel:
        """The guest. ``default``: the model that it gets if it names none; ``model_of``: one that it names."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """It can be pickled."""

    models: Sequence[str]
    limits: ServerLimits
    keys: Keys
    loading: Mapping[str, Any]
    """Options of :func:`load_model`."""
    guests: Sequence[GuestRecipe] = ()
    actors: Path | None = None
    device: str | None = None
    precision: Literal["exact", "standard", "fast"] | None = None
    resident: int | None = None
    memory_bytes: int | None = None
    """That models may take; None: what the device has."""
    idle_seconds: float | None = None
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
        loading = Loading(opened, **self.loading)
        now, stored = loading.share_out(self.models, room)
        if stored and (self.guests or self.actors):
            raise WasmetalError(
                "guests and conversations use models that are loaded at the start, and these are to be loaded when "
                "they are asked for, or do not all fit: name fewer, without --resident and --idle-seconds"
            )
        loaded: dict[str, Model | Embedder] = {}

        def load(each: Stored) -> Model | Embedder:
            name = each.plan.name
            if name not in loaded:
                loaded[name] = each.load()
                stack.enter_context(loaded[name])
            return loaded[name]

        def granted(source: str) -> Model:
            """A model for a guest: one that is served, or another."""
            if not isinstance(model := load(loading.stored(source)), Model):
                raise WasmetalError(f"{source} makes embeddings, and cannot be granted to a guest")
            return model

        served = [load(each) for each in now]
        first = next((model for model in served if isinstance(model, Model)), None)
        guests = [each.load(first, granted) for each in self.guests]
        engine = Engine(served, self.limits, stored=stored, room=room, guests=guests, actors=self.actors)
        engine.log_prompts = self.log_prompts
        return application(
            engine, keys=self.keys, hosts=self.hosts, origins=self.origins, observers=self._observers(stack)
        )

    def _observers(self, stack: ExitStack) -> list[Callable[[Record], object]]:
        observers: list[Callable[[Record], object]] = [log.write] if self.log_json else []
        if tracing := traces():
            stack.callback(tracing.close)
            observers.append(tracing.write)
        return observers
