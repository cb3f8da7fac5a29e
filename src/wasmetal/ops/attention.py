"""Attention over the paged key-value cache.

``batch`` holds the position and the sequence of each row, ``sequences`` the length and the page table of each sequence
(``wasmetal.ops.batch``); how the cache's pools hold a position is described in ``wasmetal.ops.pools``.
"""

from __future__ import annotations

from typing import Any

from wasmetal.kernels.catalog import NO_SINKS
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.pools import require_pools
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import GROUP, ROW, Work

_ELEMENT, _POSITION = 8, 256
"""Operations of attention for each element of a position's key and value, and for the position itself."""
MAX_HEAD_DIM = 256
"""The attention kernels keep a query and their partial sums in group memory of this size."""


def attention(
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
    """Causal grouped-query attention over the paged cache, which must already hold the valid rows' keys and values.

    q f32 [T, heads, head_dim], rows may be strided; pages [pages, page_size, kv_heads, head_dim]; head_dim a multiple
    of 4, at most 256; heads a multiple of kv_heads, head h reading kv head h * kv_heads / heads; out f32
    [T, heads * head_dim], rows may be strided. A row sees the positions of its sequence up to its own, of those only
    the last ``window`` if that is given (I. Beltagy et al., "Longformer", 2020), and gets zeros if it sees none. Page
    numbers past the pool are clamped to its last page. ``sinks``, f32 [heads], are scores of one more position for each
    head, whose value is zero (G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2024, and
    gpt-oss). Raises OpError.
    """
    fields, cell = require_attention("attention", q, k_pages, v_pages, batch, sequences, out, scale, window, sinks)
    rows, heads, _ = q.shape
    for part in rec.parts("attention", Work(rows, heads, cell, ROW, aligned=(q, out))):
        rec.dispatch(
            f"attention_{k_pages.dtype.suffix}",
            (
                *(q.rows(part.top, part.bottom), k_pages, v_pages, batch, sequences, sinks or sequences),
                out.rows(part.top, part.bottom),
            ),
            part.rows * part.columns,
            part.work,
            batch_row=part.top,
            rows=part.rows,
            first_head=part.left,
            head_count=part.columns,
            out_stride=out.row_stride,
            **fields,
            **no_sinks(sinks),
        )


def no_sinks(sinks: Tensor | None) -> dict[str, int]:
    """What tells kernels that there are no sinks."""
    return {} if sinks else {"sinks_offset": NO_SINKS}


def require_attention(
    op: str,
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: Tensor,
    sequences: Tensor,
    out: Tensor,
    scale: float,
    window: int | None,
    sinks: Tensor | None,
) -> tuple[dict[str, Any], int]:
    """The tensors are as ``attention`` asks for. Returns (parameters of its kernels, operations of a row's head).

    Raises OpError.
    """
    check.dtypes(op, (DType.F32,), q=q, out=out)
    check.rank(op, 3, q=q)
    check.rank(op, 4, k_pages=k_pages)
    rows, heads, head_dim = q.shape
    kv_heads = k_pages.shape[2]
    pools = require_pools(op, k_pages, v_pages, sequences, kv_heads, head_dim)
    check.require(heads % kv_heads == 0, f"{op}: {heads} heads are not a multiple of {kv_heads} kv heads")
    check.require(head_dim <= MAX_HEAD_DIM, f"{op}: a head of {head_dim}; at most {MAX_HEAD_DIM} is supported")
    check.shape(op, "out", out, (rows, heads * head_dim))
    check.batch(op, batch, rows)
    check.separate(op, out, q=q, k_pages=k_pages, v_pages=v_pages, batch=batch, sequences=sequences)
    check.require(window is None or 0 < window < 2**31, f"{op}: a window of {window} positions; 1 to 2^31 - 1")
    if sinks:
        check.dtypes(op, (DType.F32,), sinks=sinks)
        check.shape(op, "sinks", sinks, (heads,))
        check.packed(op, sinks=sinks)
        check.separate(op, out, sinks=sinks)
    positions = min(pools["pages"], pools["table_length"]) * pools["page_size"]
    if window:
        positions = min(positions, window)
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "q_stride": q.row_stride}
    fields = {**shape, **pools, "scale": scale, "window": window or 0}
    return fields, positions * (_ELEMENT * head_dim + _POSITION) + GROUP
