"""matmul against float64 NumPy.

Tolerances: 2e-6 of the sum of the products' magnitudes, and a unit of float16 for float16 results.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import NUMPY, Bench, assert_close
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.ops import DType

FLOATS = [DType.F32, DType.F16]


def check_matmul(
    device, m, n, k, *, batch=None, shared_b=False, ta=False, tb=False, kind=DType.F32, result=DType.F32, gap=0
):
    rng = np.random.default_rng(m + 1000 * n + k)
    lead = (batch,) if batch else ()
    a = rng.standard_normal((*lead, *((k, m) if ta else (m, k)))).astype(NUMPY[kind])
    b = rng.standard_normal((() if shared_b else lead) + ((n, k) if tb else (k, n))).astype(NUMPY[kind])
    with Bench(device) as bench:
        x, y, out = bench.put(a, gap=gap), bench.put(b, gap=gap), bench.empty(*lead, m, n, dtype=result, gap=gap)
        bench.run(lambda rec: ops.matmul(rec, x, y, out, transpose_a=ta, transpose_b=tb))
        left, right = (
            v.astype(np.float64).swapaxes(-1, -2) if t else v.astype(np.float64) for v, t in ((a, ta), (b, tb))
        )
        want = left @ right
        scale = np.abs(left) @ np.abs(right)
        bound = 2e-6 * scale + (0 if result is DType.F32 else 2**-10 * np.abs(want) + 2**-24)
        assert_close(bench.get(out), want, 1.0, bound)
        bench.only(out)


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("result", FLOATS)
@pytest.mark.parametrize(("ta", "tb"), [(False, False), (False, True), (True, False), (True, True)])
def test_types_and_layouts(device, kind, result, ta, tb):
    check_matmul(device, 67, 71, 45, ta=ta, tb=tb, kind=kind, result=result, gap=3)


@pytest.mark.parametrize("result", FLOATS)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (1, 129, 33), (129, 1, 7), (64, 64, 32), (128, 128, 128), (2, 3, 1021)]
)
def test_shapes(device, m, n, k, result):
    check_matmul(device, m, n, k, result=result)


def test_large(device):
    check_matmul(device, 257, 383, 512, kind=DType.F16)


@given(
    m=st.integers(1, 70),
    n=st.integers(1, 70),
    k=st.integers(1, 70),
    batch=st.none() | st.integers(1, 4),
    shared_b=st.booleans(),
    ta=st.booleans(),
    tb=st.booleans(),
    kind=st.sampled_from(FLOATS),
    gap=st.integers(0, 3),
)
def test_any_shape(device, m, n, k, batch, shared_b, ta, tb, kind, gap):
    check_matmul(device, m, n, k, batch=batch, shared_b=shared_b, ta=ta, tb=tb, kind=kind, gap=gap)


def test_accumulates_in_float32(device):
    """Float16 products of which float16 sums would lose all after 2048 ones."""
    ones = np.ones((1, 5000), np.float16)
    with Bench(device) as bench:
        x, y, out = bench.put(ones), bench.put(ones), bench.empty(1, 1)
        bench.run(lambda rec: ops.matmul(rec, x, y, out, transpose_b=True))
        assert bench.get(out) == 5000


def test_refusals(device):
    with Bench(device) as bench:
        a, b, c = bench.empty(4, 5), bench.empty(5, 6), bench.empty(4, 6)
        stack = bench.empty(2, 4, 5)
        rec = ops.Recorder(device.info, device.record())
        for refused in (
            lambda: ops.matmul(rec, a, b, c, transpose_a=True),
            lambda: ops.matmul(rec, a, bench.empty(5, 6, dtype=DType.F16), c),
            lambda: ops.matmul(rec, a, b, bench.empty(6, 4)),
            lambda: ops.matmul(rec, stack, bench.empty(3, 5, 6), bench.empty(2, 4, 6)),
            lambda: ops.matmul(rec, a, bench.empty(2, 5, 6), c),
            lambda: ops.matmul(rec, bench.empty(4), b, c),
            lambda: ops.matmul(rec, a, bench.empty(5, 5), a),
        ):
            with pytest.raises(OpError):
                refused()
