"""Weights on their way from a model file into device memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from wasmetal.device.base import Bytes
from wasmetal.models.arena import Arena
from wasmetal.models.gguf_file import GGUFTensor
from wasmetal.ops import ALIGNMENT, DType, Recorder, Tensor, linear

Matrix = Sequence[GGUFTensor]
"""Tensors of a file that make one weight, rows after rows."""


class Weight:
    """A weight matrix [N, K], in as few parts as its types allow: rows of one type are one tensor, and one kernel."""

    def __init__(self, parts: Sequence[Tensor]):
        self.parts = tuple(parts)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device."""
        return sum(part.nbytes for part in self.parts)

    def tensor(self) -> Tensor:
        """The weight as the one tensor that it is, where only one was asked for."""
        (part,) = self.parts
        return part

    def __call__(self, rec: Recorder, x: Tensor, out: Tensor, *, step: Tensor | None, accumulate: bool = False) -> None:
        """out = x weightᵀ, or added to ``out``, as ``wasmetal.ops.linear`` does it; x f32 [T, K], out f32 [T, N]."""
        begin = 0
        for part in self.parts:
            end = begin + part.shape[0]
            linear(rec, x, part, out.columns(begin, end), accumulate=accumulate, step=step)
            begin = end


def load_weights(arena: Arena, matrices: Sequence[Matrix]) -> list[Weight]:
    """Bring weights into one new buffer, in the order given. Raises OutOfDeviceMemoryError.

    They keep the file's own block formats, except that vectors, and on the CPU device everything, become float32:
    NumPy multiplies float32 matrices faster than it could unpack them for every token.
    """
    device = arena.device
    as_f32 = device.info.backend == "cpu"
    alignment = max(ALIGNMENT, device.info.offset_alignment)
    planned: list[list[tuple[list[GGUFTensor], DType, int]]] = []
    size = 0
    for matrix in matrices:
        parts = []
        for dtype, group in groupby(matrix, lambda t: DType.F32 if as_f32 or len(t.shape) == 1 else t.dtype):
            tensors = list(group)
            parts.append((tensors, dtype, size))
            size += -(-sum(_nbytes(t, dtype) for t in tensors) // alignment) * alignment
        planned.append(parts)

    buffer = arena.allocate(size)
    weights = []
    for parts in planned:
        views = []
        for tensors, dtype, offset in parts:
            at = offset
            for tensor in tensors:
                device.load(buffer, at, _bytes(tensor, dtype))
                at += _nbytes(tensor, dtype)
            rows = sum(t.shape[0] for t in tensors)
            views.append(Tensor(buffer, offset, dtype, (rows, *tensors[0].shape[1:])))
        weights.append(Weight(views))
    return weights


def _nbytes(tensor: GGUFTensor, dtype: DType) -> int:
    return tensor.data.size if dtype is tensor.dtype else tensor.size * dtype.row_bytes(1)


def _bytes(tensor: GGUFTensor, dtype: DType) -> Bytes:
    return tensor.data if dtype is tensor.dtype else tensor.dequantize().reshape(-1).view("u1")
