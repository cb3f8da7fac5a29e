"""rope_append against rope and kv_append in float64 NumPy: the same tolerances as in test_attention."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench, assert_close
from tests.ops.test_attention import HOSTILE, Cache, angles, check_appended, fitting, rope
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.kernels.dtypes import KV
from wasmetal.ops import DType


def check(
    device, dtype, heads, kv_heads, head_dim, pairs, tables, lengths, positions, sequences, valid, *, interleaved
):
    """Over a table of 30 positions and a pool of six pages of ten."""
    rng, rows = np.random.default_rng(3), len(positions)
    q, k, v = (rng.standard_normal((rows, n, head_dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    turns, count = angles(30, pairs), valid if 0 <= valid <= rows else rows
    turned_at = np.minimum(np.array(positions, np.int64) % 2**32, 29)
    with Bench(device) as bench:
        cache = Cache(bench, dtype, 6, 10, kv_heads, head_dim, tables, lengths, rng)
        queries, keys, values = bench.put(q, gap=4), bench.put(k, gap=1), bench.put(v, gap=2)
        table, batch = bench.put(turns), bench.batch(rows, valid, np.array(positions), np.array(sequences))
        paged = cache.k, cache.v, batch, cache.sequences
        bench.run(lambda rec: ops.rope_append(rec, queries, keys, values, table, *paged, interleaved=interleaved))
        got = bench.get(queries)
        assert_close(got[:count], rope(q, turns, turned_at, interleaved)[:count], 3e-7, 10.0)
        assert (got[count:] == q[count:]).all()
        new = rope(k, turns, turned_at, interleaved)
        check_appended(bench, cache, dtype, new, v, positions[:count], sequences, 3e-6)
        bench.only(queries, cache.k, cache.v)


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "pairs", "position", "length"),
    [
        (1, 1, 1, 4, 2, 0, 1),
        (1, 32, 8, 64, 32, 29, 30),
        (1, 9, 3, 64, 20, 7, 9),  # the end of each head is not turned
        (5, 3, 2, 20, 10, 8, 13),  # pairs that are no multiple of four
        (7, 4, 4, 12, 1, 27, 31),  # the last rows are past the page table
        (5, 2, 1, 256, 128, 2, 4),
    ],
)
def test_rope_append(device, dtype, rows, heads, kv_heads, head_dim, pairs, position, length, interleaved):
    head_dim = fitting(dtype, kv_heads, head_dim)
    check(
        *(device, dtype, heads, kv_heads, head_dim, pairs, [[4, 0, 3]], [length]),
        *(range(position, position + rows), [0] * rows, rows),
        interleaved=interleaved,
    )


@pytest.mark.parametrize("dtype", KV)
def test_mixed_sequences(device, dtype):
    tables = [[0, 1], [5, 5], [2, 2], [3, 3]]
    check(
        *(device, dtype, 6, 2, fitting(dtype, 2, 12), 6, tables, [13, 1, 9, 2], [*range(8, 13), 0, 8, 1, 0]),
        *([0] * 5 + [1, 2, 3, 3], 8),
        interleaved=False,
    )


@given(
    tables=st.lists(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 3), min_size=1, max_size=3),
    length=st.integers(0, 40) | st.sampled_from(HOSTILE),
    row=st.tuples(st.integers(0, 40) | st.sampled_from(HOSTILE), st.integers(0, 3) | st.sampled_from(HOSTILE)),
    valid=st.integers(-2, 2),
    interleaved=st.booleans(),
)
def test_any_batch(device, tables, length, row, valid, interleaved):
    """Page tables, lengths, positions and sequence numbers of any value; each row is of another position."""
    positions, sequences = zip(row, ((row[0] + 3) % 2**31, row[1]), strict=True)
    if len({min(page % 2**32, 5) for table in tables for page in table}) < 3:
        positions, sequences = positions[:1], sequences[:1]  # two rows could have the same slot
    lengths = [length] * len(tables)
    check(
        *(device, DType.F32, 2, 1, 8, 3, tables, lengths, positions, sequences, valid),
        interleaved=interleaved,
    )


def test_refusals(device):
    with Bench(device) as bench:
        rec = ops.Recorder(device.info, device.record())
        q, k, v = bench.empty(2, 4, 8), bench.empty(2, 2, 8), bench.empty(2, 2, 8)
        table, batch, sequences = bench.empty(9, 4, 2), bench.batch(2), bench.sequences([[0]], [1])
        pools = bench.empty(1, 4, 2, 8), bench.empty(1, 4, 2, 8)
        for inputs, problem in (
            ((bench.empty(2, 4, 12), k, v, table), r"q has shape \(2, 4, 12\)"),
            ((bench.empty(3, 4, 8), k, v, table), r"q has shape \(3, 4, 8\)"),
            ((q, k, bench.empty(2, 3, 8), table), r"v has shape \(2, 3, 8\)"),
            ((q, k, v, bench.empty(9, 5, 2)), "rotates 10 elements of a head of 8"),
            ((k, k, v, table), "overlaps k"),
            ((q, k, v, pools[0].reshape(4, 8, 2)), "rotates 16 elements"),
            ((q, k, v, pools[0].reshape(8, 4, 2)), "overlaps table"),
        ):
            with pytest.raises(OpError, match=problem):
                ops.rope_append(rec, *inputs, *pools, batch, sequences, interleaved=False)
