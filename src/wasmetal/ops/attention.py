"""Rotary positions, the paged key-value cache and attention over it.

A cache is a pool of pages [pages, page_size, kv_heads, head_dim], f32, f16 or q8_0. In q8_0, each position has the
signed bytes of its kv_heads * head_dim / 32 blocks, and then their float16 scales, so that words of it are aligned; a
head is a multiple of 32 elements, and all heads of a position are one of 64. ``batch`` holds the position and the
sequence of each row, ``sequences`` the length and the page table of each sequence: see ``wasmetal.ops.batch``.
"""

from __future__ import annotations

from wasmetal.kernels.catalog import NO_SINKS, THREADS
from wasmetal.kernels.dtypes import KV, DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import GROUP, ROW, Work

_ELEMENT, _POSITION = 8, 256
"""Operations of attention for each element of a position's key and value, and for the position itself."""
MAX_HEAD_DIM = 256
"""The attention kernels keep a query and their partial sums in group memory of this size."""


def fits_q8_0(kv_heads: int, head_dim: int) -> bool:
    """Whether a cache of such heads can be of the type Q8_0."""
    return head_dim % 32 == 0 and kv_heads * head_dim % 64 == 0


def rope(rec: Recorder, x: Tensor, table: Tensor, batch: Tensor, *, interleaved: bool) -> None:
    """Rotary position embedding: rotate pairs of elements of x by the angles of their row's position, in place.

    x f32 [T, heads, head_dim], rows may be strided; table f32 [positions, rot / 2, 2] of (cos, sin), rot <= head_dim;
    elements past rot are unchanged. Positions are clamped to the table. Pairs are (2i, 2i + 1) if
    ``interleaved`` (GGUF's llama), else (i, i + rot / 2) (NeoX). J. Su et al., "RoFormer", 2021. Raises OpError.
    """
    check.dtypes("rope", (DType.F32,), x=x, table=table)
    check.rank("rope", 3, x=x, table=table)
    rows, heads, head_dim = x.shape
    positions, pairs, _ = table.shape
    check.shape("rope", "table", table, (positions, pairs, 2))
    check.require(2 * pairs <= head_dim, f"rope: the table rotates {2 * pairs} elements of a head of {head_dim}")
    check.packed("rope", table=table)
    check.batch("rope", batch, rows)
    check.separate("rope", x, table=table, batch=batch)
    for part in rec.parts("rope", Work(rows, heads, 48 * pairs, column_step=heads, aligned=(x,))):
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


