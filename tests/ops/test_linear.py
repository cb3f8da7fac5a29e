"""linear and embed, for every weight type, against float64 NumPy and the gguf package's own reading of the blocks.

Tolerance: 2e-6 of the sum of the products' magnitudes for linear. embed is exact: in float32 the product of a scale and
a quant has no rounding, and the addition of an offset has one, fused or not.
"""

from dataclasses import replace

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench, assert_close, random_weight, whole_blocks
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.kernels.dtypes import WEIGHTS
from wasmetal.ops import DType, Tensor

TOLERANCE = 2e-6
LARGE = (
    pytest.param(DType.F32, marks=pytest.mark.slow),
    DType.F16,
    DType.Q8_0,
    pytest.param(DType.Q6_K, marks=pytest.mark.slow),
)
"""Weight types for large tests, with no blocks, blocks of 32 and blocks of 256."""


def check_linear(
    device, dtype, rows, n, k, *, accumulate=False, live=None, gap=0, max_binding_bytes=None, tolerance=TOLERANCE
):
    rng = np.random.default_rng(rows * n + k)
    k = whole_blocks(dtype, k)
    raw, weights = random_weight(rng, dtype, n, k)
    a, old = rng.standard_normal((rows, k)).astype(np.float32), rng.standard_normal((rows, n)).astype(np.float32)
    count = rows if live is None or not 0 <= live <= rows else live
    with Bench(device, max_binding_bytes) as bench:
        x, weight, out = bench.put(a, gap=gap), bench.put_weight(raw, dtype, k), bench.put(old, gap=gap)
        batch = None if live is None else bench.batch(rows, live)
        bench.run(lambda rec: ops.linear(rec, x, weight, out, accumulate=accumulate, batch=batch))
        got = bench.get(out)
        want = a.astype(np.float64) @ weights.T + accumulate * old
        scale = np.abs(a) @ np.abs(weights).T + np.abs(old)
        assert_close(got[:count], want[:count], tolerance, scale[:count])
        assert (got[count:] == old[count:]).all()
        bench.only(out)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(
    ("rows", "n", "k"),
    [
        (1, 1, 32),
        (1, 3, 96),  # an odd number of blocks: rows that begin within a word
        (1, 577, 576),
        (1, 64, 1536),
        (1, 17, 4128),
        (2, 1, 32),
        (3, 65, 96),
        (64, 64, 64),
        (65, 129, 160),
        (97, 5, 576),
    ],
)
def test_linear(device, dtype, rows, n, k):
    check_linear(device, dtype, rows, n, k)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 1, 1), (1, 7, 13), (1, 8, 12), (5, 11, 37), (70, 67, 101), (1, 5, 8)])
def test_odd_widths(device, dtype, rows, n, k):
    check_linear(device, dtype, rows, n, k)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LARGE)
def test_a_vocabulary(device, dtype):
    check_linear(device, dtype, 1, 49152, 576)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("rows", "live"), [(1, 0), (1, 1), (70, 1), (70, 65)])
def test_rows_that_are_not_valid_stay(device, dtype, rows, live):
    check_linear(device, dtype, rows, 67, 64, live=live, accumulate=True)


