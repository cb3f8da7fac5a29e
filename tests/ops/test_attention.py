"""rope, kv_append and attention against float64 NumPy.

Tolerances: 3e-7 of the pair's length for rope; half a unit of float16, or one where the device rounds to zero, for
float16 pages; half a step of 1/127 of a block's largest value, and a unit of its float16 scale, for Q8_0 pages; for
attention 1e-5 of the largest value there is to average.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench, assert_close
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.kernels.dtypes import KV
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
        out, turns, batch = bench.put(x, gap=2), bench.put(table), bench.batch(rows, position=11)
        bench.run(lambda rec: ops.rope(rec, out, turns, batch, interleaved=interleaved))
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
    positions = np.minimum((position + np.arange(4)) % 2**32, 9)
    with Bench(device) as bench:
        out, turns, batch = bench.put(x), bench.put(table), bench.batch(4, live, position)
        bench.run(lambda rec: ops.rope(rec, out, turns, batch, interleaved=interleaved))
        got = bench.get(out)
        assert_close(got[:count], rope(x, table, positions, interleaved)[:count], 3e-7, 10.0)
        assert (got[count:] == x[count:]).all()
        bench.only(out)


class Cache:
    """A pool of pages on a device, and the same in NumPy; sequences of which each has a page table and a length."""

    def __init__(self, bench, dtype, pages, page_size, kv_heads, head_dim, tables, lengths, rng):
        keys, values = rng.standard_normal((2, pages, page_size, kv_heads, head_dim)).astype(np.float32)
        (self.k, self.keys), (self.v, self.values) = bench.put_pool(keys, dtype), bench.put_pool(values, dtype)
        self.tables = np.asarray(tables, np.int64) % 2**32
        most = min(self.tables.shape[1], pages) * page_size  # what a table covers, and the slots of the pool
        self.lengths = np.minimum(np.asarray(lengths, np.int64) % 2**32, most)
        self.page_size, self.pages = page_size, pages
        self.sequences = bench.sequences(tables, lengths)

    def find(self, sequence):
        """(a sequence's page table, its length), its number clamped as kernels clamp it."""
        number = min(sequence % 2**32, len(self.tables) - 1)
        return self.tables[number], int(self.lengths[number])

    def slots(self, table, positions):
        return np.minimum(table, self.pages - 1)[positions // self.page_size], positions % self.page_size


def attention(q, cache, positions, sequences, scale, window, sinks=None):
    rows, heads, head_dim = q.shape
    out = np.zeros(q.shape)
    for row in range(rows):
        table, length = cache.find(sequences[row])
        position = positions[row] % 2**32
        seen = np.arange(max(0, position + 1 - window) if window else 0, min(position + 1, length))
        if len(seen) == 0:
            continue
        slots = cache.slots(table, seen)
        for head in range(heads):
            kv_head = head * cache.keys.shape[2] // heads
            keys, values = (pool[slots][:, kv_head].astype(np.float64) for pool in (cache.keys, cache.values))
            scores = keys @ q[row, head].astype(np.float64) * scale
            sink = -np.inf if sinks is None else np.float64(sinks[head])
            peak = max(scores.max(), sink)
            weights = np.exp(scores - peak)
            out[row, head] = weights @ values / (weights.sum() + np.exp(sink - peak))
    return out.reshape(rows, heads * head_dim)


def counters_of(bench, rows, heads, kv_heads):
    """None, and counters if the device takes them: they must be as they are afterwards."""
    if not bench.device.info.joins:
        return ({},)
    return {}, {"counters": bench.put(np.zeros(ops.counters_shape(rows, heads, kv_heads), np.int32))}


def check_attention(
    device,
    dtype,
    heads,
    kv_heads,
    head_dim,
    page_size,
    pages,
    tables,
    lengths,
    positions,
    sequences,
    valid,
    gap=0,
    window=None,
    sinks=None,
    attend=None,
    parts=None,
    tolerance=1e-5,
):
    """``attend`` is ops.attention unless given; it is given scratch memory for ``parts``, if there are any."""
    rows = len(positions)
    rng = np.random.default_rng(rows + head_dim)
    q = rng.standard_normal((rows, heads, head_dim)).astype(np.float32)
    count = valid if 0 <= valid <= rows else rows
    with Bench(device) as bench:
        cache = Cache(bench, dtype, pages, page_size, kv_heads, head_dim, tables, lengths, rng)
        queries, out = bench.put(q, gap=gap), bench.put(np.full((rows, heads * head_dim), 7, np.float32), gap=gap)
        batch = bench.batch(rows, valid, np.array(positions), np.array(sequences))
        scale = head_dim**-0.5
        pools = cache.k, cache.v
        how = {"window": window, "sinks": None if sinks is None else bench.put(np.array(sinks, np.float32))}
        if parts:
            how["scratch"] = bench.empty(rows, heads, parts, head_dim + 4)
        op = attend or ops.attention
        want = attention(q[:count], cache, positions, sequences, scale, window, sinks)
        for counters in counters_of(bench, rows, heads, kv_heads) if parts else ({},):
            bench.run(
                lambda rec, more=how | counters: op(rec, queries, *pools, batch, cache.sequences, out, scale, **more)
            )
            got = bench.get(out)
            assert_close(got[:count], want, tolerance, np.abs(cache.values).max())
            assert (got[count:] == 7).all()
            bench.only(out, *([how["scratch"]] if parts else []))


def fitting(dtype, kv_heads, head_dim):
    """The size of a head, or the next that a pool of this type can have."""
    if dtype is not DType.Q8_0:
        return head_dim
    step = 32 if kv_heads % 2 == 0 else 64
    return -(-head_dim // step) * step


@pytest.mark.parametrize("dtype", KV)
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
    head_dim = fitting(dtype, kv_heads, head_dim)
    check_attention(
        *(device, dtype, heads, kv_heads, head_dim, page_size, pages, [table], [position + rows]),
        *(range(position, position + rows), [0] * rows, rows, 4),
    )


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize(
    ("rows", "position", "length", "window"),
    [
        (1, 0, 1, 1),
        (1, 299, 300, 1),
        (1, 299, 300, 7),
        (1, 299, 300, 130),  # more positions than a group has threads
        (1, 5, 6, 300),
        (40, 0, 40, 3),
        (40, 200, 240, 129),
        (9, 10, 12, 4),  # the windows of the last rows end, and then begin, after the sequence's end
        (1, 20, 12, 4),
    ],
)
def test_attention_in_a_window(device, dtype, rows, position, length, window):
    check_attention(
        *(device, dtype, 6, 2, fitting(dtype, 2, 20), 12, 40, [[*range(17, 30), *range(12)]], [length]),
        *(range(position, position + rows), [0] * rows, rows, 4, window),
    )


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize(
    ("rows", "position", "length", "window"),
    [(1, 0, 1, None), (1, 299, 300, None), (1, 20, 12, 4), (40, 200, 240, 129), (9, 10, 12, 4), (33, 0, 33, None)],
)
def test_attention_with_sinks(device, dtype, rows, position, length, window):
    """Some that matter little, some that take nearly all the weight; and one that is no score at all."""
    sinks = [-3.0, 0.5, 2.0, 9.0, 200.0, -np.inf]
    check_attention(
        *(device, dtype, 6, 2, fitting(dtype, 2, 20), 12, 40, [[*range(17, 30), *range(12)]], [length]),
        *(range(position, position + rows), [0] * rows, rows, 4, window, sinks),
    )


MIXED = ([3] * 5 + [0] + [2] * 7 + [1, 4], [*range(5), 20, *range(14, 21), 0, 33])
"""Sequences and positions of 15 rows: two prompts, of which one goes on from position 14, and three that decode."""


@pytest.mark.parametrize("dtype", KV)
def test_attention_of_mixed_sequences(device, dtype):
    sequences, positions = MIXED
    tables = [[7, 2, 11], [0, 6, 6], [2, 3, 4], [10, 7, 9], [5, 1, 8]]  # pages 2 and 7 are shared
    check_attention(
        device, dtype, 6, 2, fitting(dtype, 2, 20), 12, 12, tables, [21, 1, 21, 5, 34], positions, sequences, 15, 4
    )


@given(data=st.data())
def test_attention_of_any_batch(device, data):
    """Tables, lengths, positions and sequence numbers of any value."""
    count, entries = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    hostile = st.sampled_from(HOSTILE)
    tables = [[data.draw(st.integers(0, 6) | hostile) for _ in range(entries)] for _ in range(count)]
    lengths = [data.draw(st.integers(0, 60) | hostile) for _ in range(count)]
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, 70) | hostile, st.integers(0, 4) | hostile), min_size=1, max_size=9)
    )
    positions, sequences = zip(*rows, strict=True)
    page_size = data.draw(st.integers(1, 12))
    check_attention(
        device,
        DType.F32,
        4,
        2,
        8,
        page_size,
        5,
        tables,
        lengths,
        positions,
        sequences,
        data.draw(st.integers(-2, 11)),
        3,
        data.draw(st.none() | st.integers(1, 70) | st.just(2**31 - 1)),
        data.draw(st.none() | st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=4, max_size=4)),
    )


