"""Tensors of wasi-nn, and the two numberings of their element types that guests were built with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.documented import Documented
from wasmetal.nn.errors import invalid


class TensorType(Documented):
    """Element types, as they are numbered today."""

    F16 = 0, "16-bit floats"
    F32 = 1, "32-bit floats"
    F64 = 2, "64-bit floats; before 2023, bytes"
    U8 = 3, "bytes; before 2023, 32-bit integers"
    I32 = 4, "32-bit integers"
    I64 = 5, "64-bit integers"

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's."""
        return _DTYPES[self]


_DTYPES: dict[int, np.dtype[Any]] = {
    TensorType.F16: np.dtype("<f2"),
    TensorType.F32: np.dtype("<f4"),
    TensorType.F64: np.dtype("<f8"),
    TensorType.U8: np.dtype("u1"),
    TensorType.I32: np.dtype("<i4"),
    TensorType.I64: np.dtype("<i8"),
}
_BEFORE_2023 = {2: TensorType.U8, 3: TensorType.I32}


@dataclass(frozen=True, slots=True)
class NnTensor:
    """A tensor as a caller describes it. Its bytes are the caller's own, and may be used until the call returns."""

    number: int
    """Its element type, in one of the two numberings."""
    shape: tuple[int, ...]
    """May be untrue, as it is for texts."""
    data: NDArray[np.uint8]
    """Bytes [n], row-major, not necessarily aligned."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type. Raises NnRefusal unless shape and number of bytes agree with it."""
        candidates = [kind for kind in (_today(self.number), _BEFORE_2023.get(self.number)) if kind is not None]
        elements = math.prod(self.shape)
        for kind in candidates:
            if elements * kind.dtype.itemsize == self.data.size:
                return kind.dtype
        raise invalid(f"a tensor of {self.data.size} bytes, shape {list(self.shape)[:8]} and type {self.number}")

    @property
    def text(self) -> bytes:
        """The bytes, whatever the shape is."""
        return self.data.tobytes()


def _today(number: int) -> TensorType | None:
    return TensorType(number) if number in _DTYPES else None
