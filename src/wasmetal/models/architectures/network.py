"""The interface of a language model's network, whatever its architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wasmetal.models.buffers import BufferGroup
from wasmetal.ops import Recorder, Tensor

KVPools = tuple[Tensor, Tensor]
"""One layer's pools of keys and of values, each [pages, page size, kv_heads, head_dim]."""


class Config(Protocol):
    """What sessions and the KV cache need to know of a network."""

    @property
    def context_length(self) -> int:
        """Positions that the model was trained for."""

    @property
    def embedding_length(self) -> int:
        """Elements of a row of the residual stream."""

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""

    @property
    def block_count(self) -> int:
        """Number of layers, each with its own keys and values."""

    @property
    def head_count_kv(self) -> int:
        """Number of key and value heads per layer."""

    @property
    def head_dim(self) -> int:
        """Elements of a head."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of a forward pass over T rows, which the host writes before each submission."""

    ids: Tensor
    """I32 [T]: the token of each row."""
    batch: Tensor
    """I32 [1 + T, 2]: each row's position and sequence (``wasmetal.ops.batch``)."""
    sequences: Tensor
    """I32 [S, 1 + P]: each sequence's length and page table."""

    def rows(self, count: int) -> Inputs:
        """Those of a pass over the first ``count`` rows."""
        return Inputs(self.ids.rows(0, count), self.batch.rows(0, 1 + count), self.sequences)


class Network(Protocol):
    """The network of one model file. Making it checks the file; :meth:`load` loads the weights onto a device."""

    @property
    def config(self) -> Config:
        """The network's dimensions."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that the device reads for each decoded token, once loaded."""

    @property
    def mixes_experts(self) -> bool:
        """Whether a row's products are computed with those of other rows that chose the same expert."""

    def load(self, buffers: BufferGroup, context: int, rows: int) -> None:
        """Load the weights onto the device, with room for activations of up to ``rows`` rows at positions <
        ``context``; once, because what was read of the file is given up. Raises OutOfDeviceMemoryError.
        """

    def body(self, rec: Recorder, inputs: Inputs, cache: Sequence[KVPools]) -> None:
        """Record everything but the head, for all rows of ``inputs.ids``."""

    def head(self, rec: Recorder, rows: Tensor | None, logits: Tensor, batch: Tensor | None = None) -> None:
        """Record the logits, f32 [N, vocab_size], of some of the body's rows; ``rows``, I32 [N], holds their indices.

        Without ``rows`` they are those of the first N, which it may overwrite. ``batch``: batch metadata of the N rows,
        of which any number may be valid; None if all are.
        """

    def states(self, rec: Recorder, rows: Tensor, out: Tensor, batch: Tensor) -> None:
        """Record some of the body's rows as the head norms them: out f32 [N, embedding_length].

        ``rows``, I32 [N], holds their indices; ``batch`` is their batch metadata: any number of them may be valid.
        """
