"""Ops that are recorded as many small dispatches: the same results on every device."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops import test_attention as attention
from tests.ops import test_elementwise as elementwise
from tests.ops import test_experts as experts
from tests.ops import test_linear as linear
from tests.ops import test_matmul as matmul
from tests.ops import test_reduce as reduce
from tests.ops import test_top_logits as top_logits
from wasmetal import ops
from wasmetal.kernels.dtypes import FLOATS, KV
from wasmetal.ops import DType, Recorder
from wasmetal.ops.work import Work


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    """Smaller than any op can be cut."""
    monkeypatch.setattr(Recorder, "slice", 1)


def test_elementwise(device):
    elementwise.test_add_and_scale(device, (3, 301))
    elementwise.test_add_and_scale(device, (11, 4))
    elementwise.test_in_place(device)
    elementwise.test_gelu(device, (13, 127), 4, 1)
    for live in (0, 4, 5):
        elementwise.test_rows_that_are_not_valid_stay(device, 5, live, ops.gelu_mul, elementwise.gelu)


@pytest.mark.parametrize("shape", [(5, 127), (31, 2), (2, 3, 12)])
def test_reduce(device, shape):
    if len(shape) == 2:
        reduce.test_rms_norm(device, shape)
        reduce.test_rms_norm_of_valid_rows(device, 6, 5)
        reduce.test_layer_norm(device, shape, -1)
    reduce.test_softmax(device, shape)
    reduce.test_argmax(device, shape)


def test_top_logits(device):
    for shape, k in (((1, 3000), 40), ((9, 1500), 3), ((6, 40), 64)):
        top_logits.test_top_logits(device, shape, k)


@pytest.mark.parametrize("dtype", [DType.F32, DType.Q4_0])
def test_linear(device, dtype):
    for rows, live in ((1, None), (1, 1), (150, 130), (150, 3), (150, None)):
        linear.check_linear(device, dtype, rows, 150, 96, accumulate=rows > 1, live=live, gap=4)
    linear.check_embed(device, dtype, [3, 1, 4, 1, 5, 9, 2, 6, 5], 10, 96, live=6, gap=1)


def test_experts(device):
    for rows, live in ((1, None), (1, 1), (9, 7), (9, None)):
        experts.check_experts(device, DType.Q4_0, rows, 3, 4, 150, 96, accumulate=rows > 1, live=live, shared=rows > 1)
    experts.test_top_k(device, 5, 127, 8, True)
    experts.check_sum(device, 9, 2, 131, live=7, gap=1)


@pytest.mark.parametrize(("kind", "result"), [(kind, result) for kind in FLOATS for result in FLOATS])
def test_matmul(device, kind, result):
    for transposed in (False, True):
        matmul.check_matmul(device, 150, 140, 9, ta=transposed, tb=not transposed, kind=kind, result=result, gap=8)
    matmul.check_matmul(device, 70, 72, 8, batch=3, kind=kind, result=result)
    matmul.check_matmul(device, 3, 5, 7, batch=20, shared_b=True, kind=kind, result=result)
    matmul.check_matmul(device, 3, 5, 7, batch=9, ta=True, tb=True, kind=kind, result=result)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope(device, interleaved):
    attention.test_rope(device, 7, 2, 10, 3, interleaved)
    attention.test_rope_clamps_to_its_table(device, 3, 8, interleaved)


@pytest.mark.parametrize("dtype", KV)
def test_attention(device, dtype):
    attention.test_attention_of_mixed_sequences(device, dtype)
    attention.test_attention(device, dtype, 5, 9, 3, 64, 16, [2, 0, 1], 3, 17)
    attention.test_attention(device, dtype, 1, 6, 1, 8, 16, [0, 1], 2, 20)
    attention.test_attention_with_sinks(device, dtype, 9, 10, 12, 4)
    attention.test_kv_append_of_mixed_sequences(device, dtype)


@pytest.mark.parametrize("most", [1, 3000, 40_000])
@pytest.mark.parametrize(("heads", "kv_heads"), [(12, 3), (4, 4), (7, 1)])
def test_heads_in_slices(device, monkeypatch, most, heads, kv_heads):
    """Whole groups of heads, parts of one, and several with parts at both ends."""
    monkeypatch.setattr(Recorder, "slice", most)
    attention.check_attention(
        device, DType.F32, heads, kv_heads, 8, 4, 5, [[4, 1, 0, 2]], [14], [11, 12, 13], [0, 0, 0], 2
    )


@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    cell=st.integers(1, 50),
    row=st.integers(0, 50),
    steps=st.tuples(*[st.integers(1, 64)] * 2),
    most=st.integers(1, 100_000),
)
def test_parts_cover_the_whole(rows, columns, cell, row, steps, most):
    """Once each, at multiples of the steps; and no part is larger than it must be."""
    work = Work(rows, columns, cell, row, *steps)
    seen = set()
    for part in work.cut(most):
        assert part.top % steps[0] == 0
        assert part.left % steps[1] == 0
        assert part.rows > 0 < part.columns
        least = part.rows <= steps[0] and part.columns <= steps[1]
        assert part.work <= most or least
        cells = {(top, left) for top in range(part.top, part.bottom) for left in range(part.left, part.right)}
        assert not seen & cells
        seen |= cells
    assert len(seen) == rows * columns
