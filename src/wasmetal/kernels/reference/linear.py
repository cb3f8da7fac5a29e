"""GEMV and GEMM with a weight matrix, which has one row per output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference.batch import valid_rows
from wasmetal.kernels.reference.blocks import EXPAND, columns_of
from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import F32, Bytes, array, rows

_TILE = 1024
"""Rows and columns of the output that GEMM computes at a time; a sum to be added to the output takes 4 MiB."""


def gemv(dtype: DType, p: SimpleNamespace, weight: Bytes, x: Bytes, out: Bytes) -> Callable[[], None]:
    """GEMV: out (+)= weight x."""
    vector = array(x, p.x_offset * 16, (p.k,))
    result = array(out, p.out_offset * 4, (p.n,))

    if dtype is DType.F32:
        matrix = array(weight, p.weight_offset * 16, (p.n, p.k))
        dot, add = np.dot, np.add
        if not p.accumulate:
            return partial(dot, matrix, vector, result)
        parts = [(matrix[some], result[some]) for some in steps(p.n, BLOCK)]

        def run_f32() -> None:
            for some, sums in parts:
                add(sums, dot(some, vector), sums)

        return run_f32

    chunks = expander(dtype, weight, p.weight_offset * dtype.gemv_unit, p.n, p.k)

    def run() -> None:
        for some, part, chunk in chunks():
            sums = chunk @ vector[part]
            result[some] = result[some] + sums if p.accumulate or part.start else sums

    return run


def gemm(dtype: DType, p: SimpleNamespace, x: Bytes, weight: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """GEMM: out (+)= x weightᵀ."""
    source = rows(x, p.x_offset, p.rows, p.k, p.x_stride)
    target = rows(out, p.out_offset, p.rows, p.n, p.out_stride)
    active = valid_rows(p, batch)
    chunks = expander(dtype, weight, p.weight_offset * 4, p.n, p.k)

    def run() -> None:
        n = active()
        for some, part, chunk in chunks():
            for at in steps(n, _TILE):
                sums, rows, columns = target[at, some], source[at, part], chunk.T
                if p.accumulate or part.start:
                    np.add(sums, rows @ columns, sums)
                else:
                    np.matmul(rows, columns, sums)

    return run


def expander(
    dtype: DType, weight: Bytes, offset: int, n: int, k: int
) -> Callable[[], Iterator[tuple[slice, slice, F32]]]:
    """The matrix as float32, a chunk at a time: (which rows, which columns, their weights).

    Rows are whole unless one of them is longer than a block. Chunks of float32 are views.
    """
    expand = EXPAND[dtype]
    data = array(weight, offset, (n, dtype.row_bytes(k)), np.uint8)
    height, width = (_TILE, k) if dtype is DType.F32 else (min(_TILE, BLOCK // k), BLOCK)

    def chunks() -> Iterator[tuple[slice, slice, F32]]:
        for some in steps(n, height):
            for part in steps(k, width):
                yield some, part, expand(data[some, columns_of(dtype, part)])

    return chunks


KERNELS = {f"gemv_{dtype.suffix}": partial(gemv, dtype) for dtype in EXPAND} | {
    f"gemm_{dtype.suffix}": partial(gemm, dtype) for dtype in EXPAND
}
