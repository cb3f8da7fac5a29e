"""Large GEMMs computed by Metal Performance Shaders (MPS) instead of the catalog's kernels.

Operations do not know of this: a dispatch that computes a GEMM is recognised when it is recorded.
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
"""Multiplications from which a GEMM counts as large. A guess: no crossover has been measured."""
LEAST_SIDE = 64
"""The least m, n and k of a large GEMM; below, it is close to a matrix-vector product."""

Kinds = tuple[str, str, str]
"""Element types of the left matrix, the right matrix and the result."""
_KINDS: set[Kinds] = {("f32", "f32", "f32"), ("f16", "f16", "f32"), ("f16", "f16", "f16")}
"""The combinations that MPS supports."""
_ALIGNMENT = 16
"""Alignment of matrices and rows, in bytes. MPS requires whole elements, and recommends this."""
_REACH = 2**31
"""MPS computes byte offsets in signed 32 bits, up to row m + 2k of a result; where they overflow it writes NaN
(github.com/JuliaGPU/Metal.jl, issue 381)."""

Place = tuple[Any, int]
"""An ``MTLBuffer``, and an offset in it in bytes."""


def takes(what: Gemm) -> bool:
    """Whether MPS can compute a GEMM of these types and sizes."""
    reachable = (what.m + 2 * what.k) * what.matrices[2].row_bytes < _REACH
    return _kinds(what) in _KINDS and reachable


def _kinds(what: Gemm) -> Kinds:
    left, right, result = what.matrices
    return left.kind, right.kind, result.kind


def fits(matrix: Matrix, room: int) -> bool:
    """Whether MPS accepts a matrix in a binding with ``room`` bytes to the buffer's end. It accesses whole rows."""
    nbytes = matrix.rows * matrix.row_bytes
    aligned = matrix.offset % _ALIGNMENT == 0 and matrix.row_bytes % _ALIGNMENT == 0
    whole = matrix.columns * matrix.itemsize <= matrix.row_bytes and nbytes < _REACH
    return aligned and whole and matrix.offset + nbytes <= room


class Product:
    """A GEMM by MPS, which can be encoded any number of times."""

    def __init__(self, device: Any, what: Gemm, places: Sequence[Place]) -> None:
        """``places``: where each matrix's binding begins. Raises DeviceError if MPS does not make the GEMM."""
        self._matrices = [_bound(matrix, *place) for matrix, place in zip(what.matrices, places, strict=True)]
        self._kernel = _kernel(device, what)
        if any(made is None for made in (self._kernel, *self._matrices)):
            raise DeviceError("Metal Performance Shaders cannot make this GEMM; set WASMETAL_NO_MPS=1")

    def encode(self, stream: Stream) -> None:
        """Encode the GEMM as a separate pass."""
        encode = self._kernel.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix_
        encode(stream.commands(), *self._matrices)


def _bound(matrix: Matrix, buffer: Any, begin: int) -> Any:
    """A matrix as an ``MPSMatrix``, for a binding that begins at a byte of a buffer."""
    mps = load_mps()
    kind = mps.MPSDataTypeFloat32 if matrix.kind == "f32" else mps.MPSDataTypeFloat16
    describe = mps.MPSMatrixDescriptor.matrixDescriptorWithRows_columns_rowBytes_dataType_
    descriptor = describe(matrix.rows, matrix.columns, matrix.row_bytes, kind)
    return mps.MPSMatrix.alloc().initWithBuffer_offset_descriptor_(buffer, begin + matrix.offset, descriptor)


def _kernel(device: Any, what: Gemm) -> Any:
    """An ``MPSMatrixMultiplication``: alpha · left · right + beta · result."""
    left, right, _ = what.matrices
    alpha, beta = 1.0, float(what.accumulate)
    new = load_mps().MPSMatrixMultiplication.alloc()
    return new.initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta_(
        device, left.transposed, right.transposed, what.m, what.n, what.k, alpha, beta
    )


class Products:
    """Selects the dispatches that MPS computes."""

    def __init__(self, device: Any, least: int, try_out: Callable[[Kinds], str | None]) -> None:
        """``device``: an ``MTLDevice``; ``least``: GEMMs of fewer multiplications are left to the catalog's kernels.

        ``try_out`` is called before the first GEMM of each combination of types, and returns why MPS cannot compute
        them, or None.
        """
        self._device = device
        self._least = least
        self._try_out = try_out
        self._tried: dict[Kinds, str | None] = {}

    @property
    def features(self) -> tuple[str, ...]:
        """What MPS is used for, as features of the device."""
        right = [_named(kinds) for kinds, obstacle in self._tried.items() if obstacle is None]
        wrong = [f"no MPS for {_named(kinds)} ({obstacle})" for kinds, obstacle in self._tried.items() if obstacle]
        used = f"large GEMMs by MPS ({', '.join(right) or 'tried at first use'})"
        return (used, *wrong) if right or not wrong else tuple(wrong)

    def find(self, kernel: Kernel, params: bytes, places: Sequence[Place]) -> Product | None:
        """The MPS equivalent of a dispatch with these parameters and bindings; None if the kernel runs instead."""
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
