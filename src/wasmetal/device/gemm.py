"""The GEMM that a dispatch computes, for backends with several implementations of GEMMs."""

from __future__ import annotations

from dataclasses import dataclass

from wasmetal.kernels.catalog import CATALOG, NO_BATCH, Kernel

_SIZES = {"f32": 4, "f16": 2}

Kinds = tuple[str, str, str]
"""Element types of the left matrix, the right matrix and the result."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix in a binding, stored by rows."""

    kind: str
    """``f32`` or ``f16``."""
    offset: int
    """Of the matrix in its binding, in bytes."""
    rows: int
    columns: int
    row_bytes: int
    """Bytes from row to row."""
    transposed: bool = False
    """Whether the GEMM uses its transpose."""

    def is_regular(self, alignment: int) -> bool:
        """Whether its rows do not overlap, and the matrix and its rows begin at multiples of ``alignment`` bytes."""
        aligned = self.offset % alignment == 0 and self.row_bytes % alignment == 0
        return aligned and self.columns * _SIZES[self.kind] <= self.row_bytes


@dataclass(frozen=True, slots=True)
class Gemm:
    """left [m, k] · right [k, n], written to result [m, n] or, with ``accumulate``, added to it."""

    m: int
    n: int
    k: int
    matrices: tuple[Matrix, Matrix, Matrix]
    """Left, right, result: the kernel's first three buffers."""
    accumulate: bool

    @property
    def kinds(self) -> Kinds:
        """The element types."""
        left, right, result = self.matrices
        return left.kind, right.kind, result.kind

    @property
    def size(self) -> int:
        """Scalar multiplications: m · n · k."""
        return self.m * self.n * self.k

    @property
    def least_side(self) -> int:
        """The least of m, n and k."""
        return min(self.m, self.n, self.k)


def gemm_of(kernel: Kernel, params: bytes) -> Gemm | None:
    """The GEMM that a dispatch computes; None if it computes none, a batch of them, or one with quantized weights."""
    operation, *kinds = kernel.name.split("_")
    if operation not in ("gemm", "matmul") or kinds[0] not in _SIZES:
        return None
    p = kernel.unpack(params)
    begins = [getattr(p, f"{argument.name}_offset") * argument.element for argument in kernel.buffers[:3]]
    if operation == "gemm":
        if p.batch_offset != NO_BATCH:  # rows beyond the batch must stay as they are
            return None
        m, accumulate, out_row = p.rows, bool(p.accumulate), p.out_stride
        left_kind, right_kind, result = "f32", kinds[0], "f32"
        left, right = (p.x_stride, 1), (1, p.k)
    else:
        if p.batch != 1:
            return None
        m, accumulate, out_row = p.m, False, p.out_row
        left_kind, right_kind, result = kinds[0], kinds[0], kinds[1]
        left, right = (p.a_row, p.a_column), (p.b_row, p.b_column)
    matrices = (
        _matrix(left_kind, begins[0], (m, p.k), left),
        _matrix(right_kind, begins[1], (p.k, p.n), right),
        _matrix(result, begins[2], (m, p.n), (out_row, 1)),
    )
    return Gemm(m, p.n, p.k, matrices, accumulate)


def _matrix(kind: str, begin: int, shape: tuple[int, int], strides: tuple[int, int]) -> Matrix:
    """A matrix of the ``shape`` that the GEMM sees; ``strides`` are in elements, and one of them is 1."""
    size = _SIZES[kind]
    if strides[1] == 1:
        return Matrix(kind, begin, shape[0], shape[1], strides[0] * size)
    return Matrix(kind, begin, shape[1], shape[0], strides[1] * size, transposed=True)


def variant(kernel: Kernel, name: str) -> Kernel:
    """A variant of a GEMM kernel, such as ``simdgroup``; the kernel itself if there is none of that name."""
    operation, _, kinds = kernel.name.partition("_")
    return CATALOG.get(f"{operation}_{name}_{kinds}", kernel)
