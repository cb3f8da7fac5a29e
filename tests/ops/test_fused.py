"""Kernels that do what several others do, for every weight type, against float64 NumPy and the ops they replace.

Tolerance: 2e-6 of the sum of the products' magnitudes, as for linear, whose sums these are.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench, assert_close, random_weight, whole_blocks
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.kernels.catalog import ACTIVATIONS
from wasmetal.kernels.dtypes import WEIGHTS
from wasmetal.ops import DType, fused

TOLERANCE = 2e-6
EPS = 1e-5
LARGE = (DType.F16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (DType.F32, DType.Q8_0, DType.Q6_K)))
"""Weight types for large tests, with no blocks, blocks of 32 and blocks of 256."""

ACTIVATED = {
    "silu": lambda z: z * (1 + np.tanh(z / 2)) / 2,
    "gelu": lambda z: z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2,
}
GATES = {"silu": ops.silu_mul, "gelu": ops.gelu_mul}


def inputs(rng, dtype, rows, k, scale):
    """A vector, its norm's weights, and a matrix: raw and in float64."""
    x, norm = (scale * rng.standard_normal((1, k))).astype(np.float32), rng.standard_normal(k).astype(np.float32)
    return x, norm, *random_weight(rng, dtype, rows, k)


def normed(x, norm, eps):
    return x / np.sqrt(np.mean(np.square(x, dtype=np.float64)) + eps) * norm


def check_norm_linear(device, dtype, n, k, *, bias=False, scale=1.0, eps=EPS, max_binding_bytes=None):
    rng, k = np.random.default_rng(n + k), whole_blocks(dtype, k)
    x, norm, raw, weights = inputs(rng, dtype, n, k, scale)
    added = rng.standard_normal(n).astype(np.float32)
    with Bench(device, max_binding_bytes) as bench:
        tensors = bench.put(x), bench.put(norm), bench.put_weight(raw, dtype, k)
        out, composed, vector = bench.empty(1, n), bench.empty(1, n), bench.empty(1, k)
        extra = bench.put(added) if bias else None
        bench.run(lambda rec: ops.norm_linear(rec, *tensors, out, eps, bias=extra))
        bench.only(out)

        def compose(rec):
            ops.rms_norm(rec, tensors[0], tensors[1], vector, eps)
            ops.linear(rec, vector, tensors[2], composed)
            if extra:
                ops.add(rec, composed, extra, composed)

        bench.run(compose)
        n_x = normed(x, norm, eps)
        bound = np.abs(n_x) @ np.abs(weights).T + np.abs(added) * bias
        assert_close(bench.get(out), n_x @ weights.T + added * bias, TOLERANCE, bound)
        assert_close(bench.get(out), bench.get(composed), 2 * TOLERANCE, bound)


def check_norm_gated(device, dtype, n, k, activation, *, scale=1.0, max_binding_bytes=None):
    rng, k = np.random.default_rng(n + k), whole_blocks(dtype, k)
    x, norm, raw, weights = inputs(rng, dtype, 2 * n, k, scale)
    with Bench(device, max_binding_bytes) as bench:
        vector, factors = bench.put(x), bench.put(norm)
        gate, up = (bench.put_weight(half, dtype, k) for half in (raw[:n], raw[n:]))
        out, composed = bench.empty(1, n), bench.empty(1, n)
        bench.run(lambda rec: ops.norm_gated(rec, vector, factors, gate, up, out, EPS, activation=activation))
        bench.only(out)
        n_x = normed(x, norm, EPS)
        sums, bounds = n_x @ weights.T, np.abs(n_x) @ np.abs(weights).T
        a, b = ACTIVATED[activation](sums[:, :n]), sums[:, n:]
        # An activation's slope is at most 1.13.
        bound = 1.2 * bounds[:, :n] * np.abs(b) + np.abs(a) * bounds[:, n:] + np.abs(a * b)
        assert_close(bench.get(out), a * b, TOLERANCE, bound)

        def compose(rec):
            first, second, scratch = bench.empty(1, n), bench.empty(1, n), bench.empty(1, k)
            ops.rms_norm(rec, vector, factors, scratch, EPS)
            ops.linear(rec, scratch, gate, first)
            ops.linear(rec, scratch, up, second)
            GATES[activation](rec, first, second, composed)

        bench.run(compose)
        assert_close(bench.get(out), bench.get(composed), 2 * TOLERANCE, bound)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("n", "k"), [(1, 32), (3, 96), (17, 4128), (577, 576), (64, 1536)])
def test_norm_linear(device, dtype, n, k):
    check_norm_linear(device, dtype, n, k, bias=n % 2 == 0)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("n", "k"), [(1, 32), (3, 96), (17, 4128), (68, 576)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_norm_gated(device, dtype, n, k, activation):
    check_norm_gated(device, dtype, n, k, activation)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize(("n", "k"), [(1, 8), (5, 104)])
def test_odd_widths(device, dtype, n, k):
    check_norm_linear(device, dtype, n, k)
    check_norm_gated(device, dtype, n, k, "silu")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LARGE)
