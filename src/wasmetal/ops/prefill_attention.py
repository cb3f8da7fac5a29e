"""Attention of many rows: keys and values are read once for several queries.

T. Dao, D. Y. Fu, S. Ermon, A. Rudra and C. Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention with
IO-Awareness", 2022.
"""

from __future__ import annotations

from wasmetal.ops.attention import no_sinks, require_attention
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import ROW, Work

QUERIES = 16
"""Queries of a group: of the heads that share a KV head, in as many rows as it takes."""


def prefill_attention(
    rec: Recorder,
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: Tensor,
    sequences: Tensor,
    out: Tensor,
    scale: float,
    *,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> None:
    """What ``attention`` does, faster if rows that follow each other are of the same sequence. Raises OpError."""
    name = "prefill_attention"
    fields, cell = require_attention(name, q, k_pages, v_pages, batch, sequences, out, scale, window, sinks)
    rows, heads, _ = q.shape
    kv_heads = k_pages.shape[2]
    sharing = heads // kv_heads
    height = max(1, QUERIES // sharing)
    for part in rec.parts(name, Work(rows, 1, heads * cell, ROW, row_step=height, aligned=(q, out))):
        rec.dispatch(
            f"{name}_{k_pages.dtype.suffix}",
            (
                *(q.rows(part.top, part.bottom), k_pages, v_pages, batch, sequences, sinks or sequences),
                out.rows(part.top, part.bottom),
            ),
            -(-part.rows // height) * kv_heads * -(-sharing // QUERIES),
            part.work,
            batch_row=part.top,
            rows=part.rows,
            out_stride=out.row_stride,
            **fields,
            **no_sinks(sinks),
        )
