"""Attention of many rows against float64 NumPy, with the tolerances of test_attention."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops import test_attention
from tests.ops.test_attention import HOSTILE, MIXED, fitting
from wasmetal import ops
from wasmetal.kernels.dtypes import KV
from wasmetal.ops import DType

check_attention = partial(test_attention.check_attention, attend=ops.prefill_attention)


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "page_size", "table", "pages", "position"),
    [
        (1, 1, 1, 4, 1, [0], 1, 0),
        (33, 2, 2, 64, 16, [3, 0, 2, 1], 4, 20),  # 16 rows of a head in a group
        (21, 9, 3, 64, 16, [3, 0, 2, 1], 4, 37),  # three heads of five rows: a query is left over
        (5, 16, 4, 128, 32, range(9), 9, 250),
        (6, 4, 1, 256, 32, range(9), 9, 280),  # the largest head
        (5, 14, 2, 80, 64, [1, 0, 2], 3, 150),  # seven heads of two rows
        (3, 20, 1, 12, 5, [4, 2, 0, 3], 5, 3),  # more heads than a group has queries
        (131, 2, 1, 8, 32, range(9), 9, 0),
        (3, 2, 2, 252, 3, [2, 1, 0], 3, 0),
    ],
)
def test_prompts(device, dtype, rows, heads, kv_heads, head_dim, page_size, table, pages, position):
    check_attention(
        *(device, dtype, heads, kv_heads, fitting(dtype, kv_heads, head_dim), page_size, pages),
        *([table], [position + rows], range(position, position + rows), [0] * rows, rows, 4),
    )


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize("sinks", [None, [-3.0, 0.5, 2.0, 9.0, 200.0, -np.inf]])
@pytest.mark.parametrize(
    ("rows", "valid", "position", "length", "window"),
    [
        (40, 40, 0, 40, 3),
        (40, 33, 200, 240, 129),
        (9, 9, 10, 12, 4),  # the windows of the last rows begin after the sequence's end
        (33, 0, 0, 33, None),
    ],
)
def test_windows_and_sinks(device, dtype, rows, valid, position, length, window, sinks):
    check_attention(
        *(device, dtype, 6, 2, fitting(dtype, 2, 20), 12, 40, [[*range(17, 30), *range(12)]], [length]),
        *(range(position, position + rows), [0] * rows, valid, 4, window, sinks),
    )


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize("heads", [2, 6])
def test_mixed_sequences(device, dtype, heads):
    """Several in a group."""
    sequences, positions = MIXED
    tables = [[7, 2, 11], [0, 6, 6], [2, 3, 4], [10, 7, 9], [5, 1, 8]]  # pages 2 and 7 are shared
    head_dim = fitting(dtype, 2, 20)
    check_attention(device, dtype, heads, 2, head_dim, 12, 12, tables, [21, 1, 21, 5, 34], positions, sequences, 15, 4)


@given(data=st.data())
def test_any_batch(device, data):
    """Tables, lengths, positions and sequence numbers of any value."""
    count, entries = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    hostile = st.sampled_from(HOSTILE)
    tables = [[data.draw(st.integers(0, 6) | hostile) for _ in range(entries)] for _ in range(count)]
    lengths = [data.draw(st.integers(0, 100) | hostile) for _ in range(count)]
    row = st.tuples(st.integers(0, 110) | hostile, st.integers(0, 4) | hostile, st.integers(1, 7))
    # Runs of rows at following positions.
    runs = data.draw(st.lists(row, min_size=1, max_size=5))
    positions, sequences = zip(*((at + i, number) for at, number, n in runs for i in range(n)), strict=True)
    kv_heads, sharing = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 6))
    finite = st.floats(-(2.0**99), 2.0**99, width=32)
    check_attention(
        *(device, DType.F32, kv_heads * sharing, kv_heads, 4 * data.draw(st.integers(1, 20))),
        *(data.draw(st.integers(1, 30)), 5, tables, lengths, positions, sequences, data.draw(st.integers(-2, 36)), 3),
        window=data.draw(st.none() | st.integers(1, 110) | st.just(2**31 - 1)),
        sinks=data.draw(st.none() | st.lists(finite, min_size=kv_heads * sharing, max_size=kv_heads * sharing)),
    )