@given(
    rows=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    quads=st.integers(1, 20),
    page_size=st.integers(1, 33),
    table=st.lists(st.integers(0, 6) | st.sampled_from(HOSTILE), min_size=1, max_size=8),
    position=st.integers(0, 300) | st.sampled_from(HOSTILE),
    valid=st.integers(-2, 11),
)
def test_attention_over_any_table(device, rows, kv_heads, group, quads, page_size, table, position, valid):
    check_attention(
        *(device, DType.F32, kv_heads * group, kv_heads, 4 * quads, page_size, 5, [table], [2**31 - 1]),
        *(range(position, position + rows), [0] * rows, valid, 3),
    )


def test_attention_to_huge_scores(device):
    """Scores of thousands, and all the weight on one position: no overflow."""
    q = np.full((1, 1, 4), 100, np.float32)
    keys = np.zeros((1, 8, 1, 4), np.float32)
    keys[0, :, 0, 0] = [0, 50, -80, 10, 70, 0, 0, 0]
    values = np.arange(32, dtype=np.float32).reshape(1, 8, 1, 4)
    with Bench(device) as bench:
        k, v, query = bench.put(keys), bench.put(values), bench.put(q)
        sequences, batch, out = bench.sequences([[0]], [8]), bench.batch(1, position=7), bench.empty(1, 4)
        bench.run(lambda rec: ops.attention(rec, query, k, v, batch, sequences, out, 1.0))
        assert_close(bench.get(out), values[0, 4], 1e-6)


