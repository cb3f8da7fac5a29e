"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.reference.batch import Rows
from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import Bytes, array


def rope(p: SimpleNamespace, x: Bytes, table: Bytes, batch: Bytes) -> Callable[[], None]:
    """Rotate each pair of elements, as a complex number, by its row's angle: table rows are (cos, sin) pairs."""
    turns = array(table, p.table_offset * 4, (p.positions, p.pairs), np.complex64)
    batch_rows = Rows(p, batch)
    last = p.positions - 1
    shape, strides = (p.rows, p.heads, p.pairs), (p.x_stride * 4, p.head_dim * 4)
    begin = p.x_offset * 4

    def blockwise(turn_some: Callable[[tuple[slice, slice, slice], NDArray[np.complex64]], None]) -> None:
        for rows in steps(batch_rows.count(), BLOCK // (p.heads * p.pairs)):
            positions = np.minimum(batch_rows.positions(rows), last)
            for pairs in steps(p.pairs, BLOCK):
                turn = turns[positions, None, pairs]
                for heads in steps(p.heads, BLOCK // p.pairs):
                    turn_some((rows, heads, pairs), turn)

    if p.interleaved:
        numbers: NDArray[np.complex64] = np.ndarray(shape, np.complex64, x, begin, (*strides, 8))
        only = numbers[0]

        def turn_numbers(where: tuple[slice, slice, slice], turn: NDArray[np.complex64]) -> None:
            some = numbers[where]
            np.multiply(some, turn, some)

        def run_interleaved() -> None:
            if batch_rows.count() == 1:
                np.multiply(only, turns[min(batch_rows.row(0)[0], last)], only)
            else:
                blockwise(turn_numbers)

        return run_interleaved

    real: NDArray[np.float32] = np.ndarray(shape, np.float32, x, begin, (*strides, 4))
    imaginary: NDArray[np.float32] = np.ndarray(shape, np.float32, x, begin + p.pairs * 4, (*strides, 4))

    def turn_halves(where: tuple[slice, slice, slice], turn: NDArray[np.complex64]) -> None:
        a, b = real[where], imaginary[where]
        turned = a * turn.real - b * turn.imag
        np.add(a * turn.imag, b * turn.real, b)
        a[:] = turned

    return lambda: blockwise(turn_halves)