def test_a_vocabulary(device, dtype):
    check_norm_linear(device, dtype, 49152, 576)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_as_many_rows_at_a_time_as_of_large_weights(device, dtype, monkeypatch):
    """To the bit what few rows at a time give."""
    k = whole_blocks(dtype, 288)
    x, norm, raw, _ = inputs(np.random.default_rng(0), dtype, 74, k, 1.0)
    with Bench(device) as bench:
        vector, factors = bench.put(x), bench.put(norm)
        gate, up = (bench.put_weight(half, dtype, k) for half in (raw[:37], raw[37:]))
        results = []
        for least in (1, 10**6):
            monkeypatch.setattr(fused, "_WIDE", least)
            product, gated = bench.empty(1, 37), bench.empty(1, 37)
            bench.run(lambda rec, out=product: ops.norm_linear(rec, vector, factors, gate, out, EPS))
            bench.run(lambda rec, out=gated: ops.norm_gated(rec, vector, factors, gate, up, out, EPS))
            results.append((bench.get(product), bench.get(gated)))
        for wide, narrow in zip(*results, strict=True):
            assert (wide == narrow).all()


@given(
    dtype=st.sampled_from(WEIGHTS),
    n=st.integers(1, 140),
    blocks=st.integers(1, 9),
    bias=st.booleans(),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_any_shape(device, dtype, n, blocks, bias, scale, activation):
    """And vectors that are zero, or of which the norm's epsilon is a large or no part."""
    check_norm_linear(device, dtype, n, 32 * blocks, bias=bias, scale=scale)
    check_norm_gated(device, dtype, n, 32 * blocks, activation, scale=scale)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_a_weight_too_large_to_bind(device, dtype):
    """Split over several dispatches, as a 128 MiB limit splits a large vocabulary."""
    k = whole_blocks(dtype, 96)
    limit = dtype.row_bytes(k) * 100
    check_norm_linear(device, dtype, 300, k, bias=True, max_binding_bytes=limit)
    check_norm_gated(device, dtype, 301, k, "gelu", max_binding_bytes=limit)


def test_extreme_gates(device):
    """Neither activation overflows to NaN."""
    values = np.array([-1e30, -1e4, -100, 0, 100, 1e4, 1e15], np.float32)
    rows = np.eye(1, 8, dtype=np.float32)
    with Bench(device) as bench:
        x, norm = bench.put(rows), bench.put(np.ones(8, np.float32))
        gate, up = bench.put(values[:, None] * rows), bench.put(np.ones((7, 8), np.float32))
        for activation in ACTIVATIONS:
            out = bench.empty(1, 7)
            bench.run(
                lambda rec, out=out, of=activation: ops.norm_gated(rec, x, norm, gate, up, out, 0.875, activation=of)
            )
            assert_close(bench.get(out)[0], np.where(values > 0, values, 0), 1e-6, np.abs(values))


def test_refusals(device):
    with Bench(device) as bench:
        x, norm, weight, out = bench.empty(1, 64), bench.empty(64), bench.empty(6, 64), bench.empty(1, 6)
        half = bench.empty(6, 64, dtype=DType.F16)
        rec = ops.Recorder(device.info, device.record())
        small = ops.Recorder(replace(device.info, max_binding_bytes=4096), rec.commands)
        many, wide = bench.empty(100, 64), bench.empty(1, 100)
        for refused in (
            lambda: ops.norm_linear(rec, bench.empty(2, 64), norm, weight, bench.empty(2, 6), EPS),
            lambda: ops.norm_linear(rec, x, bench.empty(32), weight, out, EPS),
            lambda: ops.norm_linear(rec, x, norm, weight, bench.empty(1, 7), EPS),
            lambda: ops.norm_linear(rec, x, norm, weight, out, EPS, bias=bench.empty(5)),
            lambda: ops.norm_linear(rec, x, norm, weight, x.columns(0, 6), EPS),
            lambda: ops.norm_linear(rec, x, norm, weight, out, EPS, bias=out.reshape(6)),
            lambda: ops.norm_linear(rec, bench.empty(1, 12), bench.empty(12), bench.empty(6, 12), out, EPS),
            lambda: ops.norm_linear(rec, x, norm, bench.empty(6, dtype=DType.I32).reshape(1, 6), out, EPS),
            lambda: ops.norm_linear(small, x, norm, many, wide, EPS),
            lambda: ops.norm_gated(rec, x, norm, weight, bench.empty(5, 64), out, EPS),
            lambda: ops.norm_gated(rec, x, norm, weight, half, out, EPS),
            lambda: ops.norm_gated(rec, x, norm, weight, weight, out, EPS, activation="relu"),
            lambda: ops.norm_gated(rec, x, norm, weight, many.rows(0, 6), many.rows(0, 1).columns(0, 6), EPS),
            lambda: ops.norm_gated(small, x, norm, many, many, wide, EPS),
        ):
            with pytest.raises(OpError):
                refused()
