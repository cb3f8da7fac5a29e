"""Cases of attention of many rows, for each way to compute it.

``check`` is ``check_attention`` of ``tests.ops.test_attention``, given the op and the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.ops.test_attention import HOSTILE, MIXED, fitting
from wasmetal.device import Device
from wasmetal.kernels.dtypes import DType

Check = Callable[..., None]

SINKS = pytest.mark.parametrize("sinks", [None, [-3.0, 0.5, 2.0, 9.0, 200.0, -np.inf]])
WINDOWS = pytest.mark.parametrize(
    ("rows", "valid", "position", "length", "window"),
    [
        (40, 40, 0, 40, 3),
        (40, 33, 200, 240, 129),
        (9, 9, 10, 12, 4),  # the windows of the last rows begin after the sequence's end
        (33, 0, 0, 33, None),
    ],
)


def check_prompt(
    check: Check,
    device: Device,
    dtype: DType,
    rows: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    table: Sequence[int],
    pages: int,
    position: int,
) -> None:
    """Rows of one sequence, from ``position`` on."""
    check(
        *(device, dtype, heads, kv_heads, fitting(dtype, kv_heads, head_dim), page_size, pages),
        *([table], [position + rows], range(position, position + rows), [0] * rows, rows, 4),
    )


def check_windows(
    check: Check,
    device: Device,
    dtype: DType,
    head_dim: int,
    rows: int,
    valid: int,
    position: int,
    length: int,
    window: int | None,
    sinks: Sequence[float] | None,
) -> None:
    """Rows of one sequence, of which some are not valid."""
    check(
        *(device, dtype, 6, 2, fitting(dtype, 2, head_dim), 12, 40, [[*range(17, 30), *range(12)]], [length]),
        *(range(position, position + rows), [0] * rows, valid, 4, window, sinks),
    )


def check_mixed_sequences(check: Check, device: Device, dtype: DType, head_dim: int, heads: int) -> None:
    """Several in a group."""
    sequences, positions = MIXED
    tables = [[7, 2, 11], [0, 6, 6], [2, 3, 4], [10, 7, 9], [5, 1, 8]]  # pages 2 and 7 are shared
    head_dim = fitting(dtype, 2, head_dim)
    check(device, dtype, heads, 2, head_dim, 12, 12, tables, [21, 1, 21, 5, 34], positions, sequences, 15, 4)


def check_any_batch(
    check: Check,
    device: Device,
    data: st.DataObject,
    dtypes: Sequence[DType],
    head_dims: Sequence[int],
    *,
    longest: int,
    gap: int = 4,
) -> None:
    """Tables, lengths, positions and sequence numbers of any value; up to five runs of up to ``longest`` rows."""
    count, entries = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    hostile = st.sampled_from(HOSTILE)
    tables = [[data.draw(st.integers(0, 6) | hostile) for _ in range(entries)] for _ in range(count)]
    lengths = [data.draw(st.integers(0, 100) | hostile) for _ in range(count)]
    row = st.tuples(st.integers(0, 110) | hostile, st.integers(0, 4) | hostile, st.integers(1, longest))
    runs = data.draw(st.lists(row, min_size=1, max_size=5))
    positions, sequences = zip(*((at + i, number) for at, number, n in runs for i in range(n)), strict=True)
    kv_heads, sharing = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 6))
    heads, dtype = kv_heads * sharing, data.draw(st.sampled_from(dtypes))
    finite: Any = st.floats(-(2.0**99), 2.0**99, width=32)
    check(
        *(device, dtype, heads, kv_heads, fitting(dtype, kv_heads, data.draw(st.sampled_from(head_dims)))),
        *(data.draw(st.integers(1, 30)), 5, tables, lengths, positions, sequences),
        *(data.draw(st.integers(-2, 5 * longest)), gap),
        window=data.draw(st.none() | st.integers(1, 110) | st.just(2**31 - 1)),
        sinks=data.draw(st.none() | st.lists(finite, min_size=heads, max_size=heads)),
    )
