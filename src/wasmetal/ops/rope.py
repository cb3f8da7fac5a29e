"""Rotary positions, also on the way to the key-value cache."""

from __future__ import annotations

from wasmetal.kernels.catalog import THREADS
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.kv_append import append_step, require_rows
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import ROW, Work

_PAIR = 48
"""Operations that it takes to turn a pair."""


def rope(rec: Recorder, x: Tensor, table: Tensor, batch: Tensor, *, interleaved: bool) -> None:
    """Rotary position embedding: rotate pairs of elements of x by the angles of their row's position, in place.

    x f32 [T, heads, head_dim], rows may be strided; table f32 [positions, rot / 2, 2] of (cos, sin), rot <= head_dim;
    elements past rot are unchanged. Positions are clamped to the table. Pairs are (2i, 2i + 1) if
    ``interleaved`` (GGUF's llama), else (i, i + rot / 2) (NeoX). J. Su et al., "RoFormer", 2021. Raises OpError.
    """
    check.dtypes("rope", (DType.F32,), x=x)
    check.rank("rope", 3, x=x)
    rows, heads, head_dim = x.shape
    positions, pairs = require_table("rope", table, head_dim)
    check.batch("rope", batch, rows)
    check.separate("rope", x, table=table, batch=batch)
    for part in rec.parts("rope", Work(rows, heads, _PAIR * pairs, column_step=heads, aligned=(x,))):
        rec.dispatch(
            "rope",
            (x.rows(part.top, part.bottom), table, batch),
            -(-part.rows * heads * pairs // THREADS),
            part.work,
            batch_row=part.top,
            rows=part.rows,
            heads=heads,
            head_dim=head_dim,
            x_stride=x.row_stride,
            pairs=pairs,
            positions=positions,
            interleaved=int(interleaved),
        )


def rope_append(
    rec: Recorder,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    batch: Tensor,
    sequences: Tensor,
    *,
    interleaved: bool,
) -> None:
    """What ``rope`` of q and of k and ``kv_append`` of k and v do, in one kernel; but k stays as it is.

    q f32 [T, heads, head_dim]; k, v f32 [T, kv_heads, head_dim]; the rest is as there. Raises OpError.
    """
    name = "rope_append"
    check.dtypes(name, (DType.F32,), q=q)
    check.rank(name, 3, q=q)
    pools = require_rows(name, k, v, k_pages, v_pages, batch, sequences)
    rows, kv_heads, head_dim = k.shape
    heads = q.shape[1]
    check.shape(name, "q", q, (rows, heads, head_dim))
    positions, pairs = require_table(name, table, head_dim)
    check.separate(name, q, k=k, v=v, table=table, k_pages=k_pages, v_pages=v_pages, batch=batch, sequences=sequences)
    check.separate(name, k_pages, table=table)
    check.separate(name, v_pages, table=table)
    columns = kv_heads * head_dim
    threads = heads * pairs + 2 * (columns // append_step(k_pages.dtype))
    work = Work(rows, 1, _PAIR * (heads * pairs + columns), ROW, aligned=(q, k, v))
    for part in rec.parts(name, work):
        rec.dispatch(
            f"{name}_{k_pages.dtype.suffix}",
            (
                *(tensor.rows(part.top, part.bottom) for tensor in (q, k, v)),
                *(table, k_pages, v_pages, batch, sequences),
            ),
            -(-part.rows * threads // THREADS),
            part.work,
            batch_row=part.top,
            rows=part.rows,
            heads=heads,
            columns=columns,
            head_dim=head_dim,
            q_stride=q.row_stride,
            k_stride=k.row_stride,
            v_stride=v.row_stride,
            pairs=pairs,
            positions=positions,
            interleaved=int(interleaved),
            **pools,
        )


def require_table(op: str, table: Tensor, head_dim: int) -> tuple[int, int]:
    """(positions, pairs) of a table of rotations for such heads. Raises OpError."""
    check.dtypes(op, (DType.F32,), table=table)
    check.rank(op, 3, table=table)
    positions, pairs, _ = table.shape
    check.shape(op, "table", table, (positions, pairs, 2))
    check.require(2 * pairs <= head_dim, f"{op}: the table rotates {2 * pairs} elements of a head of {head_dim}")
    check.packed(op, table=table)
    return positions, pairs
