"""GEMV and GEMM with a weight matrix, which has one row per output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference.batch import valid_rows
from wasmetal.kernels.reference.blocks import EXPAND
from wasmetal.kernels.reference.views import F32, Bytes, array, rows

_CHUNK = 1 << 20
"""Weights expanded at a time: few enough to stay in the processor's cache, and never a second copy of a model."""


def gemv(dtype: DType, p: SimpleNamespace, weight: Bytes, x: Bytes, out: Bytes) -> Callable[[], None]:
    """GEMV: out (+)= weight x."""
    vector = array(x, p.x_offset * 16, (p.k,))
    result = array(out, p.out_offset * 4, (p.n,))

    if dtype is DType.F32:
        matrix = array(weight, p.weight_offset * 16, (p.n, p.k))
        product = np.empty(p.n, np.float32) if p.accumulate else result
        dot, add, accumulate = np.dot, np.add, p.accumulate

        def run_f32() -> None:
            dot(matrix, vector, product)
            if accumulate:
                add(result, product, result)

        return run_f32

    unit = 4 if dtype.quantized else 16
    chunks = _expander(dtype, weight, p.weight_offset * unit, p.n, p.k)

    def run() -> None:
        for some, chunk in chunks():
            result[some] = chunk @ vector + (result[some] if p.accumulate else 0)

    return run


def gemm(dtype: DType, p: SimpleNamespace, x: Bytes, weight: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """GEMM: out (+)= x weightᵀ."""
    source = rows(x, p.x_offset, p.rows, p.k, p.x_stride)
    target = rows(out, p.out_offset, p.rows, p.n, p.out_stride)
    active = valid_rows(p, batch)
    chunks = _expander(dtype, weight, p.weight_offset * 4, p.n, p.k)

    def run() -> None:
        n = active()
        for some, chunk in chunks():
            if p.accumulate:
                target[:n, some] += source[:n] @ chunk.T
            else:
                np.matmul(source[:n], chunk.T, target[:n, some])

    return run


def _expander(dtype: DType, weight: Bytes, offset: int, n: int, k: int) -> Callable[[], Iterator[tuple[slice, F32]]]:
    """The matrix as float32, a chunk of rows at a time: (which rows, their weights)."""
    expand = EXPAND[dtype]
    data = array(weight, offset, (n, dtype.row_bytes(k)), np.uint8)
    count = n if dtype is DType.F32 else max(1, _CHUNK // k)

    def chunks() -> Iterator[tuple[slice, F32]]:
        for begin in range(0, n, count):
            rows = slice(begin, min(begin + count, n))
            yield rows, expand(data[rows])

    return chunks


KERNELS = {f"gemv_{dtype.suffix}": partial(gemv, dtype) for dtype in EXPAND} | {
    f"gemm_{dtype.suffix}": partial(gemm, dtype) for dtype in EXPAND
}
