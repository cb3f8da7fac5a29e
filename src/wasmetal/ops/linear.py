"""GEMV and GEMM with weights, and lookups of their rows.

A weight larger than a binding may be is processed in runs of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from wasmetal.errors import OpError
from wasmetal.kernels.catalog import EMBED_COLUMNS, GEMV_ROWS
from wasmetal.kernels.dtypes import WEIGHTS, DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import GROUP, STRETCH, Work

GEMV_COLUMNS = 8
"""Columns that a thread of the GEMV kernels takes at a time; rows of other widths use the GEMM kernels."""
GEMM_TILE = 64
"""Rows and columns of the output that a group of the GEMM kernels computes (``gemm.slang``)."""
_ALIGNED_ROWS = 64
"""Weights are split at multiples of this many rows, which keeps weights of any type and outputs aligned."""


def linear(
    rec: Recorder, x: Tensor, weight: Tensor, out: Tensor, *, accumulate: bool = False, batch: Tensor | None = None
) -> None:
    """out = x weightᵀ, added to what ``out`` holds if ``accumulate``. Raises OpError.

    x f32 [T, K] and out f32 [T, N], rows may be strided; weight [N, K] of any weight type. Accumulates in
    float32. A single row without ``batch`` takes the GEMV kernel, anything else the GEMM kernel.
    """
    check.dtypes("linear", (DType.F32,), x=x, out=out)
    check.dtypes("linear", WEIGHTS, weight=weight)
    check.rank("linear", 2, x=x, weight=weight, out=out)
    rows, k = x.shape
    n = weight.shape[0]
    check.shape("linear", "weight", weight, (n, k))
    check.shape("linear", "out", out, (rows, n))
    check.packed("linear", weight=weight)
    check.separate("linear", out, x=x, weight=weight)
    table, offset = check.optional_batch("linear", batch, rows, out, stand_in=x)
    kind = weight.dtype.suffix
    single = rows == 1 and batch is None and k % GEMV_COLUMNS == 0
    for begin, end in bindable_rows(rec, "linear", weight):
        some_weight, some_out = weight.rows(begin, end), out.columns(begin, end)
        if single:
            work = Work(1, end - begin, 4 * k, column_step=_ALIGNED_ROWS)
        else:
            work = Work(rows, end - begin, k + STRETCH, row_step=GEMM_TILE, column_step=GEMM_TILE)
        for part in rec.parts("linear", work):
            part_weight, part_out = some_weight.rows(part.left, part.right), some_out.part(part)
            if single:
                groups = -(-part.columns // GEMV_ROWS)
                rec.dispatch(
                    f"gemv_{kind}",
                    (part_weight, x, part_out),
                    groups,
                    part.work,
                    n=part.columns,
                    k=k,
                    accumulate=int(accumulate),
                    groups=groups,
                )
            else:
                rec.dispatch(
                    f"gemm_{kind}",
                    (x.rows(part.top, part.bottom), part_weight, part_out, table),
                    -(-part.rows // GEMM_TILE) * -(-part.columns // GEMM_TILE),
                    part.work,
                    batch_row=part.top,
                    rows=part.rows,
                    n=part.columns,
                    k=k,
                    x_stride=x.row_stride,
                    out_stride=out.row_stride,
                    accumulate=int(accumulate),
                    **offset,
                )


def embed(rec: Recorder, table: Tensor, ids: Tensor, out: Tensor, *, batch: Tensor | None = None) -> None:
    """out[t] = table[ids[t]]; ids, as unsigned numbers, are clamped to the table. Raises OpError.

    table [V, K] of any weight type; ids I32 [T]; out f32 [T, K], rows may be strided.
    """
    check.dtypes("embed", WEIGHTS, table=table)
    check.dtypes("embed", (DType.I32,), ids=ids)
    check.dtypes("embed", (DType.F32,), out=out)
    check.rank("embed", 2, table=table, out=out)
    rows, columns = out.shape
    check.shape("embed", "table", table, (table.shape[0], columns))
    check.shape("embed", "ids", ids, (rows,))
    check.packed("embed", table=table, ids=ids)
    check.separate("embed", out, table=table, ids=ids)
    batch, offset = check.optional_batch("embed", batch, rows, out, stand_in=ids)
    numbers = ids.reshape(rows, 1)
    work = Work(rows, columns, 12, GROUP * -(-columns // EMBED_COLUMNS), column_step=columns, aligned=(numbers, out))
    for begin, end in bindable_rows(rec, "embed", table):
        for part in rec.parts("embed", work):
            rec.dispatch(
                f"embed_{table.dtype.suffix}",
                (table.rows(begin, end), numbers.rows(part.top, part.bottom), out.part(part), batch),
                part.rows * -(-columns // EMBED_COLUMNS),
                part.work,
                batch_row=part.top,
                rows=part.rows,
                columns=columns,
                out_stride=out.row_stride,
                table_rows=table.shape[0],
                first_row=begin,
                bound_rows=end - begin,
                **offset,
            )


def bindable_rows(rec: Recorder, op: str, weight: Tensor) -> Iterator[tuple[int, int]]:
    """Runs of rows, each of which fits one binding."""
    n, k = weight.shape
    if weight.nbytes <= rec.max_tensor_bytes:
        yield 0, n
        return
    count = rec.max_tensor_bytes // weight.dtype.row_bytes(k) // _ALIGNED_ROWS * _ALIGNED_ROWS
    if count == 0:
        raise OpError(f"{op}: {_ALIGNED_ROWS} rows of {k} {weight.dtype.name} weights are more than a binding can hold")
    for begin in range(0, n, count):
        yield begin, min(begin + count, n)
