"""rope, kv_append and attention against float64 NumPy.

Tolerances: 3e-7 of the pair's length for rope; half a unit of float16, or one where the device rounds to zero, for
float16 pages; for attention 1e-5 of the largest value there is to average.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import Bench, assert_close

from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.ops import DType, Tensor

HOSTILE = [-1, -(2**31), 2**31 - 1, 12345678]


def angles(positions, pairs):
    table = np.arange(positions)[:, None] / 10000.0 ** (np.arange(pairs) / pairs)
    return np.stack([np.cos(table), np.sin(table)], axis=-1).astype(np.float32)


def rope(x, table, positions, interleaved):
    x, (c, s) = x.astype(np.float64), np.moveaxis(table[positions].astype(np.float64), -1, 0)[:, :, None]
    pairs = table.shape[1]
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    a, b, out = x[..., first], x[..., second], x.copy()
    out[..., first], out[..., second] = a * c - b * s, a * s + b * c
    return out


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("rows", "heads", "head_dim", "pairs"),
    [(1, 1, 2, 1), (1, 12, 64, 32), (5, 3, 80, 40), (7, 2, 10, 3), (130, 3, 8, 4)],
)
def test_rope(device, rows, heads, head_dim, pairs, interleaved):
    x = np.random.default_rng(1).standard_normal((rows, heads, head_dim)).astype(np.float32)
    table = angles(rows + 20, pairs)
    with Bench(device) as bench:
        out, turns, step = bench.put(x, gap=2), bench.put(table), bench.step(rows, 11)
        bench.run(lambda rec: ops.rope(rec, out, turns, step, interleaved=interleaved))
        want = rope(x, table, 11 + np.arange(rows), interleaved)
        assert_close(bench.get(out), want, 3e-7, 10.0)
        bench.only(out)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("position", [0, 8, 9, 10, 500, *HOSTILE])
@pytest.mark.parametrize("live", [0, 1, 3, 4, -1])
def test_rope_clamps_to_its_table(device, live, position, interleaved):
    x = np.random.default_rng(2).standard_normal((4, 2, 6)).astype(np.float32)
    table = angles(10, 3)
    count = live if live >= 0 else 4
    positions = np.minimum(min(position % 2**32, 9) + np.arange(4), 9)
    with Bench(device) as bench:
        out, turns, step = bench.put(x), bench.put(table), bench.step(live, position)
        bench.run(lambda rec: ops.rope(rec, out, turns, step, interleaved=interleaved))
        got = bench.get(out)
        assert_close(got[:count], rope(x, table, positions, interleaved)[:count], 3e-7, 10.0)
        assert (got[count:] == x[count:]).all()
        bench.only(out)


class Cache:
    """A paged cache on a device, and the same in float64."""

    def __init__(self, bench, dtype, pages, page_size, kv_heads, head_dim, table, rng):
        kind = {DType.F32: np.float32, DType.F16: np.float16}[dtype]
        self.keys, self.values = rng.standard_normal((2, pages, page_size, kv_heads, head_dim)).astype(kind)
        self.table = np.asarray(table)
        self.page_size, self.pages = page_size, pages
        self.k, self.v = bench.put(self.keys), bench.put(self.values)
        self.page_table = bench.put(self.table.astype(np.int64).astype(np.uint32).view(np.int32))

    @property
    def capacity(self):
        return len(self.table) * self.page_size

    def slots(self, positions):
        pages = np.minimum(self.table.astype(np.int64) % 2**32, self.pages - 1)[positions // self.page_size]
        return pages, positions % self.page_size


def attention(q, cache, position, scale):
    rows, heads, head_dim = q.shape
    position = min(position % 2**32, cache.capacity - 1)
    out = np.zeros(q.shape)
    for row in range(rows):
        slots = cache.slots(np.arange(min(position + row + 1, cache.capacity)))
        for head in range(heads):
            kv_head = head * cache.keys.shape[2] // heads
            keys, values = (pool[slots][:, kv_head].astype(np.float64) for pool in (cache.keys, cache.values))
            scores = keys @ q[row, head].astype(np.float64) * scale
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values / weights.sum()
    return out.reshape(rows, heads * head_dim)


def check_attention(
    device, dtype, rows, heads, kv_heads, head_dim, page_size, table, pages, position, live=None, gap=0
):
    rng = np.random.default_rng(rows + head_dim)
    q = rng.standard_normal((rows, heads, head_dim)).astype(np.float32)
    count = rows if live is None or not 0 <= live <= rows else live
    with Bench(device) as bench:
        cache = Cache(bench, dtype, pages, page_size, kv_heads, head_dim, table, rng)
        queries, out = bench.put(q, gap=gap), bench.put(np.full((rows, heads * head_dim), 7, np.float32), gap=gap)
        step = bench.step(rows if live is None else live, position)
        scale = head_dim**-0.5
        bench.run(lambda rec: ops.attention(rec, queries, cache.k, cache.v, cache.page_table, step, out, scale))
        got = bench.get(out)
        assert_close(got[:count], attention(q[:count], cache, position, scale), 1e-5, np.abs(cache.values).max())
        assert (got[count:] == 7).all()
        bench.only(out)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16])
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "page_size", "table", "pages", "position"),
    [
        (1, 1, 1, 4, 1, [0], 1, 0),
        (1, 9, 3, 64, 16, [0, 1, 2, 3], 4, 37),  # consecutive pages
        (1, 9, 3, 64, 16, [3, 0, 2, 1], 4, 63),  # scattered ones
        (1, 4, 1, 256, 32, range(9), 9, 280),  # the largest head, many runs
        (1, 32, 8, 128, 64, [1, 0], 2, 127),
        (5, 9, 3, 64, 16, [2, 0, 1], 3, 17),
        (7, 6, 2, 12, 5, [4, 2, 0, 3], 5, 3),  # vectors that do not divide a group
        (13, 3, 3, 20, 7, range(40), 40, 128),
        (3, 2, 2, 252, 3, [2, 1, 0], 3, 0),
        (131, 2, 1, 8, 32, range(9), 9, 0),
    ],
)
def test_attention(device, dtype, rows, heads, kv_heads, head_dim, page_size, table, pages, position):
    check_attention(device, dtype, rows, heads, kv_heads, head_dim, page_size, table, pages, position, gap=4)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    quads=st.integers(1, 20),
    page_size=st.integers(1, 33),
    table=st.lists(st.integers(0, 6) | st.sampled_from(HOSTILE), min_size=1, max_size=8),
    position=st.integers(0, 300) | st.sampled_from(HOSTILE),
    live=st.integers(-2, 11),
)
def test_attention_over_any_table(device, rows, kv_heads, group, quads, page_size, table, position, live):
    check_attention(
        device, DType.F32, rows, kv_heads * group, kv_heads, 4 * quads, page_size, table, 5, position, live, gap=3
    )


def test_attention_to_huge_scores(device):
    """Scores of thousands, and all the weight on one position: no overflow."""
    q = np.full((1, 1, 4), 100, np.float32)
    keys = np.zeros((1, 8, 1, 4), np.float32)
    keys[0, :, 0, 0] = [0, 50, -80, 10, 70, 0, 0, 0]
    values = np.arange(32, dtype=np.float32).reshape(1, 8, 1, 4)
    with Bench(device) as bench:
        k, v, query = bench.put(keys), bench.put(values), bench.put(q)
        table, step, out = bench.put(np.zeros(1, np.int32)), bench.step(1, 7), bench.empty(1, 4)
        bench.run(lambda rec: ops.attention(rec, query, k, v, table, step, out, 1.0))
        assert_close(bench.get(out), values[0, 4], 1e-6)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16])
@pytest.mark.parametrize(
    ("rows", "live", "position"),
    [(1, 1, 0), (1, 1, 29), (1, 0, 3), (5, 5, 8), (5, 3, 27), (5, 9, 28), (5, 5, -1), (1, 1, 30)],
)
def test_kv_append(device, dtype, rows, live, position):
    rng = np.random.default_rng(3)
    kv_heads, head_dim, table = 3, 12, [4, 0, 3]
    new_k, new_v = rng.standard_normal((2, rows, kv_heads, head_dim)).astype(np.float32)
    with Bench(device) as bench:
        cache = Cache(bench, dtype, 5, 10, kv_heads, head_dim, table, rng)
        k, v, step = bench.put(new_k, gap=1), bench.put(new_v, gap=2), bench.step(live, position)
        bench.run(lambda rec: ops.kv_append(rec, k, v, cache.k, cache.v, cache.page_table, step))
        positions = min(position % 2**32, cache.capacity) + np.arange(min(live, rows))
        positions = positions[positions < cache.capacity]
        for pool, new, old in ((cache.k, new_k, cache.keys), (cache.v, new_v, cache.values)):
            want = old.astype(np.float64)
            want[cache.slots(positions)] = new[: len(positions)]
            written = np.zeros(old.shape, bool)
            written[cache.slots(positions)] = True
            got = bench.get(pool)
            assert (got[~written] == old[~written]).all()
            assert_close(got[written], want[written], 0 if dtype is DType.F32 else 2**-10)
        bench.only(cache.k, cache.v)


@settings(max_examples=20, deadline=None)
@given(
    table=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6),
    position=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 30),
    live=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 9),
)
def test_kv_append_stays_in_its_pages(device, table, position, live):
    rng = np.random.default_rng(4)
    with Bench(device) as bench:
        cache = Cache(bench, DType.F32, 3, 5, 1, 4, table, rng)
        k, v = bench.put(np.ones((8, 1, 4), np.float32)), bench.put(np.ones((8, 1, 4), np.float32))
        step = bench.step(live, position)
        bench.run(lambda rec: ops.kv_append(rec, k, v, cache.k, cache.v, cache.page_table, step))
        bench.only(cache.k, cache.v)


def test_refusals(device):
    with Bench(device) as bench:
        q, out = bench.empty(2, 4, 8), bench.empty(2, 32)
        k, v, half = bench.empty(3, 5, 2, 8), bench.empty(3, 5, 2, 8), bench.empty(3, 5, 2, 8, dtype=DType.F16)
        new, odd = bench.empty(2, 2, 8), bench.empty(2, 2, 6)
        wide, wide_pages = bench.empty(1, 1, 260), bench.empty(1, 1, 1, 260)
        table, step, turns = bench.empty(4, dtype=DType.I32), bench.step(1), bench.empty(9, 4, 2)
        rec = ops.Recorder(device.info, device.record())
        inside = Tensor(k.buffer, k.offset + 32, DType.F32, (2, 2, 8))
        for refused in (
            lambda: ops.attention(rec, q, k, half, table, step, out, 1.0),
            lambda: ops.attention(rec, q, k, v, step, table, q.reshape(2, 32), 1.0),
            lambda: ops.attention(rec, bench.empty(2, 3, 8), k, v, table, step, bench.empty(2, 24), 1.0),
            lambda: ops.attention(rec, wide, wide_pages, wide_pages, table, step, bench.empty(1, 260), 1.0),
            lambda: ops.attention(rec, q, k, v, table.rows(0, 3), table.rows(0, 3), out, 1.0),
            lambda: ops.kv_append(rec, odd, odd, bench.empty(1, 5, 2, 6), bench.empty(1, 5, 2, 6), table, step),
            lambda: ops.kv_append(rec, new, new, k, k, table, step),
            lambda: ops.kv_append(rec, inside, new, k, v, table, step),
            lambda: ops.kv_append(rec, new, odd, k, v, table, step),
            lambda: ops.rope(rec, new, bench.empty(9, 5, 2), step, interleaved=True),
            lambda: ops.rope(rec, new, bench.empty(9, 4, 3), step, interleaved=True),
            lambda: ops.rope(rec, turns, turns, step, interleaved=True),
        ):
            with pytest.raises(OpError):
                refused()
