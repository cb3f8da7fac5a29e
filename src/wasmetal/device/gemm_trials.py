"""Trials of GEMM kernels, on small random matrices."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import Bytes
from wasmetal.device.gemm import Kinds
from wasmetal.device.trial import FLOATS, ROUNDED, Trial
from wasmetal.kernels.catalog import CATALOG, NO_BATCH, WORD, Kernel
from wasmetal.kernels.dtypes import WEIGHTS, DType

_POISON = 0xFF
"""Fills bytes that must be neither read nor written: as f32 or f16 it gives NaN."""
_TILE = 64
"""Rows and columns of the result tile that one group of a GEMM or matmul kernel computes."""


def every_gemm() -> list[Trial]:
    """A trial of each GEMM and matmul kernel, for a variant of all of them."""
    m, n, k = 37, 71, 96  # a full tile and a partial one, edges inside an 8 × 8 matrix, several steps along k
    gemms = [gemm(dtype.suffix, m, n, k) for dtype in WEIGHTS]
    return gemms + [matmul(kind, result, m, n, k, transpose_b=True) for kind, result in product(FLOATS, FLOATS)]


def rounded_gemms(kind: str) -> list[Trial]:
    """Trials of the GEMM kernel for weights of a type, for a variant that rounds the activations to float16."""
    m, n, k = 150, 136, 96  # a full tile of 128 x 128 and partial ones, edges inside a 16 x 16 matrix
    return [gemm(kind, m, n, k, accumulate=accumulate, tolerance=ROUNDED) for accumulate in (False, True)]


def every_layout(kinds: Kinds) -> list[Trial]:
    """GEMMs of these element types in every layout of the operands, for a library that computes them."""
    m, n, k = 72, 136, 264  # not multiples of 16
    kind, _, result = kinds
    switch = False, True
    trials = [matmul(kind, result, m, n, k, gap=16, transpose_a=a, transpose_b=b) for a, b in product(switch, switch)]
    if kind == "f32":
        trials += [gemm(kind, m, n, k, gap=16, accumulate=accumulate) for accumulate in switch]
    return trials


def gemm(
    kind: str, m: int, n: int, k: int, *, gap: int = 0, accumulate: bool = False, tolerance: float | None = None
) -> Trial:
    """x [m, k] · weightᵀ, weight [n, k] of type ``kind``; ``gap`` bytes before x and the result, and after rows.

    ``k`` is rounded up to whole blocks; ``tolerance`` as for :class:`Trial`.
    """
    kernel = CATALOG[f"gemm_{kind}"]
    k = _whole_blocks(kind, k)
    x, out = (
        random_matrix("f32", m, k, gap),
        random_matrix("f32", m, n, gap) if accumulate else poisoned_matrix("f32", m, n, gap),
    )
    weight = random_matrix(kind, n, k, 0, start=gap)
    fields = {"rows": m, "n": n, "k": k, "accumulate": int(accumulate), "batch_offset": NO_BATCH}
    fields |= {"x_stride": _stride("f32", k, gap), "out_stride": _stride("f32", n, gap)}
    return Trial(kernel, [x, weight, out], "f32", _tiles(m, n), fields | _offsets(kernel, gap), tolerance)


def matmul(
    kind: str,
    result: str,
    m: int,
    n: int,
    k: int,
    *,
    gap: int = 0,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Trial:
    """a [m, k] · b [k, n], each stored by rows or, if transposed, by columns; ``gap`` as in :func:`gemm`."""
    kernel = CATALOG[f"matmul_{kind}_{result}"]
    fields = {"batch": 1, "m": m, "n": n, "k": k, "out_row": _stride(result, n, gap)}
    operands = []
    for name, rows, columns, transposed in (("a", m, k, transpose_a), ("b", k, n, transpose_b)):
        rows, columns = (columns, rows) if transposed else (rows, columns)  # noqa: PLW2901
        operands.append(random_matrix(kind, rows, columns, gap))
        strides = (_stride(kind, columns, gap), 1)
        fields[f"{name}_row"], fields[f"{name}_column"] = strides[::-1] if transposed else strides
    out = poisoned_matrix(result, m, n, gap)
    return Trial(kernel, [*operands, out], result, _tiles(m, n), fields | _offsets(kernel, gap))


def _whole_blocks(kind: str, columns: int) -> int:
    per_block, _ = DType[kind.upper()].block
    return -(-columns // per_block) * per_block


def _tiles(m: int, n: int) -> int:
    return -(-m // _TILE) * -(-n // _TILE)


def _offsets(kernel: Kernel, gap: int) -> dict[str, int]:
    """The offsets of the operands in their bindings, in elements: ``gap`` bytes each."""
    return {f"{buffer.name}_offset": gap // buffer.element for buffer in kernel.buffers[:3]}


def _stride(kind: str, columns: int, gap: int) -> int:
    """Elements from row to row."""
    return columns + gap // FLOATS[kind].itemsize


def poisoned_matrix(kind: str, rows: int, columns: int, gap: int) -> Bytes:
    """Poison bytes for a result matrix, with ``gap`` bytes before it and after each row."""
    return np.full(gap + rows * _stride(kind, columns, gap) * FLOATS[kind].itemsize, _POISON, np.uint8)


def random_matrix(kind: str, rows: int, columns: int, gap: int, start: int | None = None) -> Bytes:
    """The bytes of a random matrix: ``gap`` poison bytes after each row, ``start`` (default ``gap``) before it."""
    random = np.random.default_rng((rows, columns))
    start = gap if start is None else start
    head = np.full(start, _POISON, np.uint8)
    if kind not in FLOATS:
        # Bytes below 0x3c: no pair is a float16 above 1, whichever bytes of a block are its scales.
        nbytes = -(-rows * DType[kind.upper()].row_bytes(columns) // WORD) * WORD
        blocks = random.integers(0, 0x3C, nbytes, np.uint8)
        if kind == "mxfp4":
            blocks[::17] |= 0x78  # a power of two as the scale, here from 2^-7 to 1
        return np.concatenate([head, blocks])
    body: NDArray[Any] = np.empty((rows, _stride(kind, columns, gap)), FLOATS[kind])
    body.view(np.uint8)[...] = _POISON
    # Around 1, so that sums grow with k, and rounding of partial sums shows.
    body[:, :columns] = 1 + random.standard_normal((rows, columns))
    return np.concatenate([head, body.view(np.uint8).reshape(-1)])
