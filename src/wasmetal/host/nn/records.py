"""Records of wasi-nn in a guest's memory. None of them must be aligned; dims and data may lie anywhere."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from wasmetal.host.abi.nn import BUILDER, TENSOR
from wasmetal.host.view import GuestMemory
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.tensor import NnTensor

MAX_RANK = 64
MAX_NAME = 4096
"""Bytes of a name."""
MAX_BUILDERS = 16
"""Parts of a model."""
_TENSOR, _BUILDER = struct.Struct("<IIB3xII"), struct.Struct("<II")
assert _TENSOR.size == TENSOR.dtype.itemsize
assert _BUILDER.size == BUILDER.dtype.itemsize


def read_tensor(memory: GuestMemory, ptr: int) -> NnTensor:
    """The tensor that a record describes. Its bytes are the guest's own."""
    dims, rank, number, data, nbytes = _TENSOR.unpack(memory.array(ptr, _TENSOR.size).tobytes())
    if rank > MAX_RANK:
        raise invalid(f"a tensor of {rank} dimensions; at most {MAX_RANK} are supported")
    shape = struct.unpack(f"<{rank}I", memory.array(dims, 4 * rank).tobytes())
    return NnTensor(number, shape, memory.array(data, nbytes))


def read_builders(memory: GuestMemory, ptr: int, count: int) -> list[NDArray[np.uint8]]:
    """The parts of a model: the guest's own bytes."""
    if not 1 <= count <= MAX_BUILDERS:
        raise invalid(f"a model in {count} parts; 1 to {MAX_BUILDERS} are supported")
    records = memory.array(ptr, _BUILDER.size * count)
    return [memory.array(*record) for record in _BUILDER.iter_unpack(records.tobytes())]


def read_name(memory: GuestMemory, ptr: int, nbytes: int) -> str:
    """The name of a model."""
    data = memory.array(ptr, nbytes)
    if nbytes > MAX_NAME:
        raise invalid(f"a name of {nbytes} bytes; at most {MAX_NAME} are supported")
    try:
        return data.tobytes().decode()
    except UnicodeDecodeError as error:
        raise invalid(f"the name is not UTF-8: {error}") from None


class Word:
    """A place for 32 bits that a function gives."""

    def __init__(self, memory: GuestMemory, ptr: int) -> None:
        self._place = memory.array(ptr, 4)

    def give(self, value: int) -> None:
        """Write it."""
        self._place[:] = np.frombuffer(value.to_bytes(4, "little"), np.uint8)


class Room:
    """Room for an output in the guest's memory, and the place for its length."""

    def __init__(self, memory: GuestMemory, out: int, cap: int, needed: int) -> None:
        self._room = memory.array(out, cap)
        self._needed = Word(memory, needed)

    def give(self, data: NDArray[np.uint8]) -> None:
        """Write bytes and their number; only the number, and raise NnRefusal with TOO_LARGE, if they do not fit."""
        fits = data.size <= self._room.size
        if fits:
            self._room[: data.size] = data
        self._needed.give(min(data.size, 2**32 - 1))
        if not fits:
            raise NnRefusal(NnErrno.TOO_LARGE, f"{data.size} bytes do not fit in {self._room.size}")
