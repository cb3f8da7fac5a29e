"""The paged KV cache, and attention over it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.catalog import NO_SINKS
from wasmetal.kernels.dtypes import KV, DType
from wasmetal.kernels.reference.batch import Rows, Sequences
from wasmetal.kernels.reference.pools import open_pool
from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import F32, Bytes, array, rows

_RUN = 1024
"""Most positions whose scores are computed at a time."""


def kv_append(
    dtype: DType,
    p: SimpleNamespace,
    k: Bytes,
    v: Bytes,
    k_pages: Bytes,
    v_pages: Bytes,
    batch: Bytes,
    sequences: Bytes,
) -> Callable[[], None]:
    """Write each valid row of k and v to its position's slot; rows at or past their sequence's length are dropped."""
    keys = rows(k, p.k_offset, p.rows, p.columns, p.k_stride)
    values = rows(v, p.v_offset, p.rows, p.columns, p.v_stride)
    slots = p.pages * p.page_size
    key_pool = open_pool(dtype, k_pages, p.k_pages_offset, slots, 1, p.columns)
    value_pool = open_pool(dtype, v_pages, p.v_pages_offset, slots, 1, p.columns)
    key, value = keys[0], values[0]
    batch_rows, tables = Rows(p, batch), Sequences(p, sequences)

    def run() -> None:
        count = batch_rows.count()
        if count == 1:  # as in decoding
            position, sequence = batch_rows.row(0)
            table, length = tables.find(sequence)
            if position < length:
                slot = tables.slot(table, position)
                key_pool.write(slot, key)
                value_pool.write(slot, value)
            return
        for begin, end, position, sequence in batch_rows.runs(count):
            table, length = tables.find(sequence)
            count = min(end - begin, length - position)
            if count > 0:
                for some in steps(begin + count, BLOCK // p.columns, begin):
                    where = tables.slots(table, position + some.start - begin, position + some.stop - begin)
                    key_pool.write(where, keys[some])
                    value_pool.write(where, values[some])

    return run


class Attention:
    """out[t] = softmax(scale q[t] kᵀ) v over positions 0 .. position[t], or the last ``window`` of them.

    Each kv head serves a group of heads. A head's sink, if there are any, is the score of a position without a value.
    """

    def __init__(
        self,
        dtype: DType,
        p: SimpleNamespace,
        q: Bytes,
        k_pages: Bytes,
        v_pages: Bytes,
        batch: Bytes,
        sequences: Bytes,
        sinks: Bytes,
        out: Bytes,
    ) -> None:
        group = p.heads // p.kv_heads
        split = (p.rows, p.kv_heads, group, p.head_dim)
        inner = (p.head_dim * group * 4, p.head_dim * 4, 4)
        self._queries: F32 = np.ndarray(split, np.float32, q, p.q_offset * 4, (p.q_stride * 4, *inner))
        self._outs: F32 = np.ndarray(split, np.float32, out, p.out_offset * 4, (p.out_stride * 4, *inner))
        self._query, self._result = self._queries[0], self._outs[0]
        slots = p.pages * p.page_size
        self._keys = open_pool(dtype, k_pages, p.k_pages_offset, slots, p.kv_heads, p.head_dim)
        self._values = open_pool(dtype, v_pages, p.v_pages_offset, slots, p.kv_heads, p.head_dim)
        self._rows, self._tables = Rows(p, batch), Sequences(p, sequences)
        self._factor = np.float32(p.scale)
        self._window = p.window or 1 << 33  # more than there are positions
        none = p.sinks_offset == NO_SINKS
        self._sinks = None if none else array(sinks, p.sinks_offset * 4, (p.kv_heads, group))
        self._whole = p.head_count == p.heads and none
        self._heads = _grouped(p.first_head, p.first_head + p.head_count, group)
        # Positions that a single row can see at once: by its scores, and by the keys if they have to be copied.
        self._in_place = BLOCK // p.heads if p.heads * p.head_dim <= BLOCK and self._keys.in_place else 0
        self._copied = BLOCK // max(p.heads, p.kv_heads * p.head_dim) if p.heads * p.head_dim <= BLOCK else 0

    def __call__(self) -> None:
        """Attend, for the rows that are valid now."""
        count = self._rows.count()
        if count == 1 and self._whole:
            self._one()
            return
        for begin, end, position, sequence in self._rows.runs(count):
            self._run(begin, end, position, *self._tables.find(sequence))

    def _one(self) -> None:
        position, sequence = self._rows.row(0)
        table, length = self._tables.find(sequence)
        first, end = max(0, position + 1 - self._window), min(position + 1, length)
        if 0 < (seen := end - first) <= max(self._in_place, self._copied):
            where = self._tables.slots(table, first, end)
            if seen <= (self._in_place if isinstance(where, slice) else self._copied):
                scores = (self._query * self._factor) @ self._keys.read(where).transpose(1, 2, 0)
                softmax_then(scores, self._values.read(where).transpose(1, 0, 2), self._result)
                return
        self._run(0, 1, position, table, length)

    def _run(self, begin: int, end: int, position: int, table: int, length: int) -> None:
        """Rows of one sequence, a block of scores at a time: of some rows, heads, queries of a head and positions."""
        # Rows whose window begins after the sequence's end see nothing.
        blind = min(end, begin + max(0, length + self._window - 1 - position)) if length else begin
        seen = min(position + blind - begin, length)
        run = max(1, min(seen, _RUN))
        for heads, group in self._heads:
            self._outs[blind:end, heads, group] = 0
            head_dim = self._queries.shape[-1]
            at_a_time = min(heads.stop - heads.start, max(1, BLOCK // (run * head_dim)))
            queries = max(1, BLOCK // (at_a_time * max(run, head_dim)))
            for each in steps(group.stop, queries, group.start):
                for chosen in steps(blind, queries // (each.stop - each.start), begin):
                    positions = np.arange(chosen.start, chosen.stop) + (position - begin)
                    last = min(int(positions[-1]) + 1, length)
                    for some in steps(heads.stop, at_a_time, heads.start):
                        self._attend((chosen, some, each), positions, table, last, run)

    def _attend(
        self, chosen: tuple[slice, slice, slice], positions: NDArray[np.int64], table: int, end: int, run: int
    ) -> None:
        """Some queries over the positions up to ``end``, ``run`` at a time.

        The softmax is rescaled from one block to the next (M. Milakov and N. Gimelshein, "Online normalizer calculation
        for softmax", 2018).
        """
        grouped = (self._queries[chosen] * self._factor).transpose(1, 2, 0, 3)
        split = grouped.shape[:3]
        flat: F32 = grouped.reshape(split[0], split[1] * split[2], -1)
        # Not -inf, so that a run of which a row sees nothing has weights of 0, not NaN.
        peak = np.full((*flat.shape[:2], 1), np.finfo(np.float32).min, np.float32)
        total, sums = np.zeros_like(peak), np.zeros_like(flat)
        if self._sinks is not None:  # as if each query had seen its sink before all positions
            np.maximum(peak, self._sinks[chosen[1:]].repeat(split[2], axis=1)[..., None], out=peak)
            total += 1
        for part in steps(end, run, max(0, int(positions[0]) + 1 - self._window)):
            where = self._tables.slots(table, part.start, part.stop)
            keys, values = (pool.read(where, chosen[1]) for pool in (self._keys, self._values))
            scores: F32 = flat @ keys.transpose(1, 2, 0)
            if part.stop > positions[0] + 1:
                scores.reshape(*split, -1)[..., np.arange(part.start, part.stop) > positions[:, None]] = -np.inf
            if part.start <= positions[-1] - self._window:
                away = np.arange(part.start, part.stop) <= positions[:, None] - self._window
                scores.reshape(*split, -1)[..., away] = -np.inf
            higher = np.maximum(peak, np.maximum.reduce(scores, axis=-1, keepdims=True))
            np.subtract(scores, higher, scores)
            np.exp(scores, scores)
            rescale = np.exp(peak - higher)
            np.add(total * rescale, np.add.reduce(scores, axis=-1, keepdims=True), total)
            np.add(sums * rescale, scores @ values.transpose(1, 0, 2), sums)
            peak = higher
        self._outs[chosen] = (sums / total).reshape(*split, -1).transpose(2, 0, 1, 3)


def prefill_attention(dtype: DType, p: SimpleNamespace, *buffers: Bytes) -> Attention:
    """Attention with all heads."""
    return Attention(dtype, SimpleNamespace(**vars(p), first_head=0, head_count=p.heads), *buffers)


def _grouped(begin: int, end: int, group: int) -> list[tuple[slice, slice]]:
    """A range of heads as (kv heads, which heads of their groups): whole groups, and parts of one at either end."""
    first, last = -(-begin // group), end // group
    if first > last:  # within one group
        return [(slice(last, last + 1), slice(begin % group, end % group))]
    parts = [
        (slice(first - 1, first), slice(begin % group or group, group)),
        (slice(first, last), slice(0, group)),
        (slice(last, last + 1), slice(0, end % group)),
    ]
    return [(heads, some) for heads, some in parts if heads.start < heads.stop and some.start < some.stop]


def softmax_then(scores: F32, values: F32, out: F32) -> None:
    """out = softmax(scores) @ values; overwrites the scores."""
    np.subtract(scores, np.maximum.reduce(scores, axis=-1, keepdims=True), scores)
    np.exp(scores, scores)
    np.divide(scores @ values, np.add.reduce(scores, axis=-1, keepdims=True), out)


KERNELS: dict[str, Callable[..., Callable[[], object]]] = {
    f"{name}_{dtype.suffix}": partial(kernel, dtype)
    for name, kernel in (("kv_append", kv_append), ("attention", Attention), ("prefill_attention", prefill_attention))
    for dtype in KV
}
