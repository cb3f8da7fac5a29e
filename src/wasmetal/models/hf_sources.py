"""In place of a folder's files: bytes that are made of theirs when they are read.

None is converted ahead, or kept: a tensor that GGUF files have in another form takes memory when it is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wasmetal.models.files.model_file import FileTensor, InFile

Bytes = NDArray[np.uint8]

_AT_ONCE = 1 << 18
"""Bytes of MXFP4 that are rearranged at a time, so that what comes in between stays in the processor's cache."""
_LOW, _HIGH = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0)
_NIBBLE = np.uint64(4)


class InMemory:
    """Bytes that were computed."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self.size = data.size

    def read(self, offset: int, nbytes: int) -> Bytes:
        """A copy of some of them."""
        return self._data[offset : offset + nbytes].copy()


class _Rows(ABC):
    """Rows of equal length, which are made a few at a time."""

    def __init__(self, count: int, row: int) -> None:
        self.size = count * row
        self._row = row

    def read(self, offset: int, nbytes: int) -> Bytes:
        """Some of the bytes. Raises ModelError if a file has been shortened."""
        first, last = offset // self._row, -(-(offset + nbytes) // self._row)
        return self.rows(first, last).reshape(-1)[offset - first * self._row :][:nbytes]

    @abstractmethod
    def rows(self, first: int, last: int) -> Bytes:
        """The bytes of some rows."""


class Adjacent(_Rows):
    """A matrix with the rows that RoPE rotates together side by side, as GGUF files have them.

    Hugging Face has the first of all pairs of a head, and then the second of all.
    """

    def __init__(self, stored: FileTensor, heads: int) -> None:
        super().__init__(heads, stored.nbytes // heads)
        self._stored = stored
        self._heads = heads

    def rows(self, first: int, last: int) -> Bytes:
        """Of some heads."""
        data = self._stored.source.read(self._stored.offset + first * self._row, (last - first) * self._row)
        pairs = self._stored.shape[0] // self._heads // 2
        return data.reshape(last - first, 2, pairs, -1).swapaxes(1, 2)


class Stacked:
    """Tensors of one shape and type, one after another."""

    def __init__(self, parts: Sequence[FileTensor]) -> None:
        self._parts = parts
        self.size = sum(part.nbytes for part in parts)

    def read(self, offset: int, nbytes: int) -> Bytes:
        """Some of the bytes. Raises ModelError if a file has been shortened."""
        each, read = self._parts[0].nbytes, np.empty(nbytes, np.uint8)
        done = 0
        while done < nbytes:
            number, begin = divmod(offset + done, each)
            part = self._parts[number]
            some = part.source.read(part.offset + begin, min(each - begin, nbytes - done))
            read[done : done + some.size] = some
            done += some.size
        return read


class EverySecond(_Rows):
    """Every second element of a tensor, from the first or the second on: one of two tensors that take turns in it."""

    def __init__(self, stored: FileTensor, which: int) -> None:
        super().__init__(stored.size // 2, stored.nbytes // stored.size)
        self._stored = stored
        self._which = which

    def rows(self, first: int, last: int) -> Bytes:
        """Some of the elements."""
        data = self._stored.source.read(self._stored.offset + 2 * first * self._row, 2 * (last - first) * self._row)
        return data.reshape(-1, 2, self._row)[:, self._which]


class Transposed(_Rows):
    """Matrices [columns, rows] of a tensor's first dimension as [rows, columns]; every ``step``-th row, from one on."""

    def __init__(self, stored: FileTensor, which: int, step: int) -> None:
        self._matrices, self._columns, self._all = stored.shape
        self._item = stored.nbytes // stored.size
        self._each = self._all // step
        super().__init__(self._matrices * self._each, self._columns * self._item)
        self._stored, self._which, self._step = stored, which, step

    def rows(self, first: int, last: int) -> Bytes:
        """Some rows, of one matrix or several."""
        out = np.empty((last - first, self._columns), f"u{self._item}")
        done = 0
        while done < len(out):
            matrix, row = divmod(first + done, self._each)
            count = min(self._each - row, len(out) - done)
            part = self._part(matrix, row * self._step, count * self._step).view(out.dtype)
            out[done : done + count] = part[:, self._which :: self._step].T
            done += count
        return out.view(np.uint8)

    def _part(self, matrix: int, row: int, count: int) -> Bytes:
        """Some rows of a matrix, as columns, uint8 [columns, bytes of them]."""
        read, whole, line = self._stored.source.read, self._all * self._item, count * self._item
        begin = self._stored.offset + matrix * self._columns * whole
        if count == self._all:
            return read(begin, self._columns * whole).reshape(self._columns, whole)
        begin += row * self._item
        return np.stack([read(begin + column * whole, line) for column in range(self._columns)])


class Mxfp4(_Rows):
    """Blocks of MXFP4 and their scales as ggml's blocks, each of 32 weights; every ``step``-th row, from one on.

    Both have a byte for the scale and 16 for the weights, of four bits. In a folder, the scales are a tensor of their
    own, and a byte has two weights that are neighbours; ggml has a block's first half in the low bits of its bytes, and
    its second half in the high ones.
    """

    def __init__(self, blocks: InFile, scales: InFile, which: int, step: int) -> None:
        experts, rows, self._blocks_of_row = scales.shape
        super().__init__(experts * rows // step, self._blocks_of_row * 17)
        self._blocks, self._scales, self._which, self._step = blocks, scales, which, step

    def rows(self, first: int, last: int) -> Bytes:
        """Some rows."""
        out = np.empty((last - first, self._blocks_of_row, 17), np.uint8)
        most = max(1, _AT_ONCE // self._row)
        for begin in range(first, last, most):
            end = min(begin + most, last)
            part = out[begin - first : end - first]
            part[..., 0] = self._read(self._scales, begin, end, 1)[..., 0]
            halves = self._read(self._blocks, begin, end, 16).view(np.uint64)
            low, high = halves[..., 0], halves[..., 1]
            part[..., 1::2] = _as_bytes(low & _LOW | (high & _LOW) << _NIBBLE)
            part[..., 2::2] = _as_bytes((low & _HIGH) >> _NIBBLE | high & _HIGH)
        return out

    def _read(self, stored: InFile, first: int, last: int, width: int) -> Bytes:
        """What some rows have in a tensor with ``width`` bytes for each block."""
        row = self._blocks_of_row * width
        data = stored.source.read(stored.offset + first * self._step * row, (last - first) * self._step * row)
        return data.reshape(last - first, self._step, self._blocks_of_row, width)[:, self._which]


def _as_bytes(words: NDArray[np.uint64]) -> Bytes:
    return words[..., None].view(np.uint8)
