"""Attention of few rows, split over the context: the parts are attended to at the same time, and then joined.

T. Dao, D. Haziza, F. Massa and G. Sizov, "Flash-Decoding for long-context inference", 2023.
"""

from __future__ import annotations

from wasmetal.kernels.catalog import THREADS
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.attention import no_sinks, require_attention
from wasmetal.ops.recorder import Recorder
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
    window: int | None = None,
    sinks: Tensor | None = None,
) -> None:
    """What ``attention`` does, with a context of any length split into as many parts as ``scratch`` has.

    scratch f32 [T, heads, parts, head_dim + 4], at most THREADS parts; see ``scratch_shape``. Raises OpError.
    """
    name = "split_attention"
    fields, cell = require_attention(name, q, k_pages, v_pages, batch, sequences, out, scale, window, sinks)
    rows, heads, head_dim = q.shape
    check.dtypes(name, (DType.F32,), scratch=scratch)
    check.rank(name, 4, scratch=scratch)
    parts = scratch.shape[2]
    check.shape(name, "scratch", scratch, (rows, heads, parts, head_dim + 4))
    check.packed(name, scratch=scratch)
    check.require(parts <= THREADS, f"{name}: scratch has {parts} parts; at most {THREADS} are supported")
    check.separate(name, scratch, q=q, k_pages=k_pages, v_pages=v_pages, batch=batch, sequences=sequences)
    check.separate(name, out, scratch=scratch)
    if sinks:
        check.separate(name, scratch, sinks=sinks)
    units = fields["kv_heads"] * _passes(heads, fields["kv_heads"])
    for part in rec.parts(name, Work(rows, 1, heads * (cell + parts * GROUP), 2 * ROW, aligned=(q, out))):
        q_rows, out_rows, some = (tensor.rows(part.top, part.bottom) for tensor in (q, out, scratch))
        which = {"batch_row": part.top, "rows": part.rows}
        joining = part.rows * heads * parts * GROUP
        rec.dispatch(
            f"attention_part_{k_pages.dtype.suffix}",
            (q_rows, k_pages, v_pages, batch, sequences, some),
            part.rows * units * parts,
            part.work - joining,
            parts=parts,
            **which,
            **fields,
        )
        rec.dispatch(
            "attention_merge",
            (some, batch, sinks or batch, out_rows),
            part.rows * heads,
            joining,
            heads=heads,
            head_dim=head_dim,
            out_stride=out.row_stride,
            parts=parts,
            **which,
            **no_sinks(sinks),
        )


def _passes(heads: int, kv_heads: int) -> int:
    """Groups that it takes to attend with all heads of a KV head."""
    return -(-heads // kv_heads // HEADS)
