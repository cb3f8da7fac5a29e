"""Attention of few rows, split over the context, and the joining of its parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.catalog import NO_SINKS
from wasmetal.kernels.dtypes import KV, DType
from wasmetal.kernels.reference.batch import Rows, Sequences, valid_rows
from wasmetal.kernels.reference.pools import open_pool
from wasmetal.kernels.reference.rope import Turns
from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import F32, Bytes, array

TILE, TILES_OF_ROWS = 64, 2
"""Parts are multiples of so many positions, and of so many times that for several rows."""
_LOWEST = np.finfo(np.float32).min


class Parts:
    """For each row, head and part of its positions: the weighted sum of the values, the largest score, the weights'
    sum, and whether there are any."""

    def __init__(
        self,
        dtype: DType,
        p: SimpleNamespace,
        k_pages: Bytes,
        v_pages: Bytes,
        sequences: Bytes,
        scratch: Bytes,
        tiles: int,
    ) -> None:
        """``tiles``: of a part, at least."""
        self._p, self._step = p, tiles * TILE
        shape = p.rows, p.kv_heads, p.heads // p.kv_heads, p.parts, p.head_dim + 4
        self._outs: F32 = array(scratch, p.scratch_offset * 16, shape)
        self.keys, self.values = (
            open_pool(dtype, pages, offset, p.pages * p.page_size, p.kv_heads, p.head_dim)
            for pages, offset in ((k_pages, p.k_pages_offset), (v_pages, p.v_pages_offset))
        )
        self.tables = Sequences(p, sequences)

    def attend(
        self, row: int, query: F32, table: int, first: int, length: int, own: tuple[F32, F32] | None = None
    ) -> None:
        """A row's query [kv_heads, sharing, head_dim], over its sequence's positions first .. length.

        ``own``, if given, are the key and value [kv_heads, head_dim] of one more position, in the first part.
        """
        p = self._p
        longest = -(-max(0, length - first) // (p.parts * self._step)) * self._step
        for part in range(p.parts):
            begin = min(first + part * longest, length)
            self._attend(self._outs[row, :, :, part], query, table, begin, min(begin + longest, length), own)
            own = None

    def _attend(self, out: F32, query: F32, table: int, begin: int, end: int, own: tuple[F32, F32] | None) -> None:
        head_dim = self._p.head_dim
        if begin >= end and not own:
            out[..., head_dim:] = 0
            return
        if own:
            peak, total = query @ own[0][..., None], np.ones((*query.shape[:2], 1), np.float32)
            sums = np.broadcast_to(own[1][:, None], query.shape)
        else:
            peak, total = np.full((*query.shape[:2], 1), _LOWEST), np.zeros((*query.shape[:2], 1), np.float32)
            sums = np.zeros(query.shape, np.float32)
        for some in steps(end, BLOCK // query.size, begin):
            where = self.tables.slots(table, some.start, some.stop)
            scores = query @ self.keys.read(where).transpose(1, 2, 0)
            higher = np.maximum(peak, scores.max(axis=-1, keepdims=True))
            rescale, weights = np.exp(peak - higher), np.exp(scores - higher)
            total = total * rescale + weights.sum(axis=-1, keepdims=True)
            sums = sums * rescale + weights @ self.values.read(where).transpose(1, 0, 2)
            peak = higher
        out[..., :head_dim] = sums
        out[..., head_dim:] = np.concatenate([peak, total, np.ones_like(peak), np.zeros_like(peak)], axis=-1)


def attention_part(
    dtype: DType,
    p: SimpleNamespace,
    q: Bytes,
    k_pages: Bytes,
    v_pages: Bytes,
    batch: Bytes,
    sequences: Bytes,
    scratch: Bytes,
) -> Callable[[], None]:
    """The parts of each valid row."""
    parts, batch_rows = Parts(dtype, p, k_pages, v_pages, sequences, scratch, TILES_OF_ROWS), Rows(p, batch)
    shape = p.rows, p.kv_heads, p.heads // p.kv_heads, p.head_dim
    queries: F32 = np.ndarray(shape, np.float32, q, p.q_offset * 4, (p.q_stride * 4, *_strides(shape[1:])))

    def run() -> None:
        for row in range(batch_rows.count()):
            position, sequence = batch_rows.row(row)
            table, length = parts.tables.find(sequence)
            query = queries[row] * np.float32(p.scale)
            parts.attend(row, query, table, _first(p, position), min(position + 1, length))

    return run


def rope_attention_part(
    dtype: DType,
    p: SimpleNamespace,
    q: Bytes,
    k: Bytes,
    v: Bytes,
    table: Bytes,
    k_pages: Bytes,
    v_pages: Bytes,
    new_k: Bytes,
    new_v: Bytes,
    batch: Bytes,
    sequences: Bytes,
    scratch: Bytes,
) -> Callable[[], None]:
    """The parts of a single row: its queries and keys are turned, and its keys and values appended, on the way."""
    p = SimpleNamespace(**vars(p), rows=1, batch_row=0)
    parts, batch_rows = Parts(dtype, p, k_pages, v_pages, sequences, scratch, 1), Rows(p, batch)
    turns = Turns(p, table)
    queries, keys, values = (
        array(data, offset * 4, (heads, p.head_dim))
        for data, offset, heads in ((q, p.q_offset, p.heads), (k, p.k_offset, p.kv_heads), (v, p.v_offset, p.kv_heads))
    )

    def run() -> None:
        if not batch_rows.count():
            return
        position, sequence = batch_rows.row(0)
        pages, length = parts.tables.find(sequence)
        query, key = (turns.turned(x, position) for x in (queries, keys))
        query = query.reshape(p.kv_heads, -1, p.head_dim) * np.float32(p.scale)
        own = (key, values) if position < length else None
        parts.attend(0, query, pages, _first(p, position), min(position, length), own)
        if own:
            slot = parts.tables.slot(pages, position)
            parts.keys.write(slot, key.reshape(-1))
            parts.values.write(slot, values.reshape(-1))

    return run


def attention_merge(p: SimpleNamespace, scratch: Bytes, batch: Bytes, sinks: Bytes, out: Bytes) -> Callable[[], None]:
    """Join the parts of each row and head, and its sink, if there are any."""
    parts: F32 = array(scratch, p.scratch_offset * 16, (p.rows, p.heads, p.parts, p.head_dim + 4))
    shape = p.rows, p.heads, p.head_dim
    outs: F32 = np.ndarray(shape, np.float32, out, p.out_offset * 4, (p.out_stride * 4, *_strides(shape[1:])))
    sink = None if p.sinks_offset == NO_SINKS else array(sinks, p.sinks_offset * 4, (p.heads,))
    valid = valid_rows(p, batch)

    def run() -> None:
        for row in range(valid()):
            for heads in steps(p.heads, BLOCK // (p.parts * (p.head_dim + 4))):
                some = parts[row, heads]
                exists = some[..., p.head_dim + 2] != 0
                peaks = np.where(exists, some[..., p.head_dim], _LOWEST)
                peak = peaks.max(axis=-1, keepdims=True)
                if sink is not None:
                    peak = np.maximum(peak, sink[heads, None])
                weights = np.where(exists, np.exp(peaks - peak), 0)
                total = (weights * some[..., p.head_dim + 1]).sum(axis=-1, keepdims=True)
                if sink is not None:
                    total += np.exp(sink[heads, None] - peak)
                values = np.where(exists[..., None], some[..., : p.head_dim], 0)
                summed = (weights[..., None] * values).sum(axis=1)
                seen = exists.any(axis=-1, keepdims=True)
                outs[row, heads] = np.divide(summed, total, where=seen, out=np.zeros_like(summed))

    return run


def _first(p: SimpleNamespace, position: int) -> int:
    """The first position that a row sees."""
    return max(0, position + 1 - p.window) if p.window else 0


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes from one index of each dimension to the next, of packed float32."""
    return tuple(4 * math.prod(shape[i + 1 :]) for i in range(len(shape)))


KERNELS: dict[str, Callable[..., Callable[[], object]]] = {
    **{
        f"{name}_{dtype.suffix}": partial(kernel, dtype)
        for name, kernel in (("attention_part", attention_part), ("rope_attention_part", rope_attention_part))
        for dtype in KV
    },
    "attention_merge": attention_merge,
}