def check_appended(bench, cache, dtype, new_k, new_v, positions, sequences, error_of_k=0.0):
    """The rows of these positions are in their slots, and the rest of the pools is as it was."""
    for pool, new, old, error in ((cache.k, new_k, cache.keys, error_of_k), (cache.v, new_v, cache.values, 0.0)):
        want, written = old.astype(np.float64), np.zeros(old.shape, bool)
        for row, position in enumerate(positions):
            table, length = cache.find(sequences[row])
            if position % 2**32 < length:
                slot = cache.slots(table, position)
                want[slot], written[slot] = new[row], True
        got = bench.get_pool(pool)
        assert (got[~written] == old[~written]).all()
        blocks = np.abs(want.reshape(-1, 4 if dtype is not DType.Q8_0 else 32))
        most = np.broadcast_to(blocks.max(axis=1, keepdims=True), blocks.shape).reshape(want.shape)
        tolerance = {DType.F32: 0, DType.F16: 2**-10, DType.Q8_0: 0.501 / 127 + 2**-10}[dtype]
        scale = most if dtype is DType.Q8_0 else np.abs(want)
        assert_close(got[written], want[written], 1.0, tolerance * scale[written] + error)


def check_kv_append(device, dtype, tables, lengths, positions, sequences, valid):
    rng, rows = np.random.default_rng(3), len(positions)
    kv_heads, head_dim, page_size = 3, fitting(dtype, 3, 12), 10
    new_k, new_v = rng.standard_normal((2, rows, kv_heads, head_dim)).astype(np.float32)
    with Bench(device) as bench:
        cache = Cache(bench, dtype, 6, page_size, kv_heads, head_dim, tables, lengths, rng)
        k, v = bench.put(new_k, gap=1), bench.put(new_v, gap=2)
        batch = bench.batch(rows, valid, np.array(positions), np.array(sequences))
        bench.run(lambda rec: ops.kv_append(rec, k, v, cache.k, cache.v, batch, cache.sequences))
        check_appended(bench, cache, dtype, new_k, new_v, positions[: valid if 0 <= valid <= rows else rows], sequences)
        bench.only(cache.k, cache.v)


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize(
    ("rows", "valid", "position", "length"),
    [
        (1, 1, 0, 1),
        (1, 1, 29, 30),
        (1, 0, 3, 30),
        (5, 5, 8, 13),
        (5, 3, 27, 30),
        (5, 9, 28, 33),
        (5, 5, -1, 30),
        (1, 1, 30, 99),
        (1, 1, 3, 3),
        (5, 5, 2, 4),
        (1, 1, 0, 0),
    ],
)
def test_kv_append(device, dtype, rows, valid, position, length):
    check_kv_append(device, dtype, [[4, 0, 3]], [length], range(position, position + rows), [0] * rows, valid)


