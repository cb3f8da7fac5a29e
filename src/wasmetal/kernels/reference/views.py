"""Typed views of the bytes that a kernel is bound to. NumPy refuses a view that would leave them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Bytes = NDArray[np.uint8]
F32 = NDArray[np.float32]


def array(data: Bytes, offset: int, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """A packed array that begins ``offset`` bytes into the binding."""
    return np.ndarray(shape, dtype, data, offset)


def rows(data: Bytes, offset: int, count: int, columns: int, stride: int) -> F32:
    """A float32 matrix whose rows are ``stride`` elements apart; ``offset`` in elements."""
    return np.ndarray((count, columns), np.float32, data, offset * 4, (stride * 4, 4))


def words(data: Bytes, offset: int, count: int) -> memoryview:
    """Unsigned 32-bit integers, read as Python ints faster than through an array; ``offset`` in words."""
    return data.data[offset * 4 : (offset + count) * 4].cast("I")


def as_f32(array: NDArray[Any]) -> F32:
    """The array itself if it is float32 already."""
    return array.astype(np.float32, copy=False)
