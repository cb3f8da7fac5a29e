"""What a backend is: it loads models as graphs, and runs them in contexts.

One is made for each guest, and used by one thread at a time. Every method raises :class:`NnRefusal` for what the caller
has done wrong. Other errors are the backend's own failures.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wasmetal.counters import Counters
from wasmetal.device.base import Submission
from wasmetal.nn.tensor import NnTensor, TensorType

Config = Mapping[str, Any]
"""Options of a model or of a context, as JSON has them."""


@dataclass(frozen=True, slots=True)
class Services:
    """What a backend may use of its caller."""

    counters: Counters
    """The caller's, to which what is computed and copied is added."""
    charge: Callable[[int], None]
    """Called with bytes of memory before they are taken, and, negative, once they are released. Raises if that is too
    much."""
    room: Callable[[], int]
    """Bytes that may still be charged."""
    stoppable: Callable[[Callable[[], None]], AbstractContextManager[object]]
    """A ``with`` block around work that takes long. The function is called, on another thread, if the work is to end
    early; the block then raises the reason."""
    drive: Callable[[Generator[Submission | None]], None]
    """Does work on the engine's device in steps: see ``Model.steps``."""
    write: Callable[[bytes], object]
    """The caller's standard output."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model that can be loaded."""

    model: Path | bytes | Any
    """Its file, its bytes, or a model that is loaded already."""
    name: str
    """What messages call it."""
    options: Config = field(default_factory=dict)
    """Options that hold unless the caller gives others."""


class Context(Protocol):
    """One use of a graph: inputs, and what was computed of them."""

    @property
    def inputs(self) -> Sequence[str]:
        """The names of the inputs."""

    @property
    def outputs(self) -> Sequence[str]:
        """The names of the outputs."""

    def set_input(self, index: int, tensor: NnTensor) -> None:
        """Take an input. The bytes are copied."""

    def compute(self) -> None:
        """Compute the outputs."""

    def output(self, index: int) -> NDArray[np.uint8]:
        """An output's bytes [n], which stay as they are until the next call."""

    def output_type(self, index: int) -> tuple[TensorType, tuple[int, ...]] | None:
        """Element type and shape of an output that was computed and is not bound; None if wasi-nn has no such type."""

    def compute_single(self) -> None:
        """Compute the next piece of the output. Raises NnRefusal with END_OF_SEQUENCE when there is no more."""

    def output_single(self, index: int) -> NDArray[np.uint8]:
        """That piece."""

    def fini_single(self) -> None:
        """Give up what is left of the pieces."""

    def bind_input(self, index: int, tensor: NnTensor) -> None:
        """Read an input where it lies, at each computation. Its bytes stay where they are until :meth:`release`."""

    def bind_output(self, index: int, tensor: NnTensor) -> None:
        """Write an output where it is to lie, at each computation."""

    def release(self) -> None:
        """Release everything but the outputs. Idempotent; nothing but outputs is asked for afterwards."""

    def close(self) -> None:
        """Release everything. Idempotent; nothing is asked for afterwards."""


class Graph(Protocol):
    """A loaded model."""

    holds_tensors: bool
    """Whether inputs and outputs are tensors, so that copies of them count; text is control data."""

    def configure(self, config: Config) -> None:
        """Change options for the contexts that are made from now on."""

    def context(self) -> Context:
        """A new context."""

    def close(self) -> None:
        """Release the model. All contexts were released before. Idempotent."""


class Backend(Protocol):
    """Loads models of one kind."""

    def load(self, source: Source, config: Config) -> Graph:
        """Load a model. ``config`` is the caller's."""

    def close(self) -> None:
        """Release what the graphs shared. All of them were closed before. Idempotent."""
