"""The classes of Metal Performance Shaders that the device uses, and the framework's rules for them.

Products are NumPy's, in float64, and so no kernel's of ours. The wheel says little of classes: the types are those of
Apple's headers (MPSMatrixTypes.h, MPSMatrixMultiplication.h).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.metal.standin.bridge import Object, calls, not_in_wheel, table
from tests.metal.standin.framework import Buffer, CommandBuffer, Device, rule
from tests.metal.standin.gpu import Gpu, memory

FUNCTIONS = ("MPSSupportsMTLDevice",)

TYPES = {"MPSDataTypeFloat32": np.dtype(np.float32), "MPSDataTypeFloat16": np.dtype(np.float16)}


class MatrixDescriptor(Object):
    """MPSMatrixDescriptor."""

    @classmethod
    @not_in_wheel("@", "Q", "Q", "Q", "I")
    def matrixDescriptorWithRows_columns_rowBytes_dataType_(
        cls, rows: int, columns: int, row_bytes: int, kind: int
    ) -> MatrixDescriptor:
        found = [dtype for name, dtype in TYPES.items() if table().constants[name] == kind]
        rule(bool(found), f"the stand-in knows no data type {kind:#x}")
        made = cls()
        made.shape, made.row_bytes, made.dtype = (rows, columns), row_bytes, found[0]
        rule(min(rows, columns) > 0, f"a matrix of {rows} by {columns}")
        rule(row_bytes % made.dtype.itemsize == 0, f"rows of {row_bytes} bytes are no whole number of elements")
        rule(row_bytes >= columns * made.dtype.itemsize, f"rows of {row_bytes} bytes cannot have {columns} columns")
        return made


class Matrix(Object):
    """MPSMatrix."""

    @not_in_wheel("@", "@", "Q", "@")
    def initWithBuffer_offset_descriptor_(self, buffer: Buffer, offset: int, descriptor: MatrixDescriptor) -> Matrix:
        self.buffer, self.offset = buffer, offset
        self.shape, self.row_bytes, self.dtype = descriptor.shape, descriptor.row_bytes, descriptor.dtype
        rule(offset % self.dtype.itemsize == 0, f"a matrix at byte {offset} begins within an element")
        self.nbytes = self.shape[0] * self.row_bytes
        rule(offset + self.nbytes <= buffer.length(), f"a matrix of {self.nbytes} bytes at {offset} leaves its buffer")
        return self

    def _elements(self, gaps: bool = False) -> np.ndarray:
        """With what is between rows, or without."""
        whole = np.frombuffer(memory(self.buffer.address + self.offset, self.nbytes), self.dtype)
        return whole.reshape(self.shape[0], -1)[:, : None if gaps else self.shape[1]]


class MatrixMultiplication(Object):
    """MPSMatrixMultiplication: alpha op(left) op(right) + beta result."""

    @not_in_wheel("@", "@", "Z", "Z", "Q", "Q", "Q", "d", "d")
    def initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta_(
        self,
        device: Device,
        transpose_left: bool,
        transpose_right: bool,
        rows: int,
        columns: int,
        interior: int,
        alpha: float,
        beta: float,
    ) -> MatrixMultiplication:
        self.gpu = device._gpu
        self.transpose = transpose_left, transpose_right
        self.shapes = (rows, interior), (interior, columns), (rows, columns)
        self.alpha, self.beta = alpha, beta
        return self

    @not_in_wheel("v", "@", "@", "@", "@")
    def encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix_(
        self, commands: CommandBuffer, left: Matrix, right: Matrix, result: Matrix
    ) -> None:
        # A precaution, no rule of Apple's: what MPS makes for itself while it encodes, it may leave to the buffer.
        rule(commands._retains, "MPS in a command buffer that holds on to nothing")
        matrices = (left, right, result)
        for matrix, shape, transposed in zip(matrices, self.shapes, (*self.transpose, False), strict=True):
            has = matrix.shape[::-1] if transposed else matrix.shape
            rule(has[0] >= shape[0] and has[1] >= shape[1], f"a matrix of {has}, where {shape} is needed")
        rule(left.dtype == right.dtype, "operands of two types")
        rule((left.dtype, result.dtype) != (np.float32, np.float16), "MPS has no float16 product of float32")
        commands._add("encodeToCommandBuffer:", Multiplication(self, matrices))


class Multiplication:
    """One product, as it was encoded."""

    ended = True

    def __init__(self, kernel: MatrixMultiplication, matrices: tuple[Matrix, Matrix, Matrix]) -> None:
        self._kernel, self._matrices = kernel, matrices

    def _ranges(self) -> list[tuple[int, int]]:
        return [(matrix.buffer.address + matrix.offset, matrix.nbytes) for matrix in self._matrices]

    def _run(self) -> None:
        kernel, fault = self._kernel, self._kernel.gpu.mps
        (m, k), (_, n), _ = kernel.shapes
        left, right, result = (matrix._elements() for matrix in self._matrices)
        left, right = (x.T if t else x for x, t in zip((left, right), kernel.transpose, strict=True))
        left, right, result = left[:m, :k], right[:k, :n], result[:m, :n]
        kind = np.float16 if fault == "few bits" else left.dtype
        product = left.astype(kind).astype(np.float64) @ right.astype(kind).astype(np.float64)
        if fault == "sums of few bits" and result.dtype == np.float16:
            product = sum((np.outer(a, b) for a, b in zip(left.T, right, strict=True)), np.zeros((m, n), np.float16))
            product = product.astype(np.float16)
        added = kernel.beta * result.astype(np.float64) if kernel.beta or fault == "not a number" else 0
        if fault == "gaps":
            self._matrices[2]._elements(gaps=True)[...] = 0
        result[...] = kernel.alpha * product + added + (fault == "wrong")


CLASSES: dict[str, type[Object]] = {
    "MPSMatrix": Matrix,
    "MPSMatrixDescriptor": MatrixDescriptor,
    "MPSMatrixMultiplication": MatrixMultiplication,
}


def selectors() -> set[tuple[str, str]]:
    """Every class and selector."""
    own = ((name, key) for name, kind in CLASSES.items() for key in vars(kind) if key.endswith("_") and key[0] != "_")
    return {(name, key.replace("_", ":")) for name, key in own}


class Shaders:
    """What ``import MetalPerformanceShaders`` gives."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def MPSSupportsMTLDevice(self, device: Device) -> bool:
        calls["MPSSupportsMTLDevice"] += 1
        assert isinstance(device, Device)
        return device._gpu.mps != "unsupported"

    def __getattr__(self, name: str) -> Any:
        if name in CLASSES:
            return CLASSES[name]
        if name in TYPES:
            return table().constants[name]
        raise AttributeError(f"module 'MetalPerformanceShaders' has no attribute {name!r}")