@pytest.mark.parametrize("dtype", KV)
def test_kv_append_of_mixed_sequences(device, dtype):
    tables = [[0, 1], [5, 5], [2, 2], [3, 3]]
    check_kv_append(device, dtype, tables, [13, 1, 9, 2], [*range(8, 13), 0, 8, 1, 0], [0] * 5 + [1, 2, 3, 3], 8)


@given(
    tables=st.lists(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 3), min_size=1, max_size=3),
    length=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 30),
    position=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 30),
    sequence=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 3),
    valid=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 9),
)
def test_kv_append_stays_in_its_pages(device, tables, length, position, sequence, valid):
    rng = np.random.default_rng(4)
    with Bench(device) as bench:
        cache = Cache(bench, DType.F32, 3, 5, 1, 4, tables, [length] * len(tables), rng)
        k, v = bench.put(np.ones((8, 1, 4), np.float32)), bench.put(np.ones((8, 1, 4), np.float32))
        batch = bench.batch(8, valid, position, sequence)
        bench.run(lambda rec: ops.kv_append(rec, k, v, cache.k, cache.v, batch, cache.sequences))
        bench.only(cache.k, cache.v)


@pytest.mark.parametrize("scale", [0, 1e-9, 1e-4, 1.0, 1e4, np.nan])
def test_blocks_of_any_size(device, scale):
    """Blocks of zeros, of values below float16's range, and large ones; a NaN makes its whole block NaN, no other."""
    x = np.random.default_rng(5).uniform(-1, 1, (1, 2, 64)).astype(np.float32)
    x[0, 0, :32] *= scale
    x[0, 1, 3] = -1  # the least of all bytes
    with Bench(device) as bench:
        k, v = bench.put(x), bench.put(-x)
        pools = [bench.put_pool(np.ones((2, 3, 2, 64)), DType.Q8_0)[0] for _ in range(2)]
        batch, sequences = bench.batch(1, position=4), bench.sequences([[0, 1]], [5])
        bench.run(lambda rec: ops.kv_append(rec, k, v, *pools, batch, sequences))
        for pool, sign in zip(pools, (1, -1), strict=True):
            got, want = bench.get_pool(pool)[1, 1].reshape(-1, 32), sign * x.reshape(-1, 32)
            most = np.abs(want).max(axis=1, keepdims=True)
            error = np.abs(got - want)
            bound = most * (0.501 / 127 + 2**-10) + 127 * 2**-24  # where the scale is subnormal
            assert np.isnan(got[0]).all() if np.isnan(scale) else (error[0] <= bound[0]).all()
            assert (error[1:] <= bound[1:]).all()


