"""Commands for the kernels that stage data, at sizes that are no multiple of their tiles, with results that are known.

What a kernel keeps in registers and group memory outlives it. If another one reads a part of that memory which it has
not written (the padding of a tile, a masked position), its result differs from the one given here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
F32, F16, Q8_0, I32 = 0, 1, 8, 26
DTYPES = {np.dtype(np.float32): F32, np.dtype(np.float16): F16, np.dtype(np.int32): I32}


@dataclass(frozen=True)
class KernelProbe:
    """A command, the arrays that it reads, and what it should write."""

    name: str
    op: int
    inputs: tuple[Array, ...]
    """In the order of the operands, without the output."""
    out_at: int
    """Where the output stands among the operands."""
    expected: Array
    gap: int = 0
    """Elements between rows of the output, which the kernel must leave alone."""
    flags: int = 0
    attribute: float | None = None
    weight: tuple[int, tuple[int, int]] | None = None
    """The element type and shape of the second operand, if NumPy has no such type."""


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def batch_of(rows: int, positions: range) -> Array:
    """Batch metadata in which every row is valid and of sequence 0."""
    return np.array([(rows, 0), *((position, 0) for position in positions)], np.int32)


def kernel_probes() -> Iterator[KernelProbe]:
    """All of them."""
    yield from _products()
    yield from _attentions()
    yield from _rows()


def _products() -> Iterator[KernelProbe]:
    for rows, columns, depth in product((1, 3, 33, 65), (1, 7, 65), (1, 4, 35)):
        filled = np.full((rows, columns), depth, np.float32)
        name = f"{rows} x {depth} x {columns}"
        yield KernelProbe(f"matmul {name}", 1, (ones(rows, depth), ones(depth, columns)), 2, filled, gap=3)
        yield KernelProbe(f"matmul^T {name}", 1, (ones(depth, rows), ones(columns, depth)), 2, filled, flags=3)
    for rows, columns, depth in product((1, 3, 70), (1, 66, 130), (32, 96)):
        filled = np.full((rows, columns), depth, np.float32)
        name = f"{rows} x {depth} x {columns}"
        yield KernelProbe(f"linear F32 {name}", 2, (ones(rows, depth), ones(columns, depth)), 2, filled, gap=5)
        blocks = np.zeros((columns, depth // 32 * 34), np.uint8)  # a scale of 0, then 32 zeros
        quantized = (Q8_0, (columns, depth))
        yield KernelProbe(f"linear Q8_0 {name}", 2, (ones(rows, depth), blocks), 2, 0 * filled, weight=quantized)


def _attentions() -> Iterator[KernelProbe]:
    for rows, head_dim, page_size, length in product((1, 5, 33), (4, 20, 256), (5, 32), (1, 37)):
        pages = -(-(length + rows) // page_size)
        pool = pages + 1, page_size, 1, head_dim
        table = np.array([[length + rows, *range(pages)]], np.int32)
        batch = batch_of(rows, range(length, length + rows))
        for kind in (np.float32, np.float16):
            inputs = (ones(rows, 2, head_dim), np.ones(pool, kind), np.ones(pool, kind), batch, table)
            name = f"{rows} rows, {length} positions in pages of {page_size}, heads of {head_dim}, {kind.__name__}"
            yield KernelProbe(f"attention {name}", 7, inputs, 5, ones(rows, 2 * head_dim), attribute=0.5)


def _rows() -> Iterator[KernelProbe]:
    for rows, columns in product((1, 5), (1, 31, 257, 1025)):
        x, name = zeros(rows, columns), f"{rows} x {columns}"
        yield KernelProbe(f"softmax {name}", 11, (x,), 1, x + np.float32(1 / columns))
        yield KernelProbe(f"argmax {name}", 12, (x,), 1, np.zeros(rows, np.int32))
        yield KernelProbe(f"rms_norm {name}", 4, (x + 1, ones(columns)), 2, x + 1, gap=2, attribute=1e-6)
        yield KernelProbe(f"add {name}", 9, (x, x), 2, x, gap=1)
        yield KernelProbe(f"scale {name}", 10, (x,), 1, x, attribute=3.0)
        yield KernelProbe(f"silu_mul {name}", 8, (x, x), 2, x)
        yield KernelProbe(f"embed {name}", 3, (zeros(4, columns), np.zeros(rows, np.int32)), 2, x, gap=4)
