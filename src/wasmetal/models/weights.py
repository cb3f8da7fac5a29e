"""Loading weights: from a model file to tensors on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from wasmetal.device.base import Bytes
from wasmetal.kernels.dtypes import tensor_bytes
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files.model_file import FileTensor, ModelFile
from wasmetal.models.files.source import Source
from wasmetal.ops import ALIGNMENT, DType, Recorder, Tensor, add, linear

Matrix = Sequence[FileTensor]
"""Tensors of a file that are concatenated, row-wise, into one weight."""


class Weight:
    """A weight matrix [N, K], or a bias [N], in as few tensors as its types allow: one per type."""

    def __init__(self, parts: Sequence[Tensor]):
        self.parts = tuple(parts)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(part.nbytes for part in self.parts)

    def tensor(self) -> Tensor:
        """The weight as a tensor, if it was made of only one."""
        (part,) = self.parts
        return part

    def rows(self, begin: int, end: int) -> Tensor | None:
        """Some rows of the matrix, or elements of the bias, as a tensor; None if they are not an aligned one."""
        first = 0
        for part in self.parts:
            last = first + part.shape[0]
            if first <= begin and end <= last:
                aligned = (begin - first) * part.dtype.row_bytes(part.row_stride) % ALIGNMENT == 0
                return part.rows(begin - first, end - first) if aligned else None
            first = last
        return None

    def __call__(
        self, rec: Recorder, x: Tensor, out: Tensor, *, batch: Tensor | None, accumulate: bool = False
    ) -> None:
        """out = x weightᵀ, or added to ``out``, as ``wasmetal.ops.linear`` does it; x f32 [T, K], out f32 [T, N]."""
        begin = 0
        for part in self.parts:
            end = begin + part.shape[0]
            linear(rec, x, part, out.columns(begin, end), accumulate=accumulate, batch=batch)
            begin = end

    def add_to(self, rec: Recorder, out: Tensor) -> None:
        """For a bias [N]: add it to every row of ``out``, f32 [T, N]."""
        begin = 0
        for part in self.parts:
            end = begin + part.shape[0]
            add(rec, out.columns(begin, end), part, out.columns(begin, end))
            begin = end


class Weights:
    """Loads a file's weights onto a device: used in place if the device wraps files and that is safe, else copied."""

    def __init__(self, buffers: BufferGroup, file: ModelFile):
        self._buffers = buffers
        sources = file.sources if buffers.device.info.wraps_files else []
        self._wrapped = {source: buffers.wrap(pages) for source in sources if (pages := source.pages())}

    def place(self, matrices: Sequence[Matrix]) -> list[Weight]:
        """Weights, in the order given. Raises OutOfDeviceMemoryError."""
        if not self._wrapped:
            return load_weights(self._buffers, matrices)
        return [
            self._in_file(matrix) if all(map(self._usable, matrix)) else load_weights(self._buffers, [matrix])[0]
            for matrix in matrices
        ]

    def _usable(self, tensor: FileTensor) -> bool:
        """Whether kernels can read a tensor in the form that it has in the file."""
        aligned = tensor.offset % max(ALIGNMENT, self._buffers.device.info.offset_alignment) == 0
        usable = tensor.source in self._wrapped and not tensor.repacked and aligned
        return usable and (len(tensor.shape) > 1 or tensor.dtype is DType.F32)

    def _in_file(self, matrix: Matrix) -> Weight:
        """A weight of which each part lies in the file in one piece: the fewer, the fewer kernels."""
        parts: list[_Part] = []
        for tensor in matrix:
            if parts and parts[-1].continues_with(tensor):
                parts[-1] = _Part(tensor.dtype, (*parts[-1].tensors, tensor))
            else:
                parts.append(_Part(tensor.dtype, (tensor,)))
        return Weight([Tensor(self._wrapped[part.source], part.offset, part.dtype, part.shape) for part in parts])


def load_weights(buffers: BufferGroup, matrices: Sequence[Matrix]) -> list[Weight]:
    """Load weights into one new buffer, in the order given. Raises OutOfDeviceMemoryError.

    They keep the file's types, or have those that these are repacked to; but vectors, and all weights on a device that
    expands them, become float32: NumPy multiplies such matrices faster than it could dequantize them for every token.
    """
    device = buffers.device
    alignment = max(ALIGNMENT, device.info.offset_alignment)

    def stored(tensor: FileTensor) -> DType:
        return DType.F32 if device.info.expands_weights or len(tensor.shape) == 1 else tensor.dtype

    planned = [[_Part(dtype, tuple(group)) for dtype, group in groupby(matrix, stored)] for matrix in matrices]
    size = sum(-(-part.nbytes // alignment) * alignment for parts in planned for part in parts)
    buffer, offset, weights = buffers.allocate(size), 0, []
    for parts in planned:
        tensors = []
        for part in parts:
            tensors.append(Tensor(buffer, offset, part.dtype, part.shape))
            at = offset
            for data in part.data():
                buffers.load(buffer, at, data)
                at += data.size
            offset += -(-part.nbytes // alignment) * alignment
        weights.append(Weight(tensors))
    return weights


@dataclass(frozen=True, slots=True)
class _Part:
    """Tensors that are concatenated row-wise, with one type on the device."""

    dtype: DType
    tensors: tuple[FileTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(t.shape[0] for t in self.tensors), *self.tensors[0].shape[1:]

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.dtype, self.shape)

    @property
    def source(self) -> Source:
        """The file of the first."""
        return self.tensors[0].source

    @property
    def offset(self) -> int:
        """Where the first begins in its file."""
        return self.tensors[0].offset

    def continues_with(self, tensor: FileTensor) -> bool:
        """Whether a tensor of the same type comes right after these in the file."""
        last = self.tensors[-1]
        kind, end = (last.source, last.dtype), last.offset + last.nbytes
        return kind == (tensor.source, tensor.dtype) and end == tensor.offset

    def data(self) -> Iterator[Bytes]:
        for tensor in self.tensors:
            yield tensor.data if self.dtype is tensor.dtype else tensor.dequantize().reshape(-1).view(np.uint8)
