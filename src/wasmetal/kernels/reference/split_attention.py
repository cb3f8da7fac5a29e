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
from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import F32, Bytes, array

TILE = 64
"""Parts are multiples of so many positions."""
_LOWEST = np.finfo(np.float32).min


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
    """For each row, head and part of its positions: the weighted sum of the values, the largest score, the weights'
    sum, and whether there are any."""
    shape = p.rows, p.kv_heads, p.heads // p.kv_heads, p.head_dim
    queries: F32 = np.ndarray(shape, np.float32, q, p.q_offset * 4, (p.q_stride * 4, *_strides(shape[1:])))
    outs: F32 = array(scratch, p.scratch_offset * 16, (*shape[:3], p.parts, p.head_dim + 4))
    keys = open_pool(dtype, k_pages, p.k_pages_offset, p.pages * p.page_size, p.kv_heads, p.head_dim)
    values = open_pool(dtype, v_pages, p.v_pages_offset, p.pages * p.page_size, p.kv_heads, p.head_dim)
    batch_rows, tables = Rows(p, batch), Sequences(p, sequences)
    factor = np.float32(p.scale)

    def attend(row: int, part: int, table: int, begin: int, end: int) -> None:
        out, query = outs[row, :, :, part], queries[row] * factor
        if begin >= end:
            out[..., p.head_dim :] = 0
            return
        peak, total, sums = np.full((*shape[1:3], 1), _LOWEST), np.float32(0), np.zeros(shape[1:], np.float32)
        for some in steps(end, BLOCK // (p.heads * p.head_dim), begin):
            where = tables.slots(table, some.start, some.stop)
            scores = query @ keys.read(where).transpose(1, 2, 0)
            higher = np.maximum(peak, scores.max(axis=-1, keepdims=True))
            rescale, weights = np.exp(peak - higher), np.exp(scores - higher)
            total = total * rescale + weights.sum(axis=-1, keepdims=True)
            sums = sums * rescale + weights @ values.read(where).transpose(1, 0, 2)
            peak = higher
        out[..., : p.head_dim] = sums
        out[..., p.head_dim :] = np.concatenate([peak, total, np.ones_like(peak), np.zeros_like(peak)], axis=-1)

    def run() -> None:
        for row in range(batch_rows.count()):
            position, sequence = batch_rows.row(row)
            table, length = tables.find(sequence)
            length = min(position + 1, length)
            first = max(0, position + 1 - p.window) if p.window else 0
            longest = -(-max(0, length - first) // (p.parts * TILE)) * TILE
            for part in range(p.parts):
                begin = min(first + part * longest, length)
                attend(row, part, table, begin, min(begin + longest, length))

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


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes from one index of each dimension to the next, of packed float32."""
    return tuple(4 * math.prod(shape[i + 1 :]) for i in range(len(shape)))


KERNELS: dict[str, Callable[..., Callable[[], object]]] = {
    **{f"attention_part_{dtype.suffix}": partial(attention_part, dtype) for dtype in KV},
    "attention_merge": attention_merge,
}
