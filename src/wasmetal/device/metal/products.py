"""Large products of matrices by Apple's own kernels (Metal Performance Shaders), in place of the catalog's.

Operations know nothing of them: a dispatch of a product's kernel is recognised when it is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wasmetal.device.metal.api import mps, objc
from wasmetal.device.metal.stream import Stream
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import NO_BATCH, Kernel

LEAST = 512**3
"""Multiplications from which on a product is large. An estimate, not measured: a pass of its own must be worth it."""
LEAST_SIDE = 64
"""Rows, columns and depth that a large product has at least; narrower ones are nearly products with a vector."""

KERNELS = {"gemm_f32": "f32", "matmul_f32_f32": "f32", "matmul_f16_f32": "f16", "matmul_f16_f16": "f16"}
"""The kernels that can be replaced, and the type of both operands: MPS has no mixed ones."""

_ALIGNMENT = 16
"""Bytes that matrices and rows begin at multiples of. MPS demands whole elements, and recommends this."""
_REACH = 2**31
"""MPS counts bytes in 32 bits with a sign, and as far as (rows + 2 depth) rows into a result: beyond, it writes NaN
(github.com/JuliaGPU/Metal.jl, issue 381)."""
_SIZES = {"f32": 4, "f16": 2}

Place = tuple[Any, int]
"""An ``MTLBuffer``, and a byte in it."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix as it lies in a binding, row by row."""

    kind: str
    offset: int
    """Byte at which it begins."""
    rows: int
    columns: int
    row_bytes: int
    """From row to row."""
    transposed: bool = False
    """Whether the product takes it the other way round."""

    @property
    def nbytes(self) -> int:
        """Bytes that MPS takes it for: whole rows."""
        return self.rows * self.row_bytes

    def fits(self, room: int) -> bool:
        """Whether MPS takes it from a buffer that has ``room`` bytes where it is bound."""
        aligned = self.offset % _ALIGNMENT == 0 and self.row_bytes % _ALIGNMENT == 0
        whole = self.columns * _SIZES[self.kind] <= self.row_bytes and self.nbytes < _REACH
        return aligned and whole and self.offset + self.nbytes <= room


@dataclass(frozen=True, slots=True)
class Multiplication:
    """left [m, k] times right [k, n], into result [m, n] or, where ``accumulate``, added to it."""

    m: int
    n: int
    k: int
    matrices: tuple[Matrix, Matrix, Matrix]
    """Left, right, result."""
    accumulate: bool

    @property
    def size(self) -> int:
        """Multiplications of numbers."""
        return self.m * self.n * self.k

    @property
    def least_side(self) -> int:
        """The least of its dimensions."""
        return min(self.m, self.n, self.k)

    @property
    def countable(self) -> bool:
        """Whether MPS can reach all of the result."""
        return (self.m + 2 * self.k) * self.matrices[2].row_bytes < _REACH


def describe(kernel: Kernel, params: bytes) -> Multiplication | None:
    """The one product that a kernel computes, whatever a buffer holds; None where MPS has none such."""
    name = kernel.name
    if name not in KERNELS:
        return None
    kind, result = KERNELS[name], name.rpartition("_")[2]
    p = kernel.unpack(params)
    begins = [getattr(p, f"{argument.name}_offset") * argument.element for argument in kernel.buffers[:3]]
    if name.startswith("gemm"):
        if p.batch_offset != NO_BATCH:  # rows beyond the step's are to stay as they are
            return None
        m, accumulate = p.rows, bool(p.accumulate)
        left, right = (p.x_stride, 1), (1, p.k)
        out_row = p.out_stride
    else:
        if p.batch != 1:
            return None
        m, accumulate = p.m, False
        left, right = (p.a_row, p.a_column), (p.b_row, p.b_column)
        out_row = p.out_row
    matrices = (
        _matrix(kind, begins[0], (m, p.k), left),
        _matrix(kind, begins[1], (p.k, p.n), right),
        _matrix(result, begins[2], (m, p.n), (out_row, 1)),
    )
    return Multiplication(m, p.n, p.k, matrices, accumulate)


def _matrix(kind: str, begin: int, shape: tuple[int, int], strides: tuple[int, int]) -> Matrix:
    """From how the product sees it; of the strides, in elements, one is 1."""
    size = _SIZES[kind]
    if strides[1] == 1:
        return Matrix(kind, begin, shape[0], shape[1], strides[0] * size)
    return Matrix(kind, begin, shape[1], shape[0], strides[1] * size, transposed=True)


class Product:
    """A product, ready to be encoded any number of times."""

    def __init__(self, device: Any, what: Multiplication, places: Sequence[Place]) -> None:
        """``places``: where each of its bindings begins. Raises DeviceError."""
        self._matrices = [_bound(matrix, *place) for matrix, place in zip(what.matrices, places, strict=True)]
        self._kernel = _kernel(device, what)
        if any(made is None for made in (self._kernel, *self._matrices)):
            raise DeviceError("Metal Performance Shaders made no product of matrices")

    def encode(self, stream: Stream) -> None:
        """Run it behind all that is encoded so far."""
        encode = self._kernel.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix_
        encode(stream.commands(), *self._matrices)


def _bound(matrix: Matrix, buffer: Any, begin: int) -> Any:
    """An ``MPSMatrix``."""
    kind = mps.MPSDataTypeFloat32 if matrix.kind == "f32" else mps.MPSDataTypeFloat16
    describe = mps.MPSMatrixDescriptor.matrixDescriptorWithRows_columns_rowBytes_dataType_
    descriptor = describe(matrix.rows, matrix.columns, matrix.row_bytes, kind)
    return mps.MPSMatrix.alloc().initWithBuffer_offset_descriptor_(buffer, begin + matrix.offset, descriptor)


def _kernel(device: Any, what: Multiplication) -> Any:
    """An ``MPSMatrixMultiplication``: alpha left right + beta result."""
    left, right, _ = what.matrices
    alpha, beta = 1.0, float(what.accumulate)
    new = mps.MPSMatrixMultiplication.alloc()
    return new.initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta_(
        device, left.transposed, right.transposed, what.m, what.n, what.k, alpha, beta
    )


class Products:
    """Finds the dispatches that are products for MPS."""

    def __init__(self, device: Any, least: int = LEAST) -> None:
        """For an ``MTLDevice``; products of fewer than ``least`` multiplications are left to the catalog's kernels."""
        self._device = device
        self._least = least

    def find(self, kernel: Kernel, params: bytes, places: Sequence[Place]) -> Product | None:
        """What computes the same as a kernel with these parameters and bindings; None where the kernel is to."""
        what = describe(kernel, params)
        if what is None or what.size < self._least or what.least_side < LEAST_SIDE or not what.countable:
            return None
        places = places[: len(what.matrices)]
        fit = (
            matrix.fits(buffer.length() - begin) for matrix, (buffer, begin) in zip(what.matrices, places, strict=True)
        )
        if not all(fit):
            return None
        with objc.autorelease_pool():
            return Product(self._device, what, places)
