"""Self-attention of a decoder's rows: which ops it takes depends on the device and on how many rows there are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from wasmetal.models.architectures.network import Inputs, KVPools
from wasmetal.models.buffers import BufferGroup
from wasmetal.ops import (
    DType,
    Recorder,
    Tensor,
    attention,
    counters_shape,
    kv_append,
    prefill_attention,
    rope,
    rope_append,
    rope_split_attention,
    scratch_shape,
    split_attention,
)
from wasmetal.ops.split_attention import FEW


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """What the layers of a model have in common, and their scratch memory."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """What the products of queries and keys are multiplied by."""
    interleaved: bool
    """Whether the pairs that RoPE rotates are adjacent."""
    scratch: Tensor
    """As much as any number of rows needs."""
    counters: Tensor
    """I32, for as many rows; 0 between one op and the next."""

    @classmethod
    def allocate(
        cls, buffers: BufferGroup, rows: int, heads: int, kv_heads: int, head_dim: int, scale: float, interleaved: bool
    ) -> SelfAttention:
        """With room for up to ``rows`` rows. Raises OutOfDeviceMemoryError."""
        sizes = (math.prod(scratch_shape(few, heads, kv_heads, head_dim)) for few in (1, min(rows, FEW)))
        counters = buffers.tensor(*counters_shape(min(rows, FEW), heads, kv_heads), dtype=DType.I32)
        return cls(heads, kv_heads, head_dim, scale, interleaved, buffers.tensor(max(sizes)), counters)

    def __call__(
        self,
        rec: Recorder,
        qkv: Tensor,
        pools: KVPools,
        inputs: Inputs,
        out: Tensor,
        *,
        table: Tensor | None,
        window: int | None,
        sinks: Tensor | None,
    ) -> None:
        """Turn queries and keys by a ``table`` of angles, if there is one; append keys and values to the pools; attend.

        qkv [T, (heads + 2 * kv_heads) * head_dim], of which the queries and keys may be overwritten; out
        [T, heads * head_dim].
        """
        rows, q_end, k_end = qkv.shape[0], self.heads * self.head_dim, (self.heads + self.kv_heads) * self.head_dim
        bounds = (0, q_end), (q_end, k_end), (k_end, qkv.shape[1])
        q, k, v = (as_heads(qkv.columns(*ends), self.head_dim) for ends in bounds)
        paged = *pools, inputs.batch, inputs.sequences
        fuses = rec.info.fuses
        how: dict[str, Any] = {"window": window, "sinks": sinks}
        if fuses and rows == 1 and table:
            scratch, turned = self._scratch(rows), self.interleaved
            rope_split_attention(
                rec, q, k, v, table, *paged, out, self.scale, interleaved=turned, scratch=scratch, **how
            )
            return
        if fuses and table:
            rope_append(rec, q, k, v, table, *paged, interleaved=self.interleaved)
        else:
            if table:
                q_and_k = as_heads(qkv.columns(0, k_end), self.head_dim)
                rope(rec, q_and_k, table, inputs.batch, interleaved=self.interleaved)
            kv_append(rec, k, v, *paged)
        if fuses and rows <= FEW:
            counters = self.counters.rows(0, rows) if rec.info.joins else None
            split_attention(rec, q, *paged, out, self.scale, scratch=self._scratch(rows), counters=counters, **how)
        else:
            (prefill_attention if fuses else attention)(rec, q, *paged, out, self.scale, **how)

    def _scratch(self, rows: int) -> Tensor:
        shape = scratch_shape(rows, self.heads, self.kv_heads, self.head_dim)
        return self.scratch.rows(0, math.prod(shape)).reshape(*shape)


def as_heads(x: Tensor, head_dim: int) -> Tensor:
    """[T, heads * head_dim] as [T, heads, head_dim]."""
    return replace(x, shape=(x.shape[0], x.shape[1] // head_dim, head_dim))
