"""top_logits against NumPy: ids and values exactly, sums of exponentials within 1e-5 of float64 (Vulkan allows an
exponential an error that grows with the exponent)."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench, assert_close
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.ops import DType

LARGEST = float(np.finfo(np.float32).max)
TOLERANCE = 1e-5


def top_logits(logits, k, inverse_temperature):
    """(ids, values, totals) of each row."""
    logits = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    short = max(0, k - logits.shape[1])
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(logits, ids, axis=1)
    apart = np.clip(logits, -LARGEST, LARGEST) - np.clip(values[:, :1], -LARGEST, LARGEST)
    sums = np.where(logits == -np.inf, 0, np.exp(apart * inverse_temperature)).sum(axis=1)
    padding = ((0, 0), (0, short))
    return (
        np.pad(ids, padding, constant_values=-1),
        np.pad(values, padding, constant_values=-np.inf),
        np.stack([values[:, 0], sums], axis=1),
    )


def check(device, logits, k, *, parts=None, inverse_temperature=1.0, gap=0):
    rows, columns = logits.shape
    shape = list(ops.top_logits_scratch_shape(rows, columns, k))
    shape[2] = parts or shape[2]
    want_ids, want_values, want_totals = top_logits(logits, k, np.float32(inverse_temperature))
    with Bench(device) as bench:
        x, scratch = bench.put(logits, gap=gap), bench.empty(*shape, dtype=DType.I32)
        ids, values, totals = bench.empty(rows, k, dtype=DType.I32), bench.empty(rows, k), bench.empty(rows, 2)
        bench.run(lambda rec: ops.top_logits(rec, x, ids, values, totals, inverse_temperature, scratch=scratch))
        assert (bench.get(ids) == want_ids).all()
        assert (bench.get(values) == want_values).all()
        got = bench.get(totals)
        assert (got[:, 0] == want_totals[:, 0]).all()
        assert_close(got[:, 1], want_totals[:, 1], TOLERANCE)
        bench.only(ids, values, totals, scratch)


SHAPES = [(1, 1), (1, 31), (1, 1024), (1, 1025), (5, 127), (3, 4099), (2, 32_003)]


@pytest.mark.parametrize("k", [1, 2, 40, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_top_logits(device, shape, k):
    """Also of rows that are shorter than k."""
    logits = np.random.default_rng(k).standard_normal(shape).astype(np.float32) * 4
    check(device, logits, k, gap=3, inverse_temperature=1 / 0.7)


@pytest.mark.parametrize("k", [1, 40])
@pytest.mark.parametrize("columns", [128_256, 262_144])
def test_large_vocabularies(device, columns, k):
    check(device, np.random.default_rng(columns).standard_normal((1, columns)).astype(np.float32) * 3, k)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 100, 256])
@pytest.mark.parametrize("columns", [1, 33, 128, 5000])
def test_any_number_of_parts(device, columns, parts):
    """Also more than there are columns, and so few that a part takes several rounds."""
    logits = np.random.default_rng(parts).standard_normal((2, columns)).astype(np.float32)
    for k in (1, 7, 64):
        check(device, logits, k, parts=parts)


@pytest.mark.parametrize("parts", [1, 5, 64])
@pytest.mark.parametrize("order", ["ascending", "descending", "one part after another", "round after round"])
def test_logits_in_order(device, order, parts):
    """The largest logits are those of a few threads or parts, so that many remain at once and all rounds have work."""
    columns, k = 9000, 64
    steps = np.arange(columns)
    part = steps // 32 % parts
    thread = steps // 32 // parts % 4 * 32 + steps % 32
    rank = {
        "ascending": steps,
        "descending": -steps,
        "one part after another": part * columns + steps,
        "round after round": (part * 128 + thread) * columns + steps,
    }[order]
    logits = np.empty((1, columns), np.float32)
    logits[0, np.argsort(rank)] = np.linspace(-5, 5, columns)
    check(device, logits, k, parts=parts)
    check(device, np.repeat(logits, 3, axis=0)[:, ::-1].copy(), k, parts=parts)


@pytest.mark.parametrize("parts", [1, 3, None])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -LARGEST, np.inf, -np.inf, np.nan])
def test_one_value(device, value, parts):
    """The first ids; of nothing but NaN and -inf the sum is 0."""
    check(device, np.full((2, 3001), value, np.float32), 50, parts=parts)


def test_the_first_of_equals(device):
    logits = np.random.default_rng(1).integers(-2, 3, (5, 6000)).astype(np.float32)
    logits[logits == 2] = -0.0
    logits[:, 4000:4010] = 1.5
    check(device, logits, 64, parts=3)
    check(device, logits, 64)


def test_few_numbers_among_nan_and_infinities(device):
    logits = np.full((3, 2500), np.nan, np.float32)
    logits[:, 1::2] = -np.inf
    logits[0, [3, 2077, 2499]] = 1, 2, 1
    logits[1, [7, 8]] = np.inf, LARGEST
    logits[2, 2498] = -LARGEST
    check(device, logits, 20, inverse_temperature=0.5)
    check(device, logits, 20, inverse_temperature=0)


@pytest.mark.parametrize("inverse_temperature", [0, 1e-30, 0.01, 1, 50, LARGEST])
def test_temperatures(device, inverse_temperature):
    logits = np.random.default_rng(4).standard_normal((2, 3000)).astype(np.float32)
    logits[0, :7] = 2.5
    logits[1, 5] = -np.inf
    check(device, logits, 3, inverse_temperature=inverse_temperature)


def test_denormal_logits_are_ordered(device):
    bits = np.random.default_rng(5).integers(0, 1 << 23, (1, 700)).astype(np.uint32)
    bits[0, ::2] |= np.uint32(1 << 31)
    check(device, bits.view(np.float32), 64)


logits_of_any_value = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan])


@given(
    some=st.lists(logits_of_any_value, min_size=1, max_size=40),
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3000),
    k=st.integers(1, 64),
    parts=st.integers(1, 20),
)
def test_any_logits(device, some, seed, rows, columns, k, parts):
    logits = np.random.default_rng(seed).choice(np.array(some, np.float32), (rows, columns))
    check(device, logits, k, parts=parts, gap=seed % 3)


@pytest.mark.parametrize("outer", [(), (2, 3)])
def test_a_vector_and_more_dimensions(device, outer):
    logits = np.random.default_rng(6).standard_normal((*outer, 500)).astype(np.float32)
    want_ids, want_values, want_totals = top_logits(logits.reshape(-1, 500), 9, 1.0)
    with Bench(device) as bench:
        x, scratch = bench.put(logits), bench.empty(len(want_ids), 10, 4, 2, dtype=DType.I32)
        ids, values = bench.empty(*outer, 9, dtype=DType.I32), bench.empty(*outer, 9)
        totals = bench.empty(*outer, 2)
        bench.run(lambda rec: ops.top_logits(rec, x, ids, values, totals, scratch=scratch))
        assert (bench.get(ids).reshape(-1, 9) == want_ids).all()
        assert (bench.get(values).reshape(-1, 9) == want_values).all()
        assert_close(bench.get(totals).reshape(-1, 2), want_totals, TOLERANCE)
        bench.only(ids, values, totals, scratch)


@pytest.mark.parametrize("word", [0, 1, -1, 1 << 30])
@pytest.mark.parametrize("name", ["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def test_scratch_that_somebody_else_has_written_to(request, name, word):
    """Equal keys, which the first kernel never writes: any result, but nothing is written elsewhere.

    Not on the emulated Metal, which has threads write nothing at the same time, not even equal values.
    """
    k, parts = 64, 256
    with Bench(request.getfixturevalue(name)) as bench:
        scratch = bench.put(np.full((2, k + 1, parts, 2), word, np.int32))
        outs = bench.empty(2, k, dtype=DType.I32), bench.empty(2, k), bench.empty(2, 2)
        numbers = {"rows": 2, "k": k, "parts": parts, "inverse_temperature": 1.0}
        bench.run(lambda rec: rec.dispatch("top_logits_merge", (scratch, *outs), 2, 1, **numbers))
        bench.only(*outs)


def test_scratch_shapes():
    for rows in (1, 3, 64, 2000):
        for columns in (1, 1024, 1025, 128_256, 262_144, 10**6):
            shape = ops.top_logits_scratch_shape(rows, columns, 40)
            assert shape == (rows, 41, shape[2], 2)
            assert 1 <= shape[2] <= 256
    assert ops.top_logits_scratch_shape(1, 128_256, 40)[2] > 100  # enough to occupy a large GPU


def test_refusals(device):
    with Bench(device) as bench:
        rec = ops.Recorder(device.info, device.record())
        x, scratch = bench.empty(4, 100), bench.empty(4, 9, 3, 2, dtype=DType.I32)
        ids, values, totals = bench.empty(4, 8, dtype=DType.I32), bench.empty(4, 8), bench.empty(4, 2)
        wide = bench.empty(4, 65, dtype=DType.I32), bench.empty(4, 65), totals

        def refused(what, logits=x, outs=(ids, values, totals), temperature=1.0, scratch=scratch):
            with pytest.raises(OpError, match=what):
                ops.top_logits(rec, logits, *outs, temperature, scratch=scratch)

        refused("logits is I32", logits=replace(x, dtype=DType.I32))
        refused("ids is F32", outs=(values, values, totals))
        refused("scratch is F32", scratch=bench.empty(4, 9, 3, 2))
        refused("the 65 largest; at most 64", outs=wide, scratch=bench.empty(4, 66, 3, 2, dtype=DType.I32))
        refused("ids has shape", logits=bench.empty(3, 100))
        refused("values has shape", outs=(ids, bench.empty(4, 7), totals))
        refused("totals has shape", outs=(ids, values, bench.empty(4, 3)))
        refused("scratch has shape", scratch=bench.empty(4, 8, 3, 2, dtype=DType.I32))
        refused("scratch has shape", scratch=bench.empty(4, 9, 6, dtype=DType.I32))
        refused("257 parts; at most 256", scratch=bench.empty(4, 9, 257, 2, dtype=DType.I32))
        refused("must be packed", outs=(ids, bench.empty(4, 8, gap=1), totals))
        refused("must be packed", scratch=bench.empty(4, 9, 3, 2, dtype=DType.I32, gap=2))
        for temperature in (-1.0, np.inf, -np.inf, np.nan):
            refused("must be finite and not negative", temperature=temperature)
        refused("beyond float32", temperature=1e300)


def test_overlaps_are_refused(device):
    """No two of the tensors may share memory."""
    shapes = {"logits": (4, 100), "ids": (4, 8), "values": (4, 8), "totals": (4, 2), "scratch": (4, 9, 3, 2)}
    kinds = {"ids": DType.I32, "scratch": DType.I32}
    with Bench(device) as bench:
        rec = ops.Recorder(device.info, device.record())
        tensors = {name: bench.empty(*shape, dtype=kinds.get(name, DType.F32)) for name, shape in shapes.items()}
        ops.top_logits(rec, **tensors)
        memory = bench.empty(1000).buffer
        for one, other in combinations(shapes, 2):
            both = {name: replace(tensors[name], buffer=memory) for name in (one, other)}
            with pytest.raises(OpError, match="overlaps"):
                ops.top_logits(rec, **(tensors | both))
