"""How a server's models are loaded: all with the same options, at the start or when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wasmetal.device import Device
from wasmetal.models import Embedder, Model, load_embedder, load_model
from wasmetal.models.planning import Plan, plan
from wasmetal.serve.shelf import Room, Stored

_PLANNED = ("context", "contexts", "kv_type", "quantize")


class Loading:
    """Loads models onto a device."""

    def __init__(self, device: Device, **options: Any) -> None:
        """``options``: of :func:`load_model`."""
        self._device = device
        self._options = options

    def share_out(self, sources: Sequence[str | Path], room: Room) -> tuple[list[Stored], list[Stored]]:
        """Which models are to be loaded at the start, and which when they are asked for: all, if there is no room for
        all of them, or they are to be unloaded when they are idle.

        Raises ModelError if one cannot be used, OutOfDeviceMemoryError if one is too large for the device.
        """
        stored = [self._stored(source) for source in sources]
        fits = len(stored) <= room.count and sum(each.plan.nbytes for each in stored) <= room.nbytes
        return (stored, []) if fits and math.isinf(room.idle_seconds) else ([], stored)

    def _stored(self, source: str | Path) -> Stored:
        planned = plan(source, self._device.info, **{name: self._options[name] for name in _PLANNED})
        return Stored(planned, partial(self._load, source, planned))

    def _load(self, source: str | Path, planned: Plan) -> Model | Embedder:
        if planned.embeds:
            return load_embedder(source, self._device)
        return load_model(source, self._device, **self._options)
