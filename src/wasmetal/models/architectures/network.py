"""What a language model's network is to the rest of the package, whatever its architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wasmetal.models.buffers import BufferGroup
from wasmetal.ops import Recorder, Tensor

KVPools = tuple[Tensor, Tensor]
"""One layer's pools of keys and of values, each f32 [pages, page size, kv_heads, head_dim]."""


class Config(Protocol):
    """What sessions and the KV cache need to know of a network."""

    @property
    def context_length(self) -> int:
        """Positions that the model was trained on."""

    @property
    def vocab_size(self) -> int:
        """Tokens that it knows."""

    @property
    def block_count(self) -> int:
        """Layers, each with keys and values of its own."""

    @property
    def head_count_kv(self) -> int:
        """Heads of keys and values in a layer."""

    @property
    def head_dim(self) -> int:
        """Elements of a head."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a forward pass over T rows reads besides weights and cache; the host writes it before each submission."""

    ids: Tensor
    """I32 [T]: the token of each row."""
    batch: Tensor
    """I32 [1 + T, 2]: each row's position and sequence (``wasmetal.ops.batch``)."""
    sequences: Tensor
    """I32 [S, 1 + P]: each sequence's length and page table."""


class Network(Protocol):
    """The network of one model file: made from the file, which is checked then; loaded onto a device afterwards."""

    @property
    def config(self) -> Config:
        """Its dimensions."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that the device reads for each decoded token, once loaded."""

    def load(self, buffers: BufferGroup, context: int, rows: int) -> None:
        """Bring the weights to the device, with room for activations of up to ``rows`` rows at positions < ``context``.

        Raises OutOfDeviceMemoryError.
        """

    def body(self, rec: Recorder, inputs: Inputs, cache: Sequence[KVPools]) -> None:
        """Record everything but the head, for as many rows as ``inputs.ids`` has."""

    def head(self, rec: Recorder, row: Tensor, logits: Tensor) -> None:
        """Record the logits, f32 [vocab_size], of one of the body's rows, whose number is in ``row``, I32 [1]."""
