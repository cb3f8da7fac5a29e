"""Tensors: a typed, shaped view of a range of a device buffer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.device.base import Buffer
from wasmetal.errors import OpError
from wasmetal.kernels.dtypes import DType
from wasmetal.ops.work import Part

_NUMPY = {DType.F32: np.float32, DType.F16: np.float16, DType.I32: np.int32}

ALIGNMENT = 16
"""Tensors begin at a multiple of this many bytes in their buffer, so that kernels can load 16 bytes at a time."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A row-major array in a buffer.

    ``shape`` has 1 to 4 positive dimensions; the last one is contiguous. ``row_stride`` (elements from one index of
    the first dimension to the next) lets a tensor be a slice of columns of a wider one; it defaults to packed rows.
    Raises OpError if the range leaves the buffer, or is misaligned (ALIGNMENT), or a shape is not positive.
    """

    buffer: Buffer
    offset: int
    dtype: DType
    shape: tuple[int, ...]
    row_stride: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= 4 or min(self.shape) < 1:
            raise OpError(f"shape {self.shape}: a tensor has 1 to 4 dimensions, each at least 1")
        inner = math.prod(self.shape[1:])
        if self.row_stride == 0:
            object.__setattr__(self, "row_stride", inner)
        if self.row_stride < inner:
            raise OpError(f"row stride {self.row_stride} is less than a row of {inner} elements")
        if self.offset < 0 or self.offset % ALIGNMENT:
            raise OpError(f"offset {self.offset} is not a multiple of {ALIGNMENT}")
        if self.offset + self.nbytes > self.buffer.nbytes:
            raise OpError(
                f"tensor {self.dtype.name} {self.shape} at {self.offset} needs {self.nbytes} bytes; "
                f"its buffer has {self.buffer.nbytes}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the end of the last, gaps between rows included."""
        if len(self.shape) == 1:
            return self.dtype.row_bytes(self.shape[0])
        last = self.dtype.row_bytes(math.prod(self.shape[1:]))
        return (self.shape[0] - 1) * self.dtype.row_bytes(self.row_stride) + last

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def packed(self) -> bool:
        """Whether the rows have no gaps between them."""
        return self.shape[0] == 1 or self.row_stride == math.prod(self.shape[1:])

    def numpy(self) -> NDArray[Any]:
        """The elements as an array of ``shape``, without a copy: float32, float16 or int32.

        Raises OpError for a quantized type, and DeviceError if the host cannot see the buffer.
        """
        kind = _NUMPY.get(self.dtype)
        if kind is None:
            raise OpError(f"{self.dtype.name} has no NumPy type; dequantize it first")
        size, inner = self.dtype.block[1], math.prod(self.shape[1:])
        flat: NDArray[Any] = np.ndarray(
            (self.shape[0], inner), kind, self.buffer.view(), self.offset, (self.row_stride * size, size)
        )
        return flat[:, 0] if len(self.shape) == 1 else flat.reshape(self.shape)

    def reshape(self, *shape: int) -> Tensor:
        """The same bytes in another shape of as many elements. Only for packed tensors."""
        if not self.packed or math.prod(shape) != self.size:
            raise OpError(f"cannot reshape {self.shape} (row stride {self.row_stride}) to {shape}")
        return replace(self, shape=shape, row_stride=0)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the first dimension: the tensor itself if those are all."""
        if start == 0 and stop == self.shape[0]:
            return self
        if not 0 <= start < stop <= self.shape[0]:
            raise OpError(f"rows {start}:{stop} of {self.shape}")
        step = self.dtype.row_bytes(self.row_stride)
        return replace(self, offset=self.offset + start * step, shape=(stop - start, *self.shape[1:]))

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns ``start`` to ``stop`` of a two-dimensional tensor: a strided slice of the same bytes.

        The tensor itself if those are all.
        """
        if self.shape[1:] == (stop,) and start == 0:
            return self
        if len(self.shape) != 2 or not 0 <= start < stop <= self.shape[1]:
            raise OpError(f"columns {start}:{stop} of {self.shape}")
        return replace(self, offset=self.offset + self.dtype.row_bytes(start), shape=(self.shape[0], stop - start))

    def part(self, part: Part) -> Tensor:
        """The part of a matrix, or of a vector as a row: the tensor itself if that is all of it."""
        if part.whole:
            return self
        if len(self.shape) > 1:
            return self.rows(part.top, part.bottom).columns(part.left, part.right)
        return self if part.columns == self.shape[0] else self.reshape(1, self.size).columns(part.left, part.right)

    def row_step(self) -> int:
        """After how many rows, at least, one begins at a multiple of ALIGNMENT again."""
        return ALIGNMENT // math.gcd(self.dtype.row_bytes(self.row_stride), ALIGNMENT)

    def overlaps(self, other: Tensor) -> bool:
        """Whether the byte ranges of the two overlap, also through two buffers that wrap the same pages."""
        mine, its = self._start(), other._start()
        return mine[0] == its[0] and mine[1] < its[1] + other.nbytes and its[1] < mine[1] + self.nbytes

    def _start(self) -> tuple[int, int]:
        """(address space, address of the first byte in it)."""
        if self.buffer.address is not None:
            return 0, self.buffer.address + self.offset
        return id(self.buffer), self.offset
