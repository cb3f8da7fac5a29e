"""Element types: their ggml numbers and block layouts, the only table of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from wasmetal.errors import OpError


class DType(Enum):
    """An element type: (ggml's number for it, elements in a block, bytes of a block).

    The numbers are those of ``enum ggml_type``, so that the types of a GGUF file and of a guest need no translation.
    Quantized types store each row as blocks in GGUF's own byte layout (``weights.slang`` describes each). Q8_16 is not
    of ggml: it holds weights of types that are repacked when a file is loaded (``models/files/repack.py``).
    """

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q8_0 = 8, 32, 34
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    I32 = 26, 1, 4
    BF16 = 30, 1, 2
    MXFP4 = 39, 32, 17
    Q8_16 = 256, 32, 40

    _value_: int
    block: tuple[int, int]
    """(elements in a block, bytes of a block)."""

    def __new__(cls, number: int, elements: int, nbytes: int) -> DType:  # noqa: D102
        member = object.__new__(cls)
        member._value_ = number
        member.block = (elements, nbytes)
        return member

    @property
    def quantized(self) -> bool:
        """Whether it is a block type, which only weights can have."""
        return self.block[0] > 1

    @property
    def gemv_unit(self) -> int:
        """Bytes of the unit in which the kernels of a single row read weights of the type."""
        return 4 if self.quantized else 16

    @property
    def suffix(self) -> str:
        """Suffix of the names of kernels that read this type."""
        return self.name.lower()

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of ``elements``. Raises OpError if that is not a whole number of blocks."""
        return row_bytes(self.name, self.block, elements)


class Layout(Protocol):
    """How rows of a type lie in memory."""

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of ``elements``. Raises OpError if that is not a whole number of blocks."""


def tensor_bytes(layout: Layout, shape: Sequence[int]) -> int:
    """Bytes of a packed tensor. Raises OpError if its rows are not whole numbers of blocks."""
    return math.prod(shape[:-1]) * layout.row_bytes(shape[-1])


def row_bytes(name: str, block: tuple[int, int], elements: int) -> int:
    """Bytes of a row of ``elements`` of a type. Raises OpError if that is not a whole number of blocks."""
    per_block, nbytes = block
    if elements % per_block:
        raise OpError(f"a row of {elements} elements is not a whole number of {name} blocks of {per_block}")
    return elements // per_block * nbytes


BY_NUMBER = {dtype.value: dtype for dtype in DType}
"""The types by ggml's numbers."""

WEIGHTS = tuple(dtype for dtype in DType if dtype is not DType.I32)
"""The types that weights can have: every ``embed``, ``gemm`` and kind of ``gemv`` kernel exists for each."""

FLOATS = (DType.F32, DType.F16)
"""The types that operands of ``matmul`` can have."""

KV = (DType.F32, DType.F16, DType.Q8_0)
"""The types that the pages of a KV cache can have."""
