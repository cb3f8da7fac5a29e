"""Matrix multiplication over strided operands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import F32, Bytes, as_f32

_TILE = 512
"""Rows and columns of a product that are computed at a time: a block."""


def matmul(
    kind: DTypeLike, result: DTypeLike, p: SimpleNamespace, a: Bytes, b: Bytes, out: Bytes
) -> Callable[[], None]:
    """out[i] = a[i] @ b[i], accumulated in float32."""
    bytes_in, bytes_out = np.dtype(kind).itemsize, np.dtype(result).itemsize
    left: NDArray[Any] = np.ndarray(
        (p.batch, p.m, p.k), kind, a, p.a_offset * 4, tuple(bytes_in * s for s in (p.a_batch, p.a_row, p.a_column))
    )
    right: NDArray[Any] = np.ndarray(
        (p.batch, p.k, p.n), kind, b, p.b_offset * 4, tuple(bytes_in * s for s in (p.b_batch, p.b_row, p.b_column))
    )
    target: NDArray[Any] = np.ndarray(
        (p.batch, p.m, p.n),
        result,
        out,
        p.out_offset * bytes_out,
        tuple(bytes_out * s for s in (p.out_batch, p.out_row, 1)),
    )
    # Small products are computed many at a time; large ones a tile at a time, and a stretch of k at a time.
    together = BLOCK // max(p.m * p.n, p.m * p.k, p.k * p.n)
    stretch = p.k if bytes_in == 4 else BLOCK // _TILE

    def run() -> None:
        for which in steps(p.batch, together):
            for rows in steps(p.m, _TILE):
                for columns in steps(p.n, _TILE):
                    total: F32 | None = None
                    for some in steps(p.k, stretch):
                        product = as_f32(left[which, rows, some]) @ as_f32(right[which, some, columns])
                        total = product if total is None else np.add(total, product, total)
                    target[which, rows, columns] = total

    return run


_KINDS = {"f32": np.float32, "f16": np.float16}

KERNELS = {
    f"matmul_{kind}_{result}": partial(matmul, _KINDS[kind], _KINDS[result]) for kind in _KINDS for result in _KINDS
}