@pytest.mark.parametrize("dtype", [DType.F32, DType.Q4_0, pytest.param(DType.Q4_K, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("rows", "live"), [(1, -1), (70, 0), (70, 64), (70, 71)])
def test_any_number_of_valid_rows(device, dtype, rows, live):
    """Numbers of whole tiles, of none, and that are none: how rows are counted does not depend on the weight's type."""
    check_linear(device, dtype, rows, 67, 64, live=live, accumulate=True)


@given(
    dtype=st.sampled_from(WEIGHTS),
    rows=st.integers(1, 80),
    n=st.integers(1, 140),
    blocks=st.integers(1, 9),
    accumulate=st.booleans(),
    live=st.none() | st.integers(-1, 85),
    gap=st.integers(0, 5),
)
def test_any_shape(device, dtype, rows, n, blocks, accumulate, live, gap):
    check_linear(device, dtype, rows, n, 32 * blocks, accumulate=accumulate, live=live, gap=gap)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_weight_too_large_to_bind(device, dtype, rows):
    """Split over several dispatches, as a 128 MiB limit splits a large vocabulary."""
    check_linear(device, dtype, rows, 300, 96, accumulate=True, live=rows, max_binding_bytes=96 * 4 * 100)


def check_embed(device, dtype, ids, vocabulary, k, *, live=None, gap=0, max_binding_bytes=None):
    k = whole_blocks(dtype, k)
    raw, weights = random_weight(np.random.default_rng(k), dtype, vocabulary, k)
    ids = np.array(ids).astype(np.int64).astype(np.uint32)
    count = len(ids) if live is None or not 0 <= live <= len(ids) else live
    with Bench(device, max_binding_bytes) as bench:
        table, numbers = bench.put_weight(raw, dtype, k), bench.put(ids.view(np.int32))
        out = bench.put(np.full((len(ids), k), 7, np.float32), gap=gap)
        batch = None if live is None else bench.batch(len(ids), live)
        bench.run(lambda rec: ops.embed(rec, table, numbers, out, batch=batch))
        got = bench.get(out)
        want = weights[np.minimum(ids, vocabulary - 1)]
        assert (got[:count] == want[:count]).all()
        assert (got[count:] == 7).all()
        bench.only(out)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(
    ("ids", "vocabulary", "k"),
    [([0], 1, 32), ([2, 0, 2, 1], 3, 96), (range(0, 131, 7), 131, 160)],
)
def test_embed(device, dtype, ids, vocabulary, k):
    check_embed(device, dtype, ids, vocabulary, k, gap=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LARGE)
@pytest.mark.parametrize(("ids", "vocabulary", "k"), [(range(0, 4001, 31), 4001, 160), ([5], 49152, 576)])
def test_embed_a_vocabulary(device, dtype, ids, vocabulary, k):
    check_embed(device, dtype, ids, vocabulary, k, gap=1)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("k", [1, 13, 129, 4099])
def test_embed_odd_widths(device, dtype, k):
    check_embed(device, dtype, [3, 1, 4, 1, 5], 6, k)


@given(
    dtype=st.sampled_from(WEIGHTS),
    ids=st.lists(st.integers(0, 220) | st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9),
    live=st.none() | st.integers(-1, 10),
    split=st.booleans(),
)
def test_any_ids(device, dtype, ids, live, split):
    """Ids past the table, and negative ones, give its last row; a table bound in parts gives the same."""
    check_embed(device, dtype, ids, 211, 96, live=live, max_binding_bytes=96 * 4 * 70 if split else None)


def test_every_scale_of_mxfp4(device):
    """From 2^-125 to 2^127. (Devices may take numbers below the normal ones for 0.)"""
    blocks = np.random.default_rng(0).integers(0, 256, (256, 17), dtype=np.uint8)
    blocks[:, 0] = np.arange(256)
    with Bench(device) as bench:
        table, ids = bench.put_weight(blocks, DType.MXFP4, 32), bench.put(np.arange(256, dtype=np.int32))
        out = bench.empty(256, 32)
        bench.run(lambda rec: ops.embed(rec, table, ids, out))
        got = bench.get(out)
    with np.errstate(over="ignore"):
        want = dequantize(blocks, GGMLQuantizationType.MXFP4)
    normal = (np.abs(want) >= np.finfo(np.float32).tiny) & (blocks[:, :1] > 1)
    assert (got[normal] == want[normal]).all()
    assert np.abs(got[~normal] - want[~normal]).max() < 12 * 2.0**-126


def test_refusals(device):
    with Bench(device) as bench:
        x, out, weight = bench.empty(2, 64), bench.empty(2, 3), bench.empty(3, 64)
        ids = bench.empty(2, dtype=DType.I32)
        rec = ops.Recorder(device.info, device.record())
        small = ops.Recorder(replace(device.info, max_binding_bytes=4096), rec.commands)
        for refused in (
            lambda: ops.linear(rec, x, weight, bench.empty(2, 4)),
            lambda: ops.linear(rec, x, bench.empty(3, 32), out),
            lambda: ops.linear(rec, x, ids.reshape(1, 2), out),
            lambda: ops.linear(rec, x, bench.empty(3, 128).columns(0, 64), out),
            lambda: ops.linear(rec, x, Tensor(x.buffer, x.offset, DType.F32, (2, 64)), x.columns(0, 2)),
            lambda: ops.embed(rec, weight, ids.reshape(1, 2), x),
            lambda: ops.embed(rec, weight, ids, weight.rows(0, 2)),
            lambda: ops.embed(rec, weight, bench.empty(2), x),
            lambda: ops.linear(small, bench.empty(1, 64), bench.empty(100, 64), bench.empty(1, 100)),
        ):
            with pytest.raises(OpError):
                refused()
