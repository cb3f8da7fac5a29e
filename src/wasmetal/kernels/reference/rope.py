"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.reference.batch import Rows
from wasmetal.kernels.reference.views import Bytes, array


def rope(p: SimpleNamespace, x: Bytes, table: Bytes, batch: Bytes) -> Callable[[], None]:
    """Rotate each pair of elements, as a complex number, by its row's angle: table rows are (cos, sin) pairs."""
    turns = array(table, p.table_offset * 4, (p.positions, p.pairs), np.complex64)
    batch_rows = Rows(p, batch)
    last = p.positions - 1
    shape, strides = (p.rows, p.heads, p.pairs), (p.x_stride * 4, p.head_dim * 4)
    begin = p.x_offset * 4

    def turns_of(n: int) -> NDArray[Any]:
        return turns[np.minimum(batch_rows.positions(n), last), None]

    if p.interleaved:
        numbers: NDArray[np.complex64] = np.ndarray(shape, np.complex64, x, begin, (*strides, 8))
        only = numbers[0]

        def run_interleaved() -> None:
            n = batch_rows.count()
            if n == 1:
                np.multiply(only, turns[min(batch_rows.row(0)[0], last)], only)
            else:
                np.multiply(numbers[:n], turns_of(n), numbers[:n])

        return run_interleaved

    real: NDArray[np.float32] = np.ndarray(shape, np.float32, x, begin, (*strides, 4))
    imaginary: NDArray[np.float32] = np.ndarray(shape, np.float32, x, begin + p.pairs * 4, (*strides, 4))

    def run_halves() -> None:
        n = batch_rows.count()
        turn = turns_of(n)
        a, b = real[:n], imaginary[:n]
        turned = a * turn.real - b * turn.imag
        np.add(a * turn.imag, b * turn.real, b)
        a[:] = turned

    return run_halves
