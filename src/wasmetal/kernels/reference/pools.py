"""The pools of the paged KV cache: for each position a slot, which holds its elements, in one of several types."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference.views import F32, Bytes, array, as_f32

Slots = slice | int | NDArray[np.int64]
Heads = slice

_NUMPY: dict[DType, DTypeLike] = {DType.F32: np.float32, DType.F16: np.float16}


class Pool(Protocol):
    """Slots of [heads, head_dim] elements."""

    in_place: bool
    """Whether what is read may be a view of the pool."""

    def read(self, where: Slots, heads: Heads = slice(None)) -> F32:
        """Some heads of some slots, float32 [slots, heads, head_dim]."""

    def write(self, where: Slots, rows: F32) -> None:
        """Write whole slots: rows [slots, columns], or [columns] to one slot."""


def open_pool(dtype: DType, data: Bytes, offset: int, slots: int, heads: int, head_dim: int) -> Pool:
    """A pool of ``slots`` that begins at ``offset`` in a binding, counted in vectors of four elements."""
    if dtype is DType.Q8_0:
        return _Blocks(data, offset * 4, slots, heads, head_dim)
    return _Floats(_NUMPY[dtype], data, offset, slots, heads, head_dim)


class _Floats:
    """float32 or float16."""

    def __init__(self, kind: DTypeLike, data: Bytes, offset: int, slots: int, heads: int, head_dim: int) -> None:
        self.in_place = kind is np.float32
        vector = 4 * np.dtype(kind).itemsize
        self._pool: NDArray[Any] = array(data, offset * vector, (slots, heads, head_dim), kind)
        self._rows = self._pool.reshape(slots, heads * head_dim)

    def read(self, where: Slots, heads: Heads = slice(None)) -> F32:
        if heads == slice(None) or heads == slice(0, self._pool.shape[1]):
            return as_f32(self._pool[where])
        return as_f32(self._pool[where, heads])

    def write(self, where: Slots, rows: F32) -> None:
        self._rows[where] = rows


class _Blocks:
    """Q8_0: in each slot the signed bytes of all blocks of 32, then their float16 scales."""

    in_place = False

    def __init__(self, data: Bytes, begin: int, slots: int, heads: int, head_dim: int) -> None:
        columns = heads * head_dim
        row = DType.Q8_0.row_bytes(columns)
        shape, scales = (slots, heads, head_dim // 32, 32), (slots, heads, head_dim // 32)
        self._bytes: NDArray[np.int8] = np.ndarray(shape, np.int8, data, begin, (row, head_dim, 32, 1))
        strides = (row, head_dim // 16, 2)
        self._scales: NDArray[np.float16] = np.ndarray(scales, np.float16, data, begin + columns, strides)

    def read(self, where: Slots, heads: Heads = slice(None)) -> F32:
        values = self._bytes[where, heads].astype(np.float32)
        values *= self._scales[where, heads, :, None].astype(np.float32)
        return values.reshape(*values.shape[:2], -1)

    def write(self, where: Slots, rows: F32) -> None:
        blocks = rows.reshape(*rows.shape[:-1], *self._bytes.shape[1:])
        most = np.abs(blocks).max(axis=-1)
        inverse = np.divide(np.float32(127), most, where=most > 0, out=np.zeros_like(most))
        scaled = blocks * inverse[..., None]
        scaled += np.copysign(np.float32(0.5), scaled)  # to be rounded as ggml does: halves away from zero
        self._bytes[where] = np.nan_to_num(scaled, nan=-127).clip(-127, 127).astype(np.int8)
        self._scales[where] = (most / np.float32(127)).astype(np.float16)
