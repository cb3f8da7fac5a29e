"""rms_norm, layer_norm, softmax and argmax against float64 NumPy.

Tolerances: 2e-6 relative for rms_norm; 1e-6 and the rounding of the mean for layer_norm; for softmax
1e-5 relative, plus a part in 1e7 of the row's largest value, as Vulkan allows its exponential an error that grows with
the exponent.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench, assert_close
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.ops import DType

SHAPES = [(1, 1), (1, 576), (5, 127), (31, 129), (3, 4099), (1, 128256)]


def rms_norm(x, weight, eps):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    x = x.astype(np.float64)
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + eps) * weight + bias


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def assert_softmax(got, want):
    assert_close(got, want, 1.0, 1e-5 * want + 1e-7 * want.max(axis=-1, keepdims=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(device, shape):
    rng = np.random.default_rng(1)
    a, w = rng.standard_normal(shape).astype(np.float32) * 30, rng.standard_normal(shape[1]).astype(np.float32)
    with Bench(device) as bench:
        x, weight, out = bench.put(a, gap=1), bench.put(w), bench.empty(*shape, gap=2)
        bench.run(lambda rec: ops.rms_norm(rec, x, weight, out, 1e-5))
        assert_close(bench.get(out), rms_norm(a, w, 1e-5), 2e-6)
        bench.run(lambda rec: ops.rms_norm(rec, x, weight, x, 1e-5))
        assert_close(bench.get(x), rms_norm(a, w, 1e-5), 2e-6)
        bench.only(x, out)


@pytest.mark.parametrize("live", [None, 0, 1, -1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 64), (1, 5000, 80), (5, 3, 129), (31, 2, 7)])
def test_rms_norm_of_heads(device, shape, live):
    """Strided rows of packed heads, as queries and keys are."""
    rng = np.random.default_rng(3)
    a, w = rng.standard_normal(shape).astype(np.float32) * 30, rng.standard_normal(shape[2]).astype(np.float32)
    count = shape[0] if live in (None, -1) else live
    with Bench(device) as bench:
        x, weight, out = bench.put(a, gap=4), bench.put(w), bench.put(a, gap=8)
        batch = None if live is None else bench.batch(shape[0], live)
        want = a.astype(np.float64)
        for row in range(count):
            want[row] = rms_norm(a[row], w, 1e-5)
        for target in (out, x):
            bench.run(lambda rec, target=target: ops.rms_norm(rec, x, weight, target, 1e-5, batch=batch))
            assert_close(bench.get(target), want, 2e-6)
        bench.only(x, out)


@pytest.mark.parametrize("live", [None, 0, 1, -1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 384), (5, 127), (31, 129), (3, 4099)])
def test_layer_norm(device, shape, live):
    """Rows with a mean that is large against their spread."""
    rng = np.random.default_rng(5)
    a = (rng.standard_normal(shape) + 20).astype(np.float32)
    w, b = rng.standard_normal((2, shape[1])).astype(np.float32)
    count = shape[0] if live in (None, -1) else live
    want = a.astype(np.float64)
    want[:count] = layer_norm(a, w, b, 1e-12 if shape[1] > 1 else 1.0)[:count]
    with Bench(device) as bench:
        x, weight, bias, out = bench.put(a, gap=1), bench.put(w), bench.put(b), bench.put(a, gap=2)
        batch = None if live is None else bench.batch(shape[0], live)
        eps = 1e-12 if shape[1] > 1 else 1.0
        for target in (out, x):
            bench.run(lambda rec, target=target: ops.layer_norm(rec, x, weight, bias, target, eps, batch=batch))
            rounding = 5e-7 * 20 / np.sqrt(a.astype(np.float64).var(axis=1, keepdims=True) + eps)  # of the mean
            scale = 1e-6 * (np.abs(want) + np.abs(b)) + (1e-6 + rounding) * np.abs(w)
            assert_close(bench.get(target), want, 1.0, np.broadcast_to(scale, shape))
        bench.only(x, out)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("live", [0, 1, 5, 6, -1])
def test_rms_norm_of_valid_rows(device, rows, live):
    a, w = np.random.default_rng(2).standard_normal((rows, 40)).astype(np.float32), np.ones(40, np.float32)
    count = min(live, rows) if live >= 0 else rows
    with Bench(device) as bench:
        x, weight, out, batch = bench.put(a), bench.put(w), bench.put(a), bench.batch(rows, live)
        bench.run(lambda rec: ops.rms_norm(rec, x, weight, out, 1e-6, batch=batch))
        got = bench.get(out)
        assert_close(got[:count], rms_norm(a, w, 1e-6)[:count], 2e-6)
        assert (got[count:] == a[count:]).all()


def test_rms_norm_of_zeros_is_zeros(device):
    with Bench(device) as bench:
        x, weight, out = bench.put(np.zeros((2, 9), np.float32)), bench.put(np.ones(9, np.float32)), bench.empty(2, 9)
        bench.run(lambda rec: ops.rms_norm(rec, x, weight, out, 1e-6))
        assert (bench.get(out) == 0).all()


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(("value", "eps"), [(0, 0), (1, -4), (np.inf, 0), (np.nan, 1)])
def test_rms_norm_without_a_root_is_not_finite(device, rows, value, eps):
    """No error, as a kernel has nobody to tell."""
    with Bench(device) as bench:
        x, weight = bench.put(np.full((rows, 9), value, np.float32)), bench.put(np.ones(9, np.float32))
        out = bench.put(np.zeros((rows, 9), np.float32))
        bench.run(lambda rec: ops.rms_norm(rec, x, weight, out, eps))
        assert not np.isfinite(bench.get(out)).any()


@pytest.mark.parametrize("shape", [*SHAPES, (7,), (2, 3, 11)])
def test_softmax(device, shape):
    a = np.random.default_rng(3).standard_normal(shape).astype(np.float32) * 5
    with Bench(device) as bench:
        x, out = bench.put(a), bench.empty(*shape)
        bench.run(lambda rec: ops.softmax(rec, x, out))
        got = bench.get(out)
        assert_softmax(got, softmax(a))
        assert_close(got.sum(axis=-1), np.ones(shape[:-1]), 1e-5)
        bench.unchanged(x)
        bench.run(lambda rec: ops.softmax(rec, x, x))
        assert_softmax(bench.get(x), softmax(a))


def test_softmax_of_extremes(device):
    inf = np.inf
    a = np.array(
        [[-inf] * 5, [-inf, 0, -inf, 0, -inf], [3e38, 3e38, -3e38, 0, 1], [1e4, 1e4 + 1, 0, 0, -inf]], np.float32
    )
    want = np.vstack([np.zeros(5), softmax(a[1:])])
    with Bench(device) as bench:
        x, out = bench.put(a, gap=1), bench.empty(4, 5)
        bench.run(lambda rec: ops.softmax(rec, x, out))
        assert_softmax(bench.get(out), want)


@pytest.mark.parametrize("shape", [*SHAPES, (7,), (2, 3, 11)])
def test_argmax(device, shape):
    a = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    with Bench(device) as bench:
        x, out = bench.put(a), bench.empty(*(shape[:-1] or (1,)), dtype=DType.I32)
        bench.run(lambda rec: ops.argmax(rec, x, out))
        assert (bench.get(out) == a.argmax(axis=-1)).all()
        bench.only(out)


@given(
    st.lists(
        st.lists(st.sampled_from([-np.inf, -3e38, -1.0, -0.0, 0.0, 2.0, np.inf, np.nan]), min_size=200, max_size=200),
        min_size=1,
        max_size=4,
    )
)
def test_argmax_takes_the_lowest_of_equals_and_no_nan(device, rows):
    a = np.array(rows, np.float32)
    want = [
        next((i for i, v in enumerate(row) if v == np.nanmax(row)), 0) if not np.isnan(row).all() else 0 for row in a
    ]
    with Bench(device) as bench:
        x, out = bench.put(a, gap=1), bench.empty(len(a), dtype=DType.I32)
        bench.run(lambda rec: ops.argmax(rec, x, out))
        assert (bench.get(out) == want).all()


def test_argmax_of_long_rows(device):
    """Longer than what the CPU device takes at a time."""
    a = np.full((4, 300_000), -np.inf, np.float32)
    a[:2, ::2] = np.nan
    a[1, [270_001, 299_999]] = 3
    a[2, :270_000] = np.nan
    a[3] = np.nan
    with Bench(device) as bench:
        x, out = bench.put(a), bench.empty(4, dtype=DType.I32)
        bench.run(lambda rec: ops.argmax(rec, x, out))
        assert bench.get(out).tolist() == [1, 270_001, 270_000, 0]


def test_argmax_of_nothing_but_one_value(device):
    a = np.stack([np.full(300, value, np.float32) for value in (-np.inf, np.nan, np.inf, 0, -3.4028235e38)])
    with Bench(device) as bench:
        x, out = bench.put(a), bench.empty(5, dtype=DType.I32)
        bench.run(lambda rec: ops.argmax(rec, x, out))
        assert (bench.get(out) == 0).all()


def test_refusals(device):
    with Bench(device) as bench:
        x, y, vector, ids = bench.empty(4, 8), bench.empty(4, 7), bench.empty(8), bench.empty(4, dtype=DType.I32)
        rec = ops.Recorder(device.info, device.record())
        for refused in (
            lambda: ops.rms_norm(rec, x, vector, y, 1e-5),
            lambda: ops.rms_norm(rec, vector, vector, vector, 1e-5),
            lambda: ops.rms_norm(rec, x.reshape(2, 2, 8), vector, x, 1e-5),
            lambda: ops.rms_norm(rec, x, bench.empty(7), x, 1e-5),
            lambda: ops.rms_norm(rec, x, x.rows(1, 2).reshape(8), x, 1e-5),
            lambda: ops.softmax(rec, x, y),
            lambda: ops.softmax(rec, x.rows(0, 2), x.rows(1, 3)),
            lambda: ops.argmax(rec, x, vector),
            lambda: ops.argmax(rec, y.rows(0, 3), ids),
        ):
            with pytest.raises(OpError):
                refused()
