"""The paged KV cache, and attention over it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wasmetal.kernels.reference.batch import Rows, Sequences
from wasmetal.kernels.reference.views import F32, Bytes, array, rows


def kv_append(
    dtype: DTypeLike,
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
    pool = (p.pages * p.page_size, p.columns)
    vector = 4 * np.dtype(dtype).itemsize  # The pools are bound as vectors of four elements.
    key_pool: NDArray[Any] = array(k_pages, p.k_pages_offset * vector, pool, dtype)
    value_pool: NDArray[Any] = array(v_pages, p.v_pages_offset * vector, pool, dtype)
    key, value = keys[0], values[0]
    batch_rows, tables = Rows(p, batch), Sequences(p, sequences)

    def one() -> None:
        position, sequence = batch_rows.row(0)
        table, length = tables.find(sequence)
        if position < length:
            slot = tables.slot(table, position)
            key_pool[slot] = key
            value_pool[slot] = value

    def many(n: int) -> None:
        for begin, end, position, sequence in batch_rows.runs(n):
            table, length = tables.find(sequence)
            count = min(end - begin, length - position)
            if count > 0:
                where = tables.slots(table, position, position + count)
                key_pool[where] = keys[begin : begin + count]
                value_pool[where] = values[begin : begin + count]

    return batch_rows.runner(one, many)


def attention(
    dtype: DTypeLike,
    p: SimpleNamespace,
    q: Bytes,
    k_pages: Bytes,
    v_pages: Bytes,
    batch: Bytes,
    sequences: Bytes,
    out: Bytes,
) -> Callable[[], None]:
    """out[t] = softmax(scale q[t] kᵀ) v over positions 0 .. position[t]; each kv head serves a group of heads."""
    group = p.heads // p.kv_heads
    split = (p.rows, p.kv_heads, group, p.head_dim)
    inner = (p.head_dim * group * 4, p.head_dim * 4, 4)
    queries: F32 = np.ndarray(split, np.float32, q, p.q_offset * 4, (p.q_stride * 4, *inner))
    outs: F32 = np.ndarray(split, np.float32, out, p.out_offset * 4, (p.out_stride * 4, *inner))
    query, result = queries[0], outs[0]
    scaled = np.empty(split[1:], np.float32)
    pool = (p.pages * p.page_size, p.kv_heads, p.head_dim)
    vector = 4 * np.dtype(dtype).itemsize  # The pools are bound as vectors of four elements.
    key_pool: NDArray[Any] = array(k_pages, p.k_pages_offset * vector, pool, dtype)
    value_pool: NDArray[Any] = array(v_pages, p.v_pages_offset * vector, pool, dtype)
    keys_first, values_first = key_pool.transpose(1, 2, 0), value_pool.transpose(1, 0, 2)
    batch_rows, tables = Rows(p, batch), Sequences(p, sequences)
    factor = np.float32(p.scale)

    def one() -> None:
        position, sequence = batch_rows.row(0)
        table, length = tables.find(sequence)
        if length == 0:
            result[...] = 0
            return
        where = tables.slots(table, 0, min(position + 1, length))
        np.multiply(query, factor, scaled)
        scores = scaled @ as_f32(keys_first[:, :, where])
        softmax_then(scores, as_f32(values_first[:, where]), result)

    def many(n: int) -> None:
        for begin, end, position, sequence in batch_rows.runs(n):
            table, length = tables.find(sequence)
            if length:
                run_of(begin, end, position, table, length)
            else:
                outs[begin:end] = 0

    def run_of(begin: int, end: int, position: int, table: int, length: int) -> None:
        seen = min(position + end - begin, length)
        where = tables.slots(table, 0, seen)
        future = np.arange(seen) > np.arange(position, position + end - begin)[:, None]
        for head in range(p.kv_heads):  # One row at a time, so that the scores of all rows need not fit memory at once.
            grouped: F32 = (queries[begin:end, head] * factor).swapaxes(0, 1)
            scores: F32 = grouped @ as_f32(keys_first[head][:, where])
            scores[:, future] = -np.inf
            softmax_then(scores, as_f32(values_first[head][where]), outs[begin:end, head].swapaxes(0, 1))

    return batch_rows.runner(one, many)


def softmax_then(scores: F32, values: F32, out: F32) -> None:
    """out = softmax(scores) @ values; overwrites the scores."""
    np.subtract(scores, np.maximum.reduce(scores, axis=-1, keepdims=True), scores)
    np.exp(scores, scores)
    np.divide(scores @ values, np.add.reduce(scores, axis=-1, keepdims=True), out)


def as_f32(array: NDArray[Any]) -> F32:
    """The array itself if it is float32 already."""
    return array.astype(np.float32, copy=False)


KERNELS: dict[str, Callable[..., Callable[[], object]]] = {
    "kv_append_f32": partial(kv_append, np.float32),
    "kv_append_f16": partial(kv_append, np.float16),
    "attention_f32": partial(attention, np.float32),
    "attention_f16": partial(attention, np.float16),
}