def test_q8_0_refusals(device):
    with Bench(device) as bench:
        rec = ops.Recorder(device.info, device.record())
        batch, sequences = bench.batch(1), bench.sequences([[0]], [1])
        for kv_heads, head_dim in ((1, 32), (2, 16), (3, 96), (2, 80)):
            q = bench.empty(1, kv_heads, head_dim)
            pool, other = (
                Tensor(bench.empty(4096).buffer, 0, DType.Q8_0, (1, 32, kv_heads, head_dim)) for _ in range(2)
            )
            with pytest.raises(OpError, match="in Q8_0 a head must be a multiple of 32, and all together of 64"):
                ops.kv_append(rec, q, q, pool, other, batch, sequences)


def test_copy(device):
    """Every bit, also of float16 pairs that are denormal or NaN as float32."""
    bits = np.random.default_rng(6).integers(0, 2**32, (3, 172), dtype=np.uint32)
    bits[0, :4] = [1, 0x7F800001, 0x80000000, 0x00400000]
    with Bench(device) as bench:
        x, out = bench.put(bits.view(np.int32)), bench.empty(3, 172, dtype=DType.I32)
        bench.run(lambda rec: ops.copy(rec, x, out))
        assert (bench.get(out).view(np.uint32) == bits).all()
        bench.only(out)
        rec = ops.Recorder(device.info, device.record())
        for wrong in (bench.empty(172, 3), bench.empty(3, 172), x, bench.empty(3, 172, dtype=DType.I32, gap=1)):
            with pytest.raises(OpError):
                ops.copy(rec, x, wrong)


def test_refusals(device):
    with Bench(device) as bench:
        q, out = bench.empty(2, 4, 8), bench.empty(2, 32)
        k, v, half = bench.empty(3, 5, 2, 8), bench.empty(3, 5, 2, 8), bench.empty(3, 5, 2, 8, dtype=DType.F16)
        new, odd = bench.empty(2, 2, 8), bench.empty(2, 2, 6)
        wide, wide_pages = bench.empty(1, 1, 260), bench.empty(1, 1, 1, 260)
        sequences, batch, turns = bench.sequences([[0, 1, 2]], [3]), bench.batch(2), bench.empty(9, 4, 2)
        one = bench.batch(1)
        rec = ops.Recorder(device.info, device.record())
        inside = Tensor(k.buffer, k.offset + 32, DType.F32, (2, 2, 8))
        for refused in (
            lambda: ops.attention(rec, q, k, half, batch, sequences, out, 1.0),
            lambda: ops.attention(rec, q, k, v, sequences, batch, q.reshape(2, 32), 1.0),
            lambda: ops.attention(rec, bench.empty(2, 3, 8), k, v, batch, sequences, bench.empty(2, 24), 1.0),
            lambda: ops.attention(rec, wide, wide_pages, wide_pages, one, sequences, bench.empty(1, 260), 1.0),
            lambda: ops.attention(rec, q, k, v, one, sequences, out, 1.0),
            lambda: ops.attention(rec, q, k, v, batch, sequences, out, 1.0, window=0),
            lambda: ops.attention(rec, q, k, v, batch, sequences, out, 1.0, sinks=bench.empty(2)),
            lambda: ops.attention(rec, q, k, v, batch, sequences, out, 1.0, sinks=bench.empty(4, dtype=DType.I32)),
            lambda: ops.attention(
                rec, q, k, v, batch, sequences, out, 1.0, sinks=Tensor(out.buffer, out.offset, DType.F32, (4,))
            ),
            lambda: ops.kv_append(rec, odd, odd, bench.empty(1, 5, 2, 6), bench.empty(1, 5, 2, 6), batch, sequences),
            lambda: ops.attention(rec, q, k, v, batch, bench.empty(3, 1, dtype=DType.I32), out, 1.0),
            lambda: ops.kv_append(rec, new, new, k, k, batch, sequences),
            lambda: ops.kv_append(rec, inside, new, k, v, batch, sequences),
            lambda: ops.kv_append(rec, new, odd, k, v, batch, sequences),
            lambda: ops.rope(rec, new, bench.empty(9, 5, 2), batch, interleaved=True),
            lambda: ops.rope(rec, new, bench.empty(9, 4, 3), batch, interleaved=True),
            lambda: ops.rope(rec, turns, turns, bench.batch(9), interleaved=True),
        ):
            with pytest.raises(OpError):
                refused()
