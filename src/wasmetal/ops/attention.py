"""Rotary positions, the paged key-value cache and attention over it.

A cache is a pool of pages [pages, page_size, kv_heads, head_dim]; ``page_table`` (I32 [n]) names the page of each run
of ``page_size`` positions, so that sessions can share pages (W. Kwon et al., "PagedAttention", 2023). The step tells
how many rows are live and at which position the first one stands.
"""

from __future__ import annotations

from wasmetal.kernels.catalog import THREADS
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor

MAX_HEAD_DIM = 256
"""The attention kernels keep a query and their partial sums in group memory of this size."""


def rope(rec: Recorder, x: Tensor, table: Tensor, step: Tensor, *, interleaved: bool) -> None:
    """Rotate pairs of elements of x by the angles of their row's position, in place. Raises OpError.

    x f32 [T, heads, head_dim], rows may be strided; table f32 [positions, rot / 2, 2] of (cos, sin), rot <= head_dim;
    elements past rot stay. Row t stands at ``step.position + t``, clamped to the table. Pairs are (2i, 2i + 1) where
    ``interleaved`` (GGUF's llama), else (i, i + rot / 2) (NeoX). J. Su et al., "RoFormer", 2021.
    """
    check.dtypes("rope", (DType.F32,), x=x, table=table)
    check.rank("rope", 3, x=x, table=table)
    rows, heads, head_dim = x.shape
    positions, pairs, _ = table.shape
    check.shape("rope", "table", table, (positions, pairs, 2))
    check.require(2 * pairs <= head_dim, f"rope: the table turns {2 * pairs} elements of a head of {head_dim}")
    check.packed("rope", table=table)
    check.step("rope", step)
    check.separate("rope", x, table=table, step=step)
    rec.dispatch(
        "rope",
        (x, table, step),
        -(-rows * heads * pairs // THREADS),
        rows=rows,
        heads=heads,
        head_dim=head_dim,
        x_stride=x.row_stride,
        pairs=pairs,
        positions=positions,
        interleaved=int(interleaved),
    )


def kv_append(
    rec: Recorder, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, step: Tensor
) -> None:
    """Write the live rows of k and v to the slots of their positions. Raises OpError.

    k, v f32 [T, kv_heads, head_dim], rows may be strided; pages f32 or f16 [pages, page_size, kv_heads, head_dim].
    Rows whose position is past the page table are dropped; page numbers past the pool are clamped to its last page.
    """
    check.dtypes("kv_append", (DType.F32,), k=k, v=v)
    check.rank("kv_append", 3, k=k)
    rows, kv_heads, head_dim = k.shape
    check.shape("kv_append", "v", v, k.shape)
    pages, page_size = _pool("kv_append", k_pages, v_pages, page_table, kv_heads, head_dim)
    check.step("kv_append", step)
    check.separate("kv_append", k_pages, k=k, v=v, v_pages=v_pages, page_table=page_table, step=step)
    check.separate("kv_append", v_pages, k=k, v=v, page_table=page_table, step=step)
    columns = kv_heads * head_dim
    rec.dispatch(
        f"kv_append_{k_pages.dtype.suffix}",
        (k, v, k_pages, v_pages, page_table, step),
        -(-rows * columns // 4 // THREADS),
        rows=rows,
        columns=columns,
        k_stride=k.row_stride,
        v_stride=v.row_stride,
        pages=pages,
        page_size=page_size,
        table_length=page_table.shape[0],
    )


def attention(
    rec: Recorder,
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    step: Tensor,
    out: Tensor,
    scale: float,
) -> None:
    """Causal grouped-query attention over the paged cache, which holds the live rows' keys and values already.

    q f32 [T, heads, head_dim], rows may be strided; pages f32 or f16 [pages, page_size, kv_heads, head_dim]; head_dim a
    multiple of 4, at most 256; heads a multiple of kv_heads, head h reading kv head h * kv_heads / heads; out f32
    [T, heads * head_dim], rows may be strided. Row t sees positions 0 .. ``step.position + t``. Positions past the page
    table are not seen; page numbers past the pool are clamped to its last page. Raises OpError.
    """
    check.dtypes("attention", (DType.F32,), q=q, out=out)
    check.rank("attention", 3, q=q)
    check.rank("attention", 4, k_pages=k_pages)
    rows, heads, head_dim = q.shape
    kv_heads = k_pages.shape[2]
    pages, page_size = _pool("attention", k_pages, v_pages, page_table, kv_heads, head_dim)
    check.require(heads % kv_heads == 0, f"attention: {heads} heads are no multiple of {kv_heads} kv heads")
    check.require(head_dim <= MAX_HEAD_DIM, f"attention: a head of {head_dim}; at most {MAX_HEAD_DIM} is supported")
    check.shape("attention", "out", out, (rows, heads * head_dim))
    check.step("attention", step)
    check.separate("attention", out, q=q, k_pages=k_pages, v_pages=v_pages, page_table=page_table, step=step)
    rec.dispatch(
        f"attention_{k_pages.dtype.suffix}",
        (q, k_pages, v_pages, page_table, step, out),
        rows * heads,
        rows=rows,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_stride=q.row_stride,
        out_stride=out.row_stride,
        pages=pages,
        page_size=page_size,
        table_length=page_table.shape[0],
        scale=scale,
    )


def _pool(
    op: str, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_heads: int, head_dim: int
) -> tuple[int, int]:
    """(pages, page size) of a cache for such heads."""
    check.dtypes(op, (DType.F32, DType.F16), k_pages=k_pages)
    check.dtypes(op, (k_pages.dtype,), v_pages=v_pages)
    check.dtypes(op, (DType.I32,), page_table=page_table)
    check.rank(op, 4, k_pages=k_pages)
    check.rank(op, 1, page_table=page_table)
    pages, page_size = k_pages.shape[:2]
    check.shape(op, "k_pages", k_pages, (pages, page_size, kv_heads, head_dim))
    check.shape(op, "v_pages", v_pages, k_pages.shape)
    check.packed(op, k_pages=k_pages, v_pages=v_pages, page_table=page_table)
    check.require(head_dim % 4 == 0, f"{op}: a head of {head_dim} elements; it must be a multiple of 4")
    positions = page_table.shape[0] * page_size
    check.require(positions < 2**31, f"{op}: {positions} positions; at most {2**31 - 1} are supported")
    return pages, page_size
