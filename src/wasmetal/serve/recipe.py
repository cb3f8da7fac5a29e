"""An application as it was asked for, which any process can make: here, or each replica of a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from starlette.applications import Starlette

from wasmetal.device import open_device
from wasmetal.models import Embedder, Model
from wasmetal.serve import log
from wasmetal.serve.app import application
from wasmetal.serve.engine import Engine
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
        now, stored = Loading(opened, **self.loading).share_out(self.models, room)
        loaded: list[Model | Embedder] = []
        for each in now:
            loaded.append(each.load())
            stack.enter_context(loaded[-1])
        engine = Engine(loaded, self.limits, stored=stored, room=room)
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
