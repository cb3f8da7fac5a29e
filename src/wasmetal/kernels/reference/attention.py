"""The paged key-value cache, and attention over it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wasmetal.kernels.reference.views import F32, Bytes, array, rows, words


class _Slots:
    """Where positions lie in a pool of pages, each a run of ``page_size`` slots."""

    def __init__(self, p: SimpleNamespace, page_table: Bytes):
        self.page_size: int = p.page_size
        self.capacity: int = p.table_length * p.page_size
        self._last_page: int = p.pages - 1
        self._table = words(page_table, p.page_table_offset, p.table_length)
        self._raw = self._table.cast("B")
        self._seen = b""
        self._first: int | None = None

    def slot(self, position: int) -> int:
        page, within = divmod(position, self.page_size)
        return min(self._table[page], self._last_page) * self.page_size + within

    def slots(self, begin: int, end: int) -> slice | NDArray[np.int64]:
        """The slots of positions begin..end: a slice where the pages follow one another, which spares a copy."""
        pages = -(-end // self.page_size)
        seen = bytes(self._raw[: pages * 4])
        if seen != self._seen:
            table = self._clamped(pages)
            self._first = int(table[0]) if (np.diff(table) == 1).all() else None
            self._seen = seen
        if self._first is not None:
            first = self._first * self.page_size
            return slice(first + begin, first + end)
        positions = np.arange(begin, end)
        where: NDArray[np.int64] = self._clamped(pages)[positions // self.page_size] * self.page_size
        return where + positions % self.page_size

    def _clamped(self, pages: int) -> NDArray[np.int64]:
        table = np.frombuffer(self._table[:pages], np.uint32).astype(np.int64)
        return np.minimum(table, self._last_page)


def kv_append(
    dtype: DTypeLike,
    p: SimpleNamespace,
    k: Bytes,
    v: Bytes,
    k_pages: Bytes,
    v_pages: Bytes,
    page_table: Bytes,
    step: Bytes,
) -> Callable[[], None]:
    """Write each active row of k and v to its position's slot; positions past the table are dropped."""
    keys = rows(k, p.k_offset, p.rows, p.columns, p.k_stride)
    values = rows(v, p.v_offset, p.rows, p.columns, p.v_stride)
    pool = (p.pages * p.page_size, p.columns)
    vector = 4 * np.dtype(dtype).itemsize  # The pools are bound as vectors of four elements.
    key_pool: NDArray[Any] = array(k_pages, p.k_pages_offset * vector, pool, dtype)
    value_pool: NDArray[Any] = array(v_pages, p.v_pages_offset * vector, pool, dtype)
    key, value = keys[0], values[0]
    slots, state = _Slots(p, page_table), words(step, p.step_offset, 4)

    def run() -> None:
        position = min(state[1], slots.capacity)
        n = min(state[0], p.rows, slots.capacity - position)
        if n == 1:
            slot = slots.slot(position)
            key_pool[slot] = key
            value_pool[slot] = value
        elif n:
            where = slots.slots(position, position + n)
            key_pool[where] = keys[:n]
            value_pool[where] = values[:n]

    return run


def attention(
    dtype: DTypeLike,
    p: SimpleNamespace,
    q: Bytes,
    k_pages: Bytes,
    v_pages: Bytes,
    page_table: Bytes,
    step: Bytes,
    out: Bytes,
) -> Callable[[], None]:
    """out[t] = softmax(scale q[t] kᵀ) v over positions 0 .. position + t, each kv head serving its group of heads."""
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
    slots, state = _Slots(p, page_table), words(step, p.step_offset, 4)
    factor = np.float32(p.scale)

    def one(length: int) -> None:
        where = slots.slots(0, length)
        np.multiply(query, factor, scaled)
        scores = scaled @ as_f32(keys_first[:, :, where])
        softmax_then(scores, as_f32(values_first[:, where]), result)

    def many(n: int, position: int) -> None:
        length = min(position + n, slots.capacity)
        where = slots.slots(0, length)
        future = np.arange(length) > np.minimum(np.arange(position, position + n), length - 1)[:, None]
        for head in range(p.kv_heads):  # One at a time, so that scores of a long context need not fit all at once.
            grouped: F32 = (queries[:n, head] * factor).swapaxes(0, 1)
            scores: F32 = grouped @ as_f32(keys_first[head][:, where])
            scores[:, future] = -np.inf
            softmax_then(scores, as_f32(values_first[head][where]), outs[:n, head].swapaxes(0, 1))

    def run() -> None:
        n, position = min(state[0], p.rows), min(state[1], slots.capacity - 1)
        if n == 1:
            one(position + 1)
        elif n:
            many(n, position)

    return run


def softmax_then(scores: F32, values: F32, out: F32) -> None:
    """out = softmax(scores) @ values; overwrites the scores."""
    np.subtract(scores, np.maximum.reduce(scores, axis=-1, keepdims=True), scores)
    np.exp(scores, scores)
    np.divide(scores @ values, np.add.reduce(scores, axis=-1, keepdims=True), out)


def as_f32(array: NDArray[Any]) -> F32:
    """The array itself where it is float32 already."""
    return array.astype(np.float32, copy=False)


KERNELS: dict[str, Callable[..., Callable[[], object]]] = {
    "kv_append_f32": partial(kv_append, np.float32),
    "kv_append_f16": partial(kv_append, np.float16),
    "attention_f32": partial(attention, np.float32),
    "attention_f16": partial(attention, np.float16),
}
