"""Attention of few rows, split over the context: the parts are attended to at the same time, and then joined.

T. Dao, D. Haziza, F. Massa and G. Sizov, "Flash-Decoding for long-context inference", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

from wasmetal.kernels.catalog import THREADS
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.attention import no_sinks, require_attention
from wasmetal.ops.kv_append import require_rows
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.rope import require_table
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import GROUP, ROW, Work

FEW = 64
"""Rows of a batch up to which it is mostly of sequences that decode, and split_attention is the faster one."""
HEADS = 4
"""Heads of a KV head that a group attends with, at most."""
_GROUPS = 512
"""Groups among which the work is split: about four for each multiprocessor of a large GPU."""
_FEWEST, _MOST = 8, 64
"""Parts of a context, at least, since few of the rows may be valid; and at most, since joining them has its cost."""


def scratch_shape(rows: int, heads: int, kv_heads: int, head_dim: int) -> tuple[int, int, int, int]:
    """The shape of the scratch memory with which ``split_attention`` makes as many parts as suit a GPU."""
    parts = _GROUPS // (rows * kv_heads * _passes(heads, kv_heads))
    return rows, heads, min(max(parts, _FEWEST), _MOST), head_dim + 4


def counters_shape(rows: int, heads: int, kv_heads: int) -> tuple[int, int]:
    """The shape of the counters with which one kernel attends and joins."""
    return rows, kv_heads * _passes(heads, kv_heads)


def split_attention(
    rec: Recorder,
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: Tensor,
    sequences: Tensor,
    out: Tensor,
    scale: float,
    *,
    scratch: Tensor,
    counters: Tensor | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> None:
    """What ``attention`` does, with a context of any length split into as many parts as ``scratch`` has.

    scratch f32 [T, heads, parts, head_dim + 4], at most THREADS parts; see ``scratch_shape``. With ``counters``, I32,
    see ``counters_shape``, one kernel does it: only on a device that ``joins``. They must be 0, and are 0 again
    afterwards. Raises OpError.
    """
    name = "split_attention"
    fields, cell = require_attention(name, q, k_pages, v_pages, batch, sequences, out, scale, window, sinks)
    rows, heads, _ = q.shape
    parts = _require_scratch(rec, name, scratch, counters, q, k_pages, v_pages, batch, sequences, out, sinks)
    units = k_pages.shape[2] * _passes(heads, k_pages.shape[2])
    for part in rec.parts(name, Work(rows, 1, heads * (cell + parts * GROUP), 2 * ROW, aligned=(q, out))):
        q_rows, out_rows, some = (tensor.rows(part.top, part.bottom) for tensor in (q, out, scratch))
        joining = part.rows * heads * parts * GROUP
        groups = min(part.rows * units * parts, max(part.rows * units, _GROUPS))
        joined: Sequence[Tensor] = ()
        how: dict[str, int] = {}
        if counters:
            joined, how = (counters.rows(part.top, part.bottom), sinks or batch, out_rows), no_sinks(sinks)
            how["out_stride"] = out.row_stride
        rec.dispatch(
            f"attention_{'split' if counters else 'part'}_{k_pages.dtype.suffix}",
            (q_rows, k_pages, v_pages, batch, sequences, some, *joined),
            groups,
            part.work if counters else part.work - joining,
            parts=parts,
            groups=groups,
            batch_row=part.top,
            rows=part.rows,
            **how,
            **fields,
        )
        if not counters:
            _merge(rec, some, batch, sinks, out_rows, part.top, joining)


def rope_split_attention(
    rec: Recorder,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: Tensor,
    sequences: Tensor,
    out: Tensor,
    scale: float,
    *,
    interleaved: bool,
    scratch: Tensor,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> None:
    """What ``rope_append`` and then ``split_attention`` do, for a single row; but q stays as it is, and the row attends
    to its own key and value before they are rounded to the type of the cache.

    No two positions of the sequence may have the same slot. Raises OpError.
    """
    name = "rope_split_attention"
    check.require(q.shape[0] == 1, f"{name}: {q.shape[0]} rows; it is for a single one")
    fields, cell = require_attention(name, q, k_pages, v_pages, batch, sequences, out, scale, window, sinks)
    del fields["q_stride"]
    require_rows(name, k, v, k_pages, v_pages, batch, sequences)
    _, heads, head_dim = q.shape
    kv_heads = k_pages.shape[2]
    check.shape(name, "k", k, (1, kv_heads, head_dim))
    positions, pairs = require_table(name, table, head_dim)
    parts = _require_scratch(rec, name, scratch, None, q, k_pages, v_pages, batch, sequences, out, sinks)
    for written in (out, scratch, k_pages, v_pages):
        check.separate(name, written, k=k, v=v, table=table)
    check.separate(name, k_pages, q=q)
    check.separate(name, v_pages, q=q)
    rec.dispatch(
        f"rope_attention_part_{k_pages.dtype.suffix}",
        (q, k, v, table, k_pages, v_pages, k_pages, v_pages, batch, sequences, scratch),
        kv_heads * _passes(heads, kv_heads) * parts,
        heads * cell + 2 * ROW,
        pairs=pairs,
        positions=positions,
        interleaved=int(interleaved),
        parts=parts,
        **fields,
    )
    _merge(rec, scratch, batch, sinks, out, 0, heads * parts * GROUP)


def _require_scratch(
    rec: Recorder,
    op: str,
    scratch: Tensor,
    counters: Tensor | None,
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: Tensor,
    sequences: Tensor,
    out: Tensor,
    sinks: Tensor | None,
) -> int:
    """How many parts the scratch memory has. Raises OpError."""
    rows, heads, head_dim = q.shape
    check.dtypes(op, (DType.F32,), scratch=scratch)
    check.rank(op, 4, scratch=scratch)
    parts = scratch.shape[2]
    check.shape(op, "scratch", scratch, (rows, heads, parts, head_dim + 4))
    check.packed(op, scratch=scratch)
    check.require(parts <= THREADS, f"{op}: scratch has {parts} parts; at most {THREADS} are supported")
    if counters:
        check.require(rec.info.joins, f"{op}: kernels of this device cannot join parts; use no counters")
        check.dtypes(op, (DType.I32,), counters=counters)
        check.shape(op, "counters", counters, counters_shape(rows, heads, k_pages.shape[2]))
        check.packed(op, counters=counters)
        check.separate(op, counters, scratch=scratch)
    for written in (scratch, counters) if counters else (scratch,):
        check.separate(op, written, q=q, k_pages=k_pages, v_pages=v_pages, batch=batch, sequences=sequences)
        check.separate(op, out, scratch=written)
        if sinks:
            check.separate(op, written, sinks=sinks)
    return parts


def _merge(
    rec: Recorder, scratch: Tensor, batch: Tensor, sinks: Tensor | None, out: Tensor, top: int, work: int
) -> None:
    """Join the parts of some rows, of which the first is row ``top`` of the batch."""
    rows, heads, parts, width = scratch.shape
    rec.dispatch(
        "attention_merge",
        (scratch, batch, sinks or batch, out),
        rows * heads,
        work,
        batch_row=top,
        rows=rows,
        heads=heads,
        head_dim=width - 4,
        out_stride=out.row_stride,
        parts=parts,
        **no_sinks(sinks),
    )


def _passes(heads: int, kv_heads: int) -> int:
    """Groups that it takes to attend with all heads of a KV head."""
    return -(-heads // kv_heads // HEADS)
