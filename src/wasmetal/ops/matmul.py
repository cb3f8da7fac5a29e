"""Matrix multiplication of two tensors of activations."""

from __future__ import annotations

import math
from dataclasses import replace

from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import STRETCH, Part, Work

MATMUL_TILE = 64
"""Rows and columns of the output that a group of threads computes (``matmul.slang``)."""


def matmul(
    rec: Recorder, a: Tensor, b: Tensor, out: Tensor, *, transpose_a: bool = False, transpose_b: bool = False
) -> None:
    """out = a @ b, accumulated in float32. Raises OpError.

    a [batch, M, K] and out [batch, M, N], or both without the batch; b [batch, K, N], or [K, N] for every batch. The
    last two dimensions of a transposed operand are swapped. a and b are of one type, f32 or f16; out is f32 or f16.
    Rows of a matrix may be strided; in a tensor with a batch, only the batches may.
    """
    floats = (DType.F32, DType.F16)
    check.dtypes("matmul", floats, a=a, out=out)
    check.dtypes("matmul", (a.dtype,), b=b)
    batch, m, k, a_strides = _operand("a", a, transpose_a)
    b_batch, b_k, n, b_strides = _operand("b", b, transpose_b)
    check.require(k == b_k, f"matmul: a has {k} columns and b has {b_k} rows; they must be equal")
    check.require(len(b.shape) == 2 or b_batch == batch, f"matmul: a batch of {batch} times a batch of {b_batch}")
    check.shape("matmul", "out", out, (*a.shape[:-2], m, n))
    _, _, _, out_strides = _operand("out", out, False)
    check.separate("matmul", out, a=a, b=b)
    product = Work(m, n, k + STRETCH, row_step=MATMUL_TILE, column_step=MATMUL_TILE)
    batched = [tensor for tensor in (a, b, out) if len(tensor.shape) == 3]
    for some in rec.parts("matmul", Work(batch, 1, product.total, aligned=batched)):
        lefts, rights, results = (_matrices(tensor, some) for tensor in (a, b, out))
        for part in product.cut(rec.slice if some.rows == 1 else math.inf):
            rec.dispatch(
                f"matmul_{a.dtype.suffix}_{out.dtype.suffix}",
                (
                    _rows(lefts, part.top, part.bottom, transpose_a),
                    _rows(rights, part.left, part.right, not transpose_b),
                    _rows(_rows(results, part.top, part.bottom, False), part.left, part.right, True),
                ),
                some.rows * -(-part.rows // MATMUL_TILE) * -(-part.columns // MATMUL_TILE),
                some.rows * part.work,
                batch=some.rows,
                m=part.rows,
                n=part.columns,
                k=k,
                **dict(zip(("a_batch", "a_row", "a_column"), a_strides, strict=True)),
                **dict(zip(("b_batch", "b_row", "b_column"), b_strides, strict=True)),
                out_batch=out_strides[0],
                out_row=out_strides[1],
            )


def _matrices(tensor: Tensor, some: Part) -> Tensor:
    """Some matrices of an operand; a single one without its batch dimension, so that it can be cut."""
    if len(tensor.shape) == 2:
        return tensor
    chosen = tensor.rows(some.top, some.bottom)
    return chosen if some.rows > 1 else replace(chosen, shape=chosen.shape[1:], row_stride=0)


def _rows(tensor: Tensor, begin: int, end: int, transposed: bool) -> Tensor:
    """Rows of a single matrix after transposition; of several, all."""
    if len(tensor.shape) == 3:
        return tensor
    return tensor.columns(begin, end) if transposed else tensor.rows(begin, end)


def _operand(name: str, tensor: Tensor, transposed: bool) -> tuple[int, int, int, tuple[int, int, int]]:
    """(batch, rows, columns, strides of the three) of the operand after transposition."""
    if len(tensor.shape) == 2:
        batch, (rows, columns), strides = 1, tensor.shape, (0, tensor.row_stride, 1)
    else:
        check.rank("matmul", 3, **{name: tensor})
        batch, rows, columns = tensor.shape
        strides = (tensor.row_stride, columns, 1)
    if transposed:
        return batch, columns, rows, (strides[0], strides[2], strides[1])
    return batch, rows, columns, strides
