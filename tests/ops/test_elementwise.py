"""add, scale, silu_mul, gelu_mul and gelu against float64 NumPy.

Tolerances: one rounding (6e-8) for sums and products; 4e-6 for SiLU and gated GELU, since Vulkan allows a few units
for an exponential; for GELU 4e-7 of the input, since erfc is within 1.5e-7.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench, assert_close
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.ops import DType, Tensor

SHAPES = [(1,), (7,), (1, 1), (3, 5), (1, 4097), (13, 127), (2, 3, 5), (2, 3, 2, 3), ((1 << 22) + 3,)]
sizes = st.integers(1, 70)


def silu(x):
    return x / (1 + np.exp(-x))


def swiglu(gate, up):
    g = np.minimum(gate, 7)
    return g / (1 + np.exp(-1.702 * g)) * (np.clip(up, -7, 7) + 1)


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


exact_gelu = np.vectorize(lambda x: x * math.erfc(-x / math.sqrt(2)) / 2, otypes=[float])


@pytest.mark.parametrize(("shape", "gap"), [((1, 1), 0), ((3, 5), 1), ((1, 4097), 0), ((13, 127), 4)])
@pytest.mark.parametrize("live", [None, 0, 1, -1])
def test_gelu(device, shape, gap, live):
    a = np.random.default_rng(4).standard_normal(shape).astype(np.float32) * 3
    a.flat[:: max(1, a.size // 7)] = (0, -0.0, -20, 20, -1e30, 1e30, -5, 1e-20)[: len(a.flat[:: max(1, a.size // 7)])]
    count = shape[0] if live in (None, -1) else live
    want = a.astype(np.float64)
    want[:count] = exact_gelu(want[:count])
    with Bench(device) as bench:
        x, out = bench.put(a, gap=gap), bench.put(a)
        batch = None if live is None else bench.batch(shape[0], live)
        for target in (out, x):
            bench.run(lambda rec, target=target: ops.gelu(rec, x, target, batch=batch))
            assert_close(bench.get(target), want, 4e-7, np.abs(a).clip(1e-30).astype(np.float64))
        bench.only(x, out)


@pytest.mark.parametrize("shape", SHAPES)
def test_add_and_scale(device, shape):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, *shape)).astype(np.float32)
    with Bench(device) as bench:
        x, y, total, half = bench.put(a), bench.put(b), bench.empty(*shape), bench.empty(*shape)

        def record(rec):
            ops.add(rec, x, y, total)
            ops.scale(rec, total, 0.5, half)

        bench.run(record)
        want = a.astype(np.float64) + b
        assert_close(bench.get(total), want, 6e-8)
        assert_close(bench.get(half), want / 2, 6e-8)
        bench.unchanged(x, y)


@given(rows=sizes, columns=sizes, gaps=st.tuples(*[st.integers(0, 3)] * 3), seed=st.integers(0, 99))
def test_strided_rows(device, rows, columns, gaps, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, rows, columns)).astype(np.float32) * 4
    with Bench(device) as bench:
        x, y = bench.put(a, gap=gaps[0]), bench.put(b, gap=gaps[1])
        total, gated, other, limited = (bench.empty(rows, columns, gap=gaps[2]) for _ in range(4))

        def record(rec):
            ops.add(rec, x, y, total)
            ops.silu_mul(rec, x, y, gated)
            ops.gelu_mul(rec, x, y, other)
            ops.swiglu_oai(rec, x, y, limited)

        bench.run(record)
        assert_close(bench.get(total), a.astype(np.float64) + b, 6e-8)
        assert_close(bench.get(gated), silu(a.astype(np.float64)) * b, 4e-6)
        assert_close(bench.get(other), gelu(a.astype(np.float64)) * b, 4e-6, np.abs(a * b).astype(np.float64))
        assert_close(bench.get(limited), swiglu(a.astype(np.float64), b), 4e-6, np.abs(a) * (1.0 + np.abs(b)))
        bench.only(total, gated, other, limited)


def test_in_place(device):
    a = np.linspace(-3, 3, 35, dtype=np.float32).reshape(5, 7)
    with Bench(device) as bench:
        x, y, z = (bench.put(a) for _ in range(3))

        def record(rec):
            ops.add(rec, x, x, x)
            ops.scale(rec, y, -2.0, y)
            ops.silu_mul(rec, z, z, z)

        bench.run(record)
        assert_close(bench.get(x), 2.0 * a, 6e-8)
        assert_close(bench.get(y), -2.0 * a, 6e-8)
        assert_close(bench.get(z), silu(a.astype(np.float64)) * a, 4e-6)


@pytest.mark.parametrize("gated", [ops.silu_mul, ops.gelu_mul])
def test_gates_of_extremes(device, gated):
    gate = np.array([[-1e4, -100, -0.0, 0.0, 100, 1e30]], np.float32)
    with Bench(device) as bench:
        x, y, out = bench.put(gate), bench.put(np.ones_like(gate)), bench.empty(1, 6)
        bench.run(lambda rec: gated(rec, x, y, out))
        assert_close(bench.get(out), np.array([[0, 0, 0, 0, 100, 1e30]]), 4e-6, np.abs(gate).clip(1) * 1.0)


def test_limits_of_swiglu(device):
    gate = np.array([[-1e4, -100, -7, 7, 7.5, 1e30, np.inf, -3, 3]], np.float32)
    up = np.array([[1, -9, 9, np.inf, -np.inf, 7, -1e30, 1e30, -1]], np.float32)
    with Bench(device) as bench:
        x, y, out = bench.put(gate), bench.put(up), bench.empty(1, 9)
        bench.run(lambda rec: ops.swiglu_oai(rec, x, y, out))
        size = 8 * np.abs(gate).clip(1, 7).astype(np.float64)
        with np.errstate(over="ignore"):
            assert_close(bench.get(out), swiglu(gate.astype(np.float64), up), 4e-6, size)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("live", [0, 1, 4, 5, 6, -1])
@pytest.mark.parametrize(("gated", "activation"), [(ops.silu_mul, silu), (ops.gelu_mul, gelu)])
def test_rows_that_are_not_valid_stay(device, rows, live, gated, activation):
    a = np.random.default_rng(2).standard_normal((rows, 33)).astype(np.float32)
    count = live if 0 <= live <= rows else rows  # -1, read as unsigned, is more than there are.
    with Bench(device) as bench:
        x, y, out, batch = bench.put(a), bench.put(a), bench.put(np.full_like(a, 7)), bench.batch(rows, live)
        bench.run(lambda rec: gated(rec, x, y, out, batch=batch))
        got = bench.get(out)
        assert_close(got[:count], activation(a.astype(np.float64))[:count] * a[:count], 4e-6, np.square(a[:count]))
        assert (got[count:] == 7).all()


def test_refusals(device):
    with Bench(device) as bench:
        x, y, ids = bench.empty(4, 8), bench.empty(4, 7), bench.empty(4, 8, dtype=DType.I32)
        shifted = Tensor(x.buffer, x.offset + 16, DType.F32, (4, 7))
        left, right = x.columns(0, 4), x.columns(4, 8)
        rec = ops.Recorder(device.info, device.record())
        for refused in (
            lambda: ops.add(rec, x, y, x),
            lambda: ops.add(rec, x, ids, x),
            lambda: (
                ops.add(rec, y, y, shifted) or ops.add(rec, shifted, y, Tensor(x.buffer, x.offset, DType.F32, (4, 7)))
            ),
            lambda: ops.silu_mul(rec, left, left, x.columns(0, 8).columns(0, 4).rows(0, 4).columns(0, 4), batch=ids),
            lambda: ops.silu_mul(rec, x, x, x, batch=bench.batch(3)),
        ):
            with pytest.raises(OpError):
                refused()
        ops.silu_mul(rec, left, right, left)  # Interleaved, but no byte in common.
