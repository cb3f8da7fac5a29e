"""Attention split over the context against float64 NumPy, with the tolerances of test_attention."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops import test_attention
from tests.ops.tensors import Bench, assert_close
from tests.ops.test_attention import HOSTILE, MIXED, fitting
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.kernels.dtypes import KV
from wasmetal.ops import DType

check_attention = partial(test_attention.check_attention, attend=ops.split_attention)


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size", "table", "pages", "position", "parts"),
    [
        (1, 1, 4, 1, [0], 1, 0, 1),
        (9, 3, 64, 16, [3, 0, 2, 1], 4, 37, 5),  # one tile, of one part
        (32, 8, 64, 32, range(40), 40, 1200, 8),  # parts of three tiles, the last not whole
        (4, 1, 256, 32, range(9), 9, 280, 64),  # the largest head, more parts than tiles
        (14, 2, 128, 64, [1, 0, 2], 3, 150, 2),  # seven heads share a kv head
        (6, 2, 12, 5, [4, 2, 0, 3], 5, 3, 3),  # vectors that do not divide a group
        (3, 3, 20, 7, range(40), 40, 128, 2),  # one position more than two tiles
        (2, 2, 252, 3, [2, 1, 0], 3, 8, 128),  # as many parts as there can be
        (2, 1, 8, 32, range(180), 180, 5700, 3),
    ],
)
def test_one_row(device, dtype, heads, kv_heads, head_dim, page_size, table, pages, position, parts):
    head_dim = fitting(dtype, kv_heads, head_dim)
    check_attention(
        *(device, dtype, heads, kv_heads, head_dim, page_size, pages, [table], [position + 1], [position], [0], 1),
        parts=parts,
    )


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize("sinks", [None, [-3.0, 0.5, 2.0, 9.0, 200.0, -np.inf]])
@pytest.mark.parametrize(
    ("rows", "position", "length", "window"),
    [(1, 0, 1, None), (1, 299, 300, None), (1, 299, 300, 130), (1, 20, 12, 4), (40, 200, 240, 129), (9, 10, 12, 4)],
)
def test_windows_and_sinks(device, dtype, rows, position, length, window, sinks):
    check_attention(
        *(device, dtype, 6, 2, fitting(dtype, 2, 20), 12, 40, [[*range(17, 30), *range(12)]], [length]),
        *(range(position, position + rows), [0] * rows, rows, 4, window, sinks),
        parts=3,
    )


@pytest.mark.parametrize("dtype", KV)
def test_mixed_sequences(device, dtype):
    sequences, positions = MIXED
    tables = [[7, 2, 11], [0, 6, 6], [2, 3, 4], [10, 7, 9], [5, 1, 8]]  # pages 2 and 7 are shared
    check_attention(
        *(device, dtype, 6, 2, fitting(dtype, 2, 20), 12, 12, tables, [21, 1, 21, 5, 34], positions, sequences, 15, 4),
        parts=2,
    )


@given(data=st.data())
def test_any_batch(device, data):
    """Tables, lengths, positions and sequence numbers of any value."""
    count, entries = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    hostile = st.sampled_from(HOSTILE)
    tables = [[data.draw(st.integers(0, 6) | hostile) for _ in range(entries)] for _ in range(count)]
    lengths = [data.draw(st.integers(0, 300) | hostile) for _ in range(count)]
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, 310) | hostile, st.integers(0, 4) | hostile), min_size=1, max_size=5)
    )
    positions, sequences = zip(*rows, strict=True)
    kv_heads, sharing = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 6))
    finite = st.floats(-(2.0**99), 2.0**99, width=32)
    check_attention(
        *(device, DType.F32, kv_heads * sharing, kv_heads, 4 * data.draw(st.integers(1, 20))),
        *(data.draw(st.integers(1, 70)), 5, tables, lengths, positions, sequences, data.draw(st.integers(-2, 7)), 3),
        window=data.draw(st.none() | st.integers(1, 310) | st.just(2**31 - 1)),
        sinks=data.draw(st.none() | st.lists(finite, min_size=kv_heads * sharing, max_size=kv_heads * sharing)),
        parts=data.draw(st.integers(1, 9)),
    )


def test_huge_scores(device):
    """Scores of thousands, and all the weight on one position of another part: no overflow."""
    keys = np.zeros((1, 200, 1, 4), np.float32)
    keys[0, [3, 70, 140, 190], 0, 0] = [50, -80, 90, 70]
    values = np.arange(800, dtype=np.float32).reshape(1, 200, 1, 4)
    with Bench(device) as bench:
        k, v, query = bench.put(keys), bench.put(values), bench.put(np.full((1, 1, 4), 100, np.float32))
        sequences, batch, out = bench.sequences([[0]], [200]), bench.batch(1, position=199), bench.empty(1, 4)
        scratch = bench.empty(1, 1, 4, 8)
        bench.run(lambda rec: ops.split_attention(rec, query, k, v, batch, sequences, out, 1.0, scratch=scratch))
        assert_close(bench.get(out), values[0, 140], 1e-6)


def test_refusals(device):
    with Bench(device) as bench:
        rec = ops.Recorder(device.info, device.record())
        q, out, batch, sequences = bench.empty(2, 4, 8), bench.empty(2, 32), bench.batch(2), bench.sequences([[0]], [1])
        k, v = bench.empty(1, 4, 2, 8), bench.empty(1, 4, 2, 8)
        for scratch, problem in (
            (bench.empty(2, 4, 12), "must have 4 dimensions"),
            (bench.empty(2, 4, 3, 8), r"must be \(2, 4, 3, 12\)"),
            (bench.empty(1, 4, 3, 12), r"must be \(2, 4, 3, 12\)"),
            (bench.empty(2, 4, 3, 12, dtype=DType.F16), "must be F32"),
            (bench.empty(2, 4, 3, 12, gap=4), "must be packed"),
            (bench.empty(2, 4, 129, 12), "129 parts; at most 128"),
            (ops.Tensor(q.buffer, 0, DType.F32, (2, 4, 1, 12)) if q.buffer.nbytes >= 384 else None, "overlaps q"),
        ):
            with pytest.raises(OpError, match=problem):
                ops.split_attention(rec, q, k, v, batch, sequences, out, 1.0, scratch=scratch)


def test_counters_are_refused(device):
    with Bench(device) as bench:
        q, out, batch, sequences = bench.empty(2, 4, 8), bench.empty(2, 32), bench.batch(2), bench.sequences([[0]], [1])
        k, v, scratch = bench.empty(1, 4, 2, 8), bench.empty(1, 4, 2, 8), bench.empty(2, 4, 3, 12)
        for joins, counters, problem in (
            (False, bench.empty(2, 2, dtype=DType.I32), "cannot join parts"),
            (True, bench.empty(2, 2), "must be I32"),
            (True, bench.empty(2, 1, dtype=DType.I32), r"must be \(2, 2\)"),
            (True, batch.rows(0, 2), "overlaps batch"),
        ):
            rec = ops.Recorder(replace(device.info, joins=joins), device.record())
            with pytest.raises(OpError, match=problem):
                ops.split_attention(rec, q, k, v, batch, sequences, out, 1.0, scratch=scratch, counters=counters)


@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "parts"),
    [(1, 32, 8, 64), (1, 9, 3, 64), (1, 32, 32, 16), (1, 64, 8, 32), (4, 32, 8, 16), (64, 32, 8, 8)],
)
def test_scratch_is_for_as_many_parts_as_make_enough_groups(rows, heads, kv_heads, parts):
    assert ops.scratch_shape(rows, heads, kv_heads, 64) == (rows, heads, parts, 68)
