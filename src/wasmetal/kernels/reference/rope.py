"""Rotary position embedding, also of keys on their way to the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.dtypes import KV, DType
from wasmetal.kernels.reference.batch import Rows, Sequences
from wasmetal.kernels.reference.pools import open_pool
from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import F32, Bytes, array, rows


def rope(p: SimpleNamespace, x: Bytes, table: Bytes, batch: Bytes) -> Callable[[], None]:
    """Rotate each pair of elements, as a complex number, by its row's angle: table rows are (cos, sin) pairs."""
    turns = array(table, p.table_offset * 4, (p.positions, p.pairs), np.complex64)
    batch_rows = Rows(p, batch)
    last = p.positions - 1
    shape, strides = (p.rows, p.heads, p.pairs), (p.x_stride * 4, p.head_dim * 4)
    begin = p.x_offset * 4

    def blockwise(turn_some: Callable[[tuple[slice, slice, slice], NDArray[np.complex64]], None]) -> None:
        for some in steps(batch_rows.count(), BLOCK // (p.heads * p.pairs)):
            positions = np.minimum(batch_rows.positions(some), last)
            for pairs in steps(p.pairs, BLOCK):
                turn = turns[positions, None, pairs]
                for heads in steps(p.heads, BLOCK // p.pairs):
                    turn_some((some, heads, pairs), turn)

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


class Turns:
    """Rotations of heads that stay as they are."""

    def __init__(self, p: SimpleNamespace, table: Bytes) -> None:
        self._table = array(table, p.table_offset * 4, (p.positions, p.pairs), np.complex64)
        self._first = slice(0, 2 * p.pairs, 2) if p.interleaved else slice(0, p.pairs)
        self._second = slice(1, 2 * p.pairs, 2) if p.interleaved else slice(p.pairs, 2 * p.pairs)

    def turned(self, heads: F32, position: int) -> F32:
        """Heads [heads, head_dim] of one position."""
        result = heads.copy()
        pairs = (heads[:, self._first] + 1j * heads[:, self._second]) * self._table[min(position, len(self._table) - 1)]
        result[:, self._first], result[:, self._second] = pairs.real, pairs.imag
        return result


def rope_append(
    dtype: DType,
    p: SimpleNamespace,
    q: Bytes,
    k: Bytes,
    v: Bytes,
    table: Bytes,
    k_pages: Bytes,
    v_pages: Bytes,
    batch: Bytes,
    sequences: Bytes,
) -> Callable[[], None]:
    """Turn each valid row of q in place; write k, turned, and v to its position's slot, if its sequence has it."""
    turn_queries = rope(SimpleNamespace(**vars(p), x_offset=p.q_offset, x_stride=p.q_stride), q, table, batch)
    keys = rows(k, p.k_offset, p.rows, p.columns, p.k_stride)
    values = rows(v, p.v_offset, p.rows, p.columns, p.v_stride)
    key_pool = open_pool(dtype, k_pages, p.k_pages_offset, p.pages * p.page_size, 1, p.columns)
    value_pool = open_pool(dtype, v_pages, p.v_pages_offset, p.pages * p.page_size, 1, p.columns)
    turns, batch_rows, tables = Turns(p, table), Rows(p, batch), Sequences(p, sequences)

    def run() -> None:
        turn_queries()
        for row in range(batch_rows.count()):
            position, sequence = batch_rows.row(row)
            pages, length = tables.find(sequence)
            if position < length:
                slot = tables.slot(pages, position)
                key_pool.write(slot, turns.turned(keys[row].reshape(-1, p.head_dim), position).reshape(-1))
                value_pool.write(slot, values[row])

    return run


KERNELS: dict[str, Callable[..., Callable[[], object]]] = {
    "rope": rope,
    **{f"rope_append_{dtype.suffix}": partial(rope_append, dtype) for dtype in KV},
}
