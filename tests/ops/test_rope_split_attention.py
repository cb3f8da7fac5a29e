"""rope_split_attention against rope, kv_append and attention in float64 NumPy. Tolerances as in test_attention."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.tensors import Bench, assert_close
from tests.ops.test_attention import HOSTILE, Cache, angles, attention, check_appended, fitting, rope
from wasmetal import ops
from wasmetal.errors import OpError
from wasmetal.kernels.dtypes import KV
from wasmetal.ops import DType


def check(
    device,
    dtype,
    heads,
    kv_heads,
    head_dim,
    pairs,
    page_size,
    tables,
    lengths,
    position,
    sequence,
    *,
    parts,
    valid=1,
    window=None,
    sinks=None,
    interleaved=False,
    compared=True,
):
    """Over a table of 400 positions and a pool of 40 pages. Unless ``compared``, only what is written to is."""
    rng = np.random.default_rng(position % 1000)
    q, k, v = (rng.standard_normal((1, n, head_dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    turns, turned_at = angles(400, pairs), np.minimum([position % 2**32], 399)
    with Bench(device) as bench:
        cache = Cache(bench, dtype, 40, page_size, kv_heads, head_dim, tables, lengths, rng)
        inputs = [bench.put(x) for x in (q, k, v, turns)]
        batch = bench.batch(1, valid, np.array([position]), np.array([sequence]))
        out, scratch = (
            bench.put(np.full((1, heads * head_dim), 7, np.float32)),
            bench.empty(1, heads, parts, head_dim + 4),
        )
        how = {"interleaved": interleaved, "scratch": scratch, "window": window}
        how["sinks"] = None if sinks is None else bench.put(np.array(sinks, np.float32))
        paged, scale = (cache.k, cache.v, batch, cache.sequences), head_dim**-0.5
        bench.run(lambda rec: ops.rope_split_attention(rec, *inputs, *paged, out, scale, **how))
        bench.only(out, scratch, cache.k, cache.v)
        if not compared:
            return
        count = 1 if valid else 0
        new_k = rope(k, turns, turned_at, interleaved)
        check_appended(bench, cache, dtype, new_k, v, [position][:count], [sequence], 3e-6)
        if not valid:
            assert (bench.get(out) == 7).all()
            return
        table, length = cache.find(sequence)
        biggest = max(np.abs(cache.values).max(), np.abs(v).max())
        cache.keys, cache.values = cache.keys.astype(np.float64), cache.values.astype(np.float64)
        if position % 2**32 < length:
            slot = cache.slots(table, position)
            cache.keys[slot], cache.values[slot] = new_k[0], v[0]
        want = attention(rope(q, turns, turned_at, interleaved), cache, [position], [sequence], scale, window, sinks)
        assert_close(bench.get(out), want, 1e-5, biggest)


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "pairs", "page_size", "position", "parts"),
    [
        (1, 1, 4, 2, 1, 0, 1),  # nothing but its own position
        (32, 8, 64, 32, 32, 64, 3),  # one tile before its own position
        (9, 3, 64, 20, 7, 130, 5),  # the end of each head is not turned
        (14, 2, 128, 64, 20, 300, 2),  # seven heads share a kv head
        (2, 1, 256, 128, 32, 65, 128),
        (6, 6, 20, 10, 12, 128, 64),
    ],
)
def test_one_row(device, dtype, heads, kv_heads, head_dim, pairs, page_size, position, parts, interleaved):
    check(
        *(device, dtype, heads, kv_heads, fitting(dtype, kv_heads, head_dim), pairs, page_size),
        *([[*range(17, 40), *range(17)]], [position + 1], position, 0),
        parts=parts,
        interleaved=interleaved,
    )


@pytest.mark.parametrize("dtype", KV)
@pytest.mark.parametrize("sinks", [None, [-3.0, 0.5, 2.0, 9.0, 200.0, -np.inf]])
@pytest.mark.parametrize(
    ("position", "length", "window"),
    [
        (0, 1, None),
        (299, 300, None),
        (299, 300, 1),  # its own position alone
        (299, 300, 130),
        (20, 12, None),  # not in the cache
        (20, 12, 4),  # and sees nothing
        (300, 301, 65),
    ],
)
def test_windows_and_sinks(device, dtype, position, length, window, sinks):
    check(
        *(device, dtype, 6, 2, fitting(dtype, 2, 20), 10, 12, [[*range(17, 40), *range(17)]], [length], position, 0),
        parts=3,
        window=window,
        sinks=sinks,
    )


def test_a_row_that_is_not_valid(device):
    check(device, DType.F16, 4, 2, 8, 4, 12, [range(40)], [33], 32, 0, parts=3, valid=0)


@given(data=st.data())
def test_any_batch(device, data):
    """Lengths, positions and sequence numbers of any value, and page tables too if only the bounds are looked at."""
    hostile = st.sampled_from(HOSTILE)
    compared = data.draw(st.booleans())
    pages = st.permutations(range(40)) if compared else st.lists(st.integers(0, 50) | hostile, min_size=40, max_size=40)
    entries = data.draw(st.integers(1, 40))
    tables = [data.draw(pages)[:entries] for _ in range(data.draw(st.integers(1, 3)))]
    kv_heads, sharing, quads = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 20)))
    finite = st.floats(-(2.0**99), 2.0**99, width=32)
    check(
        *(device, DType.F32, kv_heads * sharing, kv_heads, 4 * quads, data.draw(st.integers(1, 2 * quads))),
        *(data.draw(st.integers(1, 20)), tables, [data.draw(st.integers(0, 400) | hostile) for _ in tables]),
        *(data.draw(st.integers(0, 400) | hostile), data.draw(st.integers(0, 3) | hostile)),
        parts=data.draw(st.integers(1, 9)),
        window=data.draw(st.none() | st.integers(1, 400) | st.just(2**31 - 1)),
        sinks=data.draw(st.none() | st.lists(finite, min_size=kv_heads * sharing, max_size=kv_heads * sharing)),
        interleaved=data.draw(st.booleans()),
        compared=compared,
    )


def test_refusals(device):
    with Bench(device) as bench:
        rec = ops.Recorder(device.info, device.record())
        q, k, v = bench.empty(1, 4, 8), bench.empty(1, 2, 8), bench.empty(1, 2, 8)
        table, batch, sequences, out = (
            bench.empty(9, 4, 2),
            bench.batch(1),
            bench.sequences([[0]], [1]),
            bench.empty(1, 32),
        )
        pools = bench.empty(1, 4, 2, 8), bench.empty(1, 4, 2, 8)
        scratch, two = bench.empty(1, 4, 3, 12), bench.empty(2, 4, 8)
        for inputs, to, problem in (
            ((two, k, v, table), scratch, "2 rows; it is for a single one"),
            ((q, bench.empty(1, 4, 8), v, table), scratch, "v has shape"),
            ((q, k, v, bench.empty(9, 5, 2)), scratch, "rotates 10 elements of a head of 8"),
            ((q, k, v, table), bench.empty(1, 4, 3, 8), r"must be \(1, 4, 3, 12\)"),
            ((q, k, k, pools[1].reshape(8, 4, 2)), scratch, "overlaps table"),
        ):
            with pytest.raises(OpError, match=problem):
                ops.rope_split_attention(
                    rec, *inputs, *pools, batch, sequences, out, 1.0, interleaved=False, scratch=to
                )
