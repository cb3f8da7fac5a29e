"""Large GEMMs computed by Metal Performance Shaders (MPS) instead of the catalog's kernels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from wasmetal.device.backend import Range
from wasmetal.device.gemm import Gemm, Matrix
from wasmetal.device.libraries.base import GemmLibrary, LibraryTrials
from wasmetal.device.metal.api import objc
from wasmetal.device.metal.memory import MetalAllocation
from wasmetal.device.metal.stream import Pass, Stream
from wasmetal.errors import DeviceError

_REACH = 2**31
"""MPS computes byte offsets in signed 32 bits, up to row m + 2k of a result; where they overflow it writes NaN
(github.com/JuliaGPU/Metal.jl, issue 381)."""

Place = tuple[Any, int]
"""An ``MTLBuffer``, and an offset in it in bytes."""


@cache
def load_mps() -> Any:
    """The Metal Performance Shaders module, loaded on first use; None if PyObjC's package for it is not installed."""
    try:
        return import_module("MetalPerformanceShaders")
    except ImportError:
        return None


def mps_off(virtual: bool) -> str | None:
    """Why MPS is not even tried on a GPU, which may be ``virtual``; None if it may be.

    On virtual GPUs MPS is known to abort the process or to give wrong results; WASMETAL_NO_MPS=0 tries it there too.
    """
    switch = os.environ.get("WASMETAL_NO_MPS")
    if switch == "1":
        return "WASMETAL_NO_MPS=1"
    return "a virtual GPU" if virtual and switch != "0" else None


class MpsGemm:
    """A GEMM by MPS, which can be encoded any number of times."""

    def __init__(self, device: Any, gemm: Gemm, places: Sequence[Place]) -> None:
        """``places``: where each matrix's binding begins. Raises DeviceError if MPS does not make the GEMM."""
        self._matrices = [_matrix(matrix, *place) for matrix, place in zip(gemm.matrices, places, strict=True)]
        self._kernel = _kernel(device, gemm)
        if any(made is None for made in (self._kernel, *self._matrices)):
            raise DeviceError("Metal Performance Shaders cannot make this GEMM; set WASMETAL_NO_MPS=1")

    def encode(self, stream: Stream) -> None:
        """Encode the GEMM as a separate pass."""
        encode = self._kernel.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix_
        encode(stream.commands(), *self._matrices)


def _matrix(matrix: Matrix, buffer: Any, begin: int) -> Any:
    """An ``MPSMatrix``, for a binding that begins at a byte of a buffer."""
    mps = load_mps()
    kind = mps.MPSDataTypeFloat32 if matrix.kind == "f32" else mps.MPSDataTypeFloat16
    describe = mps.MPSMatrixDescriptor.matrixDescriptorWithRows_columns_rowBytes_dataType_
    descriptor = describe(matrix.rows, matrix.columns, matrix.row_bytes, kind)
    return mps.MPSMatrix.alloc().initWithBuffer_offset_descriptor_(buffer, begin + matrix.offset, descriptor)


def _kernel(device: Any, gemm: Gemm) -> Any:
    """An ``MPSMatrixMultiplication``: alpha · left · right + beta · result."""
    left, right, _ = gemm.matrices
    alpha, beta = 1.0, float(gemm.accumulate)
    new = load_mps().MPSMatrixMultiplication.alloc()
    return new.initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta_(
        device, left.transposed, right.transposed, gemm.m, gemm.n, gemm.k, alpha, beta
    )


class Mps(GemmLibrary[MetalAllocation, Pass]):
    """MPS as a library of GEMMs."""

    name = "MPS"
    kinds = (("f32", "f32", "f32"), ("f16", "f16", "f32"), ("f16", "f16", "f16"))

    def __init__(self, device: Any, trials: LibraryTrials | None = None) -> None:
        """``device``: an ``MTLDevice``."""
        super().__init__(trials)
        self._device = device

    def missing(self) -> str | None:
        """Why MPS cannot be tried; None if it can. Loads MPS."""
        mps = load_mps()
        if mps is None:
            return "pyobjc-framework-MetalPerformanceShaders is not installed"
        return None if mps.MPSSupportsMTLDevice(self._device) else "MPS does not support this GPU"

    def takes(self, gemm: Gemm, ranges: Sequence[Range[MetalAllocation]]) -> bool:
        """Whether MPS can address the matrices, and whole rows of them are within their buffers."""
        if (gemm.m + 2 * gemm.k) * gemm.matrices[2].row_bytes >= _REACH:
            return False
        for matrix, (buffer, begin) in zip(gemm.matrices, _places(ranges), strict=True):
            nbytes = matrix.rows * matrix.row_bytes
            if nbytes >= _REACH or begin + matrix.offset + nbytes > buffer.length():
                return False
        return True

    def make(self, gemm: Gemm, ranges: Sequence[Range[MetalAllocation]]) -> MpsGemm:
        """The GEMM, ready to be encoded. Raises DeviceError if MPS does not make it."""
        with objc.autorelease_pool():
            return MpsGemm(self._device, gemm, _places(ranges))


def _places(ranges: Sequence[Range[MetalAllocation]]) -> list[Place]:
    """Where the bindings of the three matrices begin."""
    return [bound.allocation.bind(bound.offset, bound.nbytes) for bound in ranges[:3]]
