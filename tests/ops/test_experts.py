"""top_k, expert_linear and weighted_sum against float64 NumPy, with ids and logits of any value.

Tolerances: 2e-6 of the sum of the products' magnitudes for products; 4e-6 for weights, since Vulkan allows a few units
for an exponential.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench, assert_close, random_weight, whole_blocks
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.kernels.dtypes import WEIGHTS
from wasmetal.ops import DType
from wasmetal.ops.experts import MAX_SLOTS

TOLERANCE = 2e-6
ids_of_any_value = st.integers(0, 12) | st.integers(-(2**31), 2**31 - 1)


def chosen(logits, slots, normalized):
    """(ids, weights) of each row."""
    order = np.argsort(-np.nan_to_num(logits, nan=-np.inf, posinf=np.inf, neginf=-np.inf), axis=1, kind="stable")
    ids = order[:, :slots]
    powers = np.exp(logits.astype(np.float64) - np.nanmax(logits, axis=1, keepdims=True))
    weights = np.take_along_axis(powers, ids, axis=1)
    return ids, weights / (weights if normalized else powers).sum(axis=1, keepdims=True)


def check_top_k(device, logits, slots, *, normalized=True, live=None, gap=0):
    rows = len(logits)
    count = rows if live is None or not 0 <= live <= rows else live
    want_ids, want_weights = chosen(logits, slots, normalized)
    with Bench(device) as bench:
        x, ids = bench.put(logits, gap=gap), bench.put(np.full((rows, slots), -7, np.int32))
        weights = bench.put(np.full((rows, slots), -7, np.float32))
        batch = None if live is None else bench.batch(rows, live)
        bench.run(lambda rec: ops.top_k(rec, x, ids, weights, normalized=normalized, batch=batch))
        assert (bench.get(ids)[:count] == want_ids[:count]).all()
        assert_close(bench.get(weights)[:count], want_weights[:count], 4e-6)
        assert (bench.get(ids)[count:] == -7).all()
        assert (bench.get(weights)[count:] == -7).all()
        bench.only(ids, weights)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "slots"), [(1, 1, 1), (1, 8, 2), (3, 32, 4), (5, 127, 8), (2, 128, 128), (7, 300, 9)]
)
def test_top_k(device, rows, columns, slots, normalized):
    logits = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32) * 3
    check_top_k(device, logits, slots, normalized=normalized, gap=3)


def test_the_first_of_equals(device):
    logits = np.random.default_rng(1).integers(0, 4, (9, 150)).astype(np.float32)
    check_top_k(device, logits, 20)


@pytest.mark.parametrize("live", [0, 1, 4, 5, 6, -1])
def test_rows_that_are_not_valid_stay(device, live):
    logits = np.random.default_rng(2).standard_normal((5, 33)).astype(np.float32)
    check_top_k(device, logits, 3, live=live)
    check_experts(device, DType.Q4_0, 5, 3, 4, 37, 64, live=live, accumulate=True)
    check_sum(device, 5, 3, 37, live=live)


values = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan])


@given(data=st.data(), columns=st.integers(1, 40), normalized=st.booleans())
def test_top_k_of_any_values(device, data, columns, normalized):
    """Ids are different columns, best first, whatever the logits."""
    slots = data.draw(st.integers(1, columns))
    row = np.array(data.draw(st.lists(values, min_size=columns, max_size=columns)), np.float32)
    row[np.abs(row) < np.finfo(np.float32).tiny] = 0  # which devices may take for 0
    with Bench(device) as bench:
        x, ids, weights = bench.put(row[None]), bench.empty(1, slots, dtype=DType.I32), bench.empty(1, slots)
        bench.run(lambda rec: ops.top_k(rec, x, ids, weights, normalized=normalized))
        got = bench.get(ids)[0]
        shares = bench.get(weights)[0]
    assert len(set(got.tolist())) == slots
    ordered = np.clip(np.nan_to_num(row, nan=-np.inf, posinf=np.inf, neginf=-np.inf), -3.4028235e38, None)
    assert (ordered[got] == np.sort(ordered)[::-1][:slots]).all()
    if np.isfinite(row).all():
        assert (shares >= 0).all()
        assert shares.sum() <= 1 + 1e-5
    if (row == -np.inf).all():
        assert (shares == 0).all()


def check_experts(
    device,
    dtype,
    rows,
    slots,
    experts,
    n,
    k,
    *,
    ids=None,
    shared=True,
    accumulate=False,
    live=None,
    gap=0,
    max_binding_bytes=None,
):
    rng = np.random.default_rng(rows * n + k)
    k = whole_blocks(dtype, k)
    raw, weights = random_weight(rng, dtype, experts * n, k)
    weights = weights.reshape(experts, n, k)
    ids = rng.integers(0, experts, (rows, slots)) if ids is None else np.array(ids).reshape(rows, slots)
    ids = ids.astype(np.int64).astype(np.uint32)
    values = rng.standard_normal((rows, k) if shared else (rows, slots, k)).astype(np.float32)
    old = rng.standard_normal((rows, slots, n)).astype(np.float32)
    count = rows if live is None or not 0 <= live <= rows else live
    with Bench(device, max_binding_bytes) as bench:
        x, out = bench.put(values, gap=gap), bench.put(old, gap=gap)
        weight = bench.put_weight(raw, dtype, k).reshape(experts, n, k)
        numbers = bench.put(ids.view(np.int32))
        batch = None if live is None else bench.batch(rows, live)
        bench.run(lambda rec: ops.expert_linear(rec, x, weight, numbers, out, accumulate=accumulate, batch=batch))
        got = bench.get(out)
        bench.only(out)
    mine = weights[np.minimum(ids, experts - 1)]
    each = np.broadcast_to(values[:, None] if shared else values, (rows, slots, k)).astype(np.float64)
    want = np.einsum("tsk,tsnk->tsn", each, mine) + accumulate * old
    size = np.einsum("tsk,tsnk->tsn", np.abs(each), np.abs(mine)) + np.abs(old)
    assert_close(got[:count], want[:count], TOLERANCE, size[:count])
    assert (got[count:] == old[count:]).all()


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(
    ("rows", "slots", "experts", "n", "k"),
    [
        (1, 1, 1, 1, 32),
        (1, 3, 5, 7, 96),
        (1, 4, 3, 65, 288),
        (2, 1, 2, 1, 32),
        (7, 2, 4, 67, 96),
        (90, 3, 2, 13, 64),  # more rows of an expert than a tile has
    ],
)
def test_expert_linear(device, dtype, rows, slots, experts, n, k):
    check_experts(device, dtype, rows, slots, experts, n, k, accumulate=True)
    check_experts(device, dtype, rows, slots, experts, n, k, shared=False, gap=4)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (1, 13), (1, 40), (5, 37), (3, 1030)])
def test_odd_widths(device, dtype, rows, k):
    check_experts(device, dtype, rows, 2, 3, 11, k, shared=False)


@given(
    dtype=st.sampled_from(WEIGHTS),
    rows=st.integers(1, 40),
    slots=st.integers(1, 4),
    experts=st.integers(1, 9),
    n=st.integers(1, 70),
    blocks=st.integers(1, 5),
    shared=st.booleans(),
    accumulate=st.booleans(),
    live=st.none() | st.integers(-1, 45),
    split=st.booleans(),
    data=st.data(),
)
def test_any_ids(device, dtype, rows, slots, experts, n, blocks, shared, accumulate, live, split, data):
    """Ids past the experts, and negative ones, are the last; experts bound in parts give the same."""
    ids = data.draw(st.lists(ids_of_any_value, min_size=rows * slots, max_size=rows * slots))
    k = whole_blocks(dtype, 32 * blocks)
    options = {"shared": shared, "accumulate": accumulate, "live": live}
    if split:  # as little as holds every other tensor, and so many experts as are a multiple of 16 bytes
        largest = max(16 * n * dtype.row_bytes(k), 4 * rows * slots * max(n, k))
        options["max_binding_bytes"] = 512 + largest
    check_experts(device, dtype, rows, slots, experts, n, k, ids=ids, **options)


@pytest.mark.parametrize("dtype", [DType.F32, DType.Q8_0, DType.MXFP4])
@pytest.mark.parametrize("rows", [1, 3])
def test_experts_too_large_to_bind_together(device, dtype, rows):
    bytes_of_two = 2 * 48 * dtype.row_bytes(96)
    check_experts(device, dtype, rows, 4, 7, 48, 96, live=rows, max_binding_bytes=256 + bytes_of_two)


def check_sum(device, rows, slots, columns, *, accumulate=True, live=None, gap=0):
    rng = np.random.default_rng(columns)
    a = rng.standard_normal((rows, slots, columns)).astype(np.float32)
    b, old = rng.standard_normal((rows, slots)).astype(np.float32), rng.standard_normal((rows, columns))
    old = old.astype(np.float32)
    count = rows if live is None or not 0 <= live <= rows else live
    with Bench(device) as bench:
        x, weights, out = bench.put(a, gap=gap), bench.put(b), bench.put(old, gap=gap)
        batch = None if live is None else bench.batch(rows, live)
        bench.run(lambda rec: ops.weighted_sum(rec, x, weights, out, accumulate=accumulate, batch=batch))
        got = bench.get(out)
        bench.only(out)
    want = np.einsum("ts,tsk->tk", b.astype(np.float64), a) + accumulate * old
    size = np.einsum("ts,tsk->tk", np.abs(b), np.abs(a)) + np.abs(old)
    assert_close(got[:count], want[:count], TOLERANCE, size[:count])
    assert (got[count:] == old[count:]).all()


@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize(("rows", "slots", "columns"), [(1, 1, 1), (1, 8, 2048), (5, 2, 131), (3, 128, 7)])
def test_weighted_sum(device, rows, slots, columns, accumulate):
    check_sum(device, rows, slots, columns, accumulate=accumulate, gap=2)


def test_refusals(device):
    with Bench(device) as bench:
        x, weight, out = bench.empty(2, 64), bench.empty(3, 5, 64), bench.empty(2, 4, 5)
        ids, weights = bench.empty(2, 4, dtype=DType.I32), bench.empty(2, 4)
        many = bench.empty(1, 200)
        rec = ops.Recorder(device.info, device.record())
        small = ops.Recorder(replace(device.info, max_binding_bytes=1024), rec.commands)
        for refused in (
            lambda: ops.top_k(rec, bench.empty(2, 3), ids, weights),
            lambda: ops.top_k(rec, x, weights, weights),
            lambda: ops.top_k(rec, x, ids, bench.empty(2, 3)),
            lambda: ops.top_k(rec, x, replace(x, dtype=DType.I32).columns(0, 4), weights),
            lambda: ops.top_k(rec, many, bench.empty(1, MAX_SLOTS + 1, dtype=DType.I32), bench.empty(1, MAX_SLOTS + 1)),
            lambda: ops.expert_linear(rec, bench.empty(2, 32), weight, ids, out),
            lambda: ops.expert_linear(rec, bench.empty(2, 3, 64), weight, ids, out),
            lambda: ops.expert_linear(rec, x, weight, ids.reshape(4, 2), out),
            lambda: ops.expert_linear(rec, x, weight, weights, out),
            lambda: ops.expert_linear(rec, x, weight, ids, bench.empty(2, 4, 6)),
            lambda: ops.expert_linear(rec, x, weight.reshape(15, 64), ids, out),
            lambda: ops.expert_linear(rec, x, weight, ids, replace(weight, shape=(2, 4, 5), row_stride=0)),
            lambda: ops.expert_linear(small, x, weight, ids, out),
            lambda: ops.weighted_sum(rec, out, bench.empty(2, 3), bench.empty(2, 5)),
            lambda: ops.weighted_sum(rec, out, weights, bench.empty(2, 4)),
            lambda: ops.weighted_sum(rec, out, weights, replace(out, shape=(2, 5), row_stride=0)),
        ):
            with pytest.raises(OpError):
                refused()
