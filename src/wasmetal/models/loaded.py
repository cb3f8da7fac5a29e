"""What every loaded model is to those who grant it to guests, whatever it computes."""

from __future__ import annotations

from enum import Enum
from types import TracebackType
from typing import Protocol, Self

from wasmetal.counters import Counters
from wasmetal.device.base import Device


class Capability(Enum):
    """What a model can be used for; each guest interface asks for one."""

    LANGUAGE = "language"
    """Tokens in, logits out: a ``wasmetal.models.Model``, for ``wasmetal_llm``."""


class LoadedModel(Protocol):
    """A model on a device."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def device(self) -> Device:
        """Where it was loaded."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can be used for."""

    @property
    def counters(self) -> Counters:
        """What loading it moved."""

    def close(self) -> None:
        """Release the device's memory. Idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...
