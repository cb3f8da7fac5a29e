"""NumPy's kernels with blocks so small that every tensor takes many: the same results."""

import numpy as np
import pytest

from tests.ops import test_attention as attention
from tests.ops import test_elementwise as elementwise
from tests.ops import test_experts as experts
from tests.ops import test_linear as linear
from tests.ops import test_matmul as matmul
from tests.ops import test_reduce as reduce
from tests.ops import test_top_logits as top_logits
from wasmetal import ops
from wasmetal.kernels.dtypes import FLOATS, KV, WEIGHTS


@pytest.fixture(autouse=True, params=[32, 256], ids=lambda elements: f"blocks of {elements}")
def small_blocks(request, monkeypatch) -> int:
    for name in (
        "attention",
        "batch",
        "elementwise",
        "embed",
        "experts",
        "linear",
        "matmul",
        "reduce",
        "rope",
        "scratch",
        "top_logits",
    ):
        module = f"wasmetal.kernels.reference.{name}"
        for constant, value in {"BLOCK": request.param, "_TILE": 5, "_RUN": 6, "_REMEMBERED": 2}.items():
            monkeypatch.setattr(f"{module}.{constant}", value, raising=False)
    return request.param


def test_elementwise(reference):
    elementwise.test_add_and_scale(reference, (3, 301))
    elementwise.test_in_place(reference)
    elementwise.test_gelu(reference, (13, 127), 4, None)
    for rows in (1, 5):
        elementwise.test_rows_that_are_not_valid_stay(reference, rows, 4, ops.gelu_mul, elementwise.gelu)


@pytest.mark.parametrize("shape", [(1, 576), (5, 127), (31, 3), (3, 4099)])
def test_reduce(reference, shape):
    reduce.test_rms_norm(reference, shape)
    reduce.test_layer_norm(reference, shape, None)
    reduce.test_softmax(reference, shape)
    reduce.test_argmax(reference, shape)


def test_argmax(reference):
    reduce.test_argmax_takes_the_lowest_of_equals_and_no_nan(reference)
    reduce.test_argmax_of_nothing_but_one_value(reference)


def test_top_logits(reference):
    for shape, k in (((1, 1), 3), ((2, 5000), 40), ((5, 127), 1)):
        top_logits.test_top_logits(reference, shape, k)
    top_logits.test_any_number_of_parts(reference, 5000, 2)
    top_logits.test_logits_in_order(reference, "ascending", 5)
    top_logits.test_the_first_of_equals(reference)
    top_logits.test_few_numbers_among_nan_and_infinities(reference)
    for value in (-0.0, np.inf, -np.inf, np.nan):
        top_logits.test_one_value(reference, value, 3)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_linear(reference, dtype, small_blocks):
    if small_blocks < dtype.block[0]:
        pytest.skip(f"weights in blocks of {dtype.block[0]}")
    for rows in (1, 7):
        for accumulate in (False, True):
            linear.check_linear(reference, dtype, rows, 67, 320, accumulate=accumulate, live=rows - 1, gap=1)
            linear.check_linear(reference, dtype, rows, 67, 320, accumulate=accumulate)
    linear.check_embed(reference, dtype, [3, 1, 4, 1, 5, 9, 2, 6], 10, 320, live=7, gap=2)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_experts(reference, dtype, small_blocks):
    if small_blocks < dtype.block[0]:
        pytest.skip(f"weights in blocks of {dtype.block[0]}")
    for rows in (1, 7):
        for shared in (False, True):
            experts.check_experts(
                reference, dtype, rows, 3, 4, 19, 320, accumulate=shared, live=rows - 1, shared=shared
            )
            experts.check_experts(reference, dtype, rows, 3, 4, 19, 320, accumulate=shared, gap=4, shared=shared)


def test_routing(reference):
    experts.test_top_k(reference, 7, 300, 9, True)
    experts.test_top_k(reference, 5, 127, 8, False)
    experts.test_the_first_of_equals(reference)
    experts.test_weighted_sum(reference, 5, 2, 131, True)


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("result", FLOATS)
def test_matmul(reference, kind, result):
    for transposed in (False, True):
        matmul.check_matmul(reference, 23, 17, 140, ta=transposed, tb=not transposed, kind=kind, result=result, gap=3)
    matmul.check_matmul(reference, 3, 4, 2, batch=50, kind=kind, result=result)
    matmul.check_matmul(reference, 3, 4, 2, batch=50, shared_b=True, kind=kind, result=result)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope(reference, interleaved):
    for shape in ((1, 12, 64, 32), (5, 3, 80, 40), (130, 3, 8, 4)):
        attention.test_rope(reference, *shape, interleaved)


@pytest.mark.parametrize("dtype", KV)
def test_attention(reference, dtype):
    attention.test_attention_of_mixed_sequences(reference, dtype)
    for case in (
        (1, 9, 3, 64, 16, [0, 1, 2, 3], 4, 37),
        (1, 9, 3, 64, 16, [3, 0, 2, 1], 4, 63),
        (13, 3, 3, 20, 7, range(40), 40, 128),
        (23, 8, 1, 8, 32, range(9), 9, 0),
    ):
        attention.test_attention(reference, dtype, *case)
    for rows, position, length, window in ((1, 299, 300, None), (40, 200, 240, 129), (9, 10, 12, 4)):
        attention.test_attention_with_sinks(reference, dtype, rows, position, length, window)
    attention.test_kv_append_of_mixed_sequences(reference, dtype)
    attention.test_attention_over_any_table(reference)
    attention.test_attention_to_huge_scores(reference)
