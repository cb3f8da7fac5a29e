"""Attention of many rows against float64 NumPy, with the tolerances of test_attention."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops import test_attention
from tests.ops.prefill_cases import SINKS, WINDOWS, check_any_batch, check_mixed_sequences, check_prompt, check_windows
from wasmetal import ops
from wasmetal.kernels.dtypes import KV
from wasmetal.ops import DType

check = partial(test_attention.check_attention, attend=ops.prefill_attention)


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize(
    "prompt",
    [  # rows, heads, kv_heads, head_dim, page_size, table, pages, position
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
    ids=str,
)
def test_prompts(device, dtype, prompt):
    check_prompt(check, device, dtype, *prompt)


@pytest.mark.parametrize("dtype", KV)
@SINKS
@WINDOWS
def test_windows_and_sinks(device, dtype, rows, valid, position, length, window, sinks):
    check_windows(check, device, dtype, 20, rows, valid, position, length, window, sinks)


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize("heads", [2, 6])
def test_mixed_sequences(device, dtype, heads):
    check_mixed_sequences(check, device, dtype, 20, heads)


@given(data=st.data())
def test_any_batch(device, data):
    check_any_batch(check, device, data, [DType.F32], range(4, 84, 4), longest=7, gap=3)
