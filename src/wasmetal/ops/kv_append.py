"""Appending rows of keys and values to the paged cache."""

from __future__ import annotations

from wasmetal.kernels.catalog import THREADS
from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.pools import require_pools
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import ROW, Work


def kv_append(
    rec: Recorder, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, batch: Tensor, sequences: Tensor
) -> None:
    """Write the valid rows of k and v to the slots of their positions. Raises OpError.

    k, v f32 [T, kv_heads, head_dim], rows may be strided; pages [pages, page_size, kv_heads, head_dim].
    Rows at or past the length of their sequence are dropped; page numbers past the pool are clamped to its last page.
    """
    pools = require_rows("kv_append", k, v, k_pages, v_pages, batch, sequences)
    rows, kv_heads, head_dim = k.shape
    columns, step = kv_heads * head_dim, append_step(k_pages.dtype)
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
            **pools,
        )


def append_step(dtype: DType) -> int:
    """Columns that a thread of a GPU appends to a pool."""
    return 64 if dtype is DType.Q8_0 else 4


def require_rows(
    op: str, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, batch: Tensor, sequences: Tensor
) -> dict[str, int]:
    """The rows k and v can be appended to the pools. Returns the dimensions of those, as kernels are given them.

    Raises OpError.
    """
    check.dtypes(op, (DType.F32,), k=k, v=v)
    check.rank(op, 3, k=k)
    rows, kv_heads, head_dim = k.shape
    check.shape(op, "v", v, k.shape)
    pools = require_pools(op, k_pages, v_pages, sequences, kv_heads, head_dim)
    check.batch(op, batch, rows)
    check.separate(op, k_pages, k=k, v=v, v_pages=v_pages, batch=batch, sequences=sequences)
    check.separate(op, v_pages, k=k, v=v, batch=batch, sequences=sequences)
    return pools
