"""Large GEMMs by Apple's own kernels (Metal Performance Shaders), in place of the catalog's.

Operations know nothing of them: a dispatch of a GEMM kernel is recognised when it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wasmetal.device.gemm import Gemm, Matrix, gemm_of
from wasmetal.device.metal.api import load_mps, objc
from wasmetal.device.metal.stream import Stream
from wasmetal.errors import DeviceError
from wasmetal.kernels.catalog import Kernel

LEAST = 512**3
"""Multiplications from which a GEMM counts as large. An estimate, not measured: a pass of its own must pay."""
LEAST_SIDE = 64
"""Rows, columns and depth that a large GEMM has at least; narrower ones are nearly matrix-vector products."""

Kinds = tuple[str, str, str]
"""Element types of left, right and result."""
_KINDS: set[Kinds] = {("f32", "f32", "f32"), ("f16", "f16", "f32"), ("f16", "f16", "f16")}
"""Those that MPS has."""
_ALIGNMENT = 16
"""Bytes that matrices and rows begin at multiples of. MPS demands whole elements, and recommends this."""
_REACH = 2**31
"""MPS counts bytes in 32 bits with a sign, and as far as (rows + 2 depth) rows into a result: beyond, it writes NaN
(github.com/JuliaGPU/Metal.jl, issue 381)."""

Place = tuple[Any, int]
"""An ``MTLBuffer``, and a byte in it."""


def takes(what: Gemm) -> bool:
    """Whether MPS computes a GEMM, if its matrices fit."""
    reachable = (what.m + 2 * what.k) * what.matrices[2].row_bytes < _REACH
    return _kinds(what) in _KINDS and reachable


def _kinds(what: Gemm) -> Kinds:
    left, right, result = what.matrices
    return left.kind, right.kind, result.kind


def fits(matrix: Matrix, room: int) -> bool:
    """Whether MPS takes a matrix from a buffer that has ``room`` bytes where it is bound. It takes whole rows."""
    nbytes = matrix.rows * matrix.row_bytes
    aligned = matrix.offset % _ALIGNMENT == 0 and matrix.row_bytes % _ALIGNMENT == 0
    whole = matrix.columns * matrix.itemsize <= matrix.row_bytes and nbytes < _REACH
    return aligned and whole and matrix.offset + nbytes <= room


class Product:
    """A GEMM by MPS, ready to be encoded any number of times."""

    def __init__(self, device: Any, what: Gemm, places: Sequence[Place]) -> None:
        """``places``: where each of its bindings begins. Raises DeviceError."""
        self._matrices = [_bound(matrix, *place) for matrix, place in zip(what.matrices, places, strict=True)]
        self._kernel = _kernel(device, what)
        if any(made is None for made in (self._kernel, *self._matrices)):
            raise DeviceError("Metal Performance Shaders made no matrix multiplication")

    def encode(self, stream: Stream) -> None:
        """Run it behind all that is encoded so far."""
        encode = self._kernel.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix_
        encode(stream.commands(), *self._matrices)


def _bound(matrix: Matrix, buffer: Any, begin: int) -> Any:
    """An ``MPSMatrix``."""
    mps = load_mps()
    kind = mps.MPSDataTypeFloat32 if matrix.kind == "f32" else mps.MPSDataTypeFloat16
    describe = mps.MPSMatrixDescriptor.matrixDescriptorWithRows_columns_rowBytes_dataType_
    descriptor = describe(matrix.rows, matrix.columns, matrix.row_bytes, kind)
    return mps.MPSMatrix.alloc().initWithBuffer_offset_descriptor_(buffer, begin + matrix.offset, descriptor)


def _kernel(device: Any, what: Gemm) -> Any:
    """An ``MPSMatrixMultiplication``: alpha left right + beta result."""
    left, right, _ = what.matrices
    alpha, beta = 1.0, float(what.accumulate)
    new = load_mps().MPSMatrixMultiplication.alloc()
    return new.initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta_(
        device, left.transposed, right.transposed, what.m, what.n, what.k, alpha, beta
    )


class Products:
    """Finds the dispatches that MPS is to compute."""

    def __init__(self, device: Any, least: int, try_out: Callable[[Kinds], str | None]) -> None:
        """For an ``MTLDevice``; GEMMs of fewer than ``least`` multiplications are left to the catalog's kernels.

        ``try_out`` is called before the first GEMM of some types; it says what keeps MPS from computing them, or None.
        """
        self._device = device
        self._least = least
        self._try_out = try_out
        self._tried: dict[Kinds, str | None] = {}

    @property
    def features(self) -> tuple[str, ...]:
        """What MPS is used for, in words."""
        right = [_named(kinds) for kinds, obstacle in self._tried.items() if obstacle is None]
        wrong = [f"no MPS for {_named(kinds)} ({obstacle})" for kinds, obstacle in self._tried.items() if obstacle]
        used = f"large products by MPS ({', '.join(right) or 'tried at their first use'})"
        return (used, *wrong) if right or not wrong else tuple(wrong)

    def find(self, kernel: Kernel, params: bytes, places: Sequence[Place]) -> Product | None:
        """What computes the same as a kernel with these parameters and bindings; None if the kernel is to."""
        what = gemm_of(kernel, params)
        if what is None or what.size < self._least or what.least_side < LEAST_SIDE or not takes(what):
            return None
        bound = list(zip(what.matrices, places, strict=False))
        if not all(fits(matrix, buffer.length() - begin) for matrix, (buffer, begin) in bound):
            return None
        kinds = _kinds(what)
        if kinds not in self._tried:
            self._tried[kinds] = self._try_out(kinds)
        if self._tried[kinds] is not None:
            return None
        with objc.autorelease_pool():
            return Product(self._device, what, [place for _, place in bound])


def _named(kinds: Kinds) -> str:
    return f"{kinds[0]} to {kinds[2]}"