def kv_append(
    rec: Recorder, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, batch: Tensor, sequences: Tensor
) -> None:
    """Write the valid rows of k and v to the slots of their positions. Raises OpError.

    k, v f32 [T, kv_heads, head_dim], rows may be strided; pages [pages, page_size, kv_heads, head_dim].
    Rows at or past the length of their sequence are dropped; page numbers past the pool are clamped to its last page.
    """
    check.dtypes("kv_append", (DType.F32,), k=k, v=v)
    check.rank("kv_append", 3, k=k)
    rows, kv_heads, head_dim = k.shape
    check.shape("kv_append", "v", v, k.shape)
    pages, page_size = _pool("kv_append", k_pages, v_pages, sequences, kv_heads, head_dim)
    check.batch("kv_append", batch, rows)
    check.separate("kv_append", k_pages, k=k, v=v, v_pages=v_pages, batch=batch, sequences=sequences)
    check.separate("kv_append", v_pages, k=k, v=v, batch=batch, sequences=sequences)
    columns = kv_heads * head_dim
    step = 64 if k_pages.dtype is DType.Q8_0 else 4  # columns that a thread of a GPU appends
    for part in rec.parts("kv_append", Work(rows, columns, 16, ROW, column_step=columns, aligned=(k, v))):
        rec.dispatch(
            f"kv_append_{k_pages.dtype.suffix}",
            (k.rows(part.top, part.bottom), v.rows(part.top, part.bottom), k_pages, v_pages, batch, sequences),
            -(-part.rows * (columns // step) // THREADS),
            part.work,
            batch_row=part.top,
            rows=part.rows,
            columns=columns,
            k_stride=k.row_stride,
            v_stride=v.row_stride,
            pages=pages,
            page_size=page_size,
            sequence_count=sequences.shape[0],
            table_length=sequences.shape[1] - 1,
        )


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
    check.dtypes("attention", (DType.F32,), q=q, out=out)
    check.rank("attention", 3, q=q)
    check.rank("attention", 4, k_pages=k_pages)
    rows, heads, head_dim = q.shape
    kv_heads = k_pages.shape[2]
    pages, page_size = _pool("attention", k_pages, v_pages, sequences, kv_heads, head_dim)
    check.require(heads % kv_heads == 0, f"attention: {heads} heads are not a multiple of {kv_heads} kv heads")
    check.require(head_dim <= MAX_HEAD_DIM, f"attention: a head of {head_dim}; at most {MAX_HEAD_DIM} is supported")
    check.shape("attention", "out", out, (rows, heads * head_dim))
    check.batch("attention", batch, rows)
    check.separate("attention", out, q=q, k_pages=k_pages, v_pages=v_pages, batch=batch, sequences=sequences)
    check.require(window is None or 0 < window < 2**31, f"attention: a window of {window} positions; 1 to 2^31 - 1")
    offset = {} if sinks else {"sinks_offset": NO_SINKS}
    if sinks:
        check.dtypes("attention", (DType.F32,), sinks=sinks)
        check.shape("attention", "sinks", sinks, (heads,))
        check.packed("attention", sinks=sinks)
        check.separate("attention", out, sinks=sinks)
    positions = min(pages, sequences.shape[1] - 1) * page_size
    if window:
        positions = min(positions, window)
    work = Work(rows, heads, positions * (_ELEMENT * head_dim + _POSITION) + GROUP, ROW, aligned=(q, out))
    for part in rec.parts("attention", work):
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
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            q_stride=q.row_stride,
            out_stride=out.row_stride,
            pages=pages,
            page_size=page_size,
            sequence_count=sequences.shape[0],
            table_length=sequences.shape[1] - 1,
            scale=scale,
            window=window or 0,
            **offset,
        )


def _pool(
    op: str, k_pages: Tensor, v_pages: Tensor, sequences: Tensor, kv_heads: int, head_dim: int
) -> tuple[int, int]:
    """(pages, page size) of a cache for such heads."""
    check.dtypes(op, KV, k_pages=k_pages)
    check.dtypes(op, (k_pages.dtype,), v_pages=v_pages)
    check.dtypes(op, (DType.I32,), sequences=sequences)
    check.rank(op, 4, k_pages=k_pages)
    check.rank(op, 2, sequences=sequences)
    pages, page_size = k_pages.shape[:2]
    check.shape(op, "k_pages", k_pages, (pages, page_size, kv_heads, head_dim))
    check.shape(op, "v_pages", v_pages, k_pages.shape)
    check.packed(op, k_pages=k_pages, v_pages=v_pages, sequences=sequences)
    check.require(head_dim % 4 == 0, f"{op}: a head of {head_dim} elements; it must be a multiple of 4")
    check.require(
        k_pages.dtype is not DType.Q8_0 or fits_q8_0(kv_heads, head_dim),
        f"{op}: {kv_heads} heads of {head_dim} elements; "
        "in Q8_0 a head must be a multiple of 32, and all together of 64",
    )
    entries = sequences.shape[1] - 1
    check.require(
        entries > 0, f"{op}: sequences has shape {sequences.shape}; it must have a length and at least one page each"
    )
    positions = entries * page_size
    check.require(positions < 2**31, f"{op}: {positions} positions; at most {2**31 - 1} are supported")
    return pages, page_size
