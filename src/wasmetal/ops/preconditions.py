"""What operations require of their tensors. Every function here raises OpError if a requirement is not met."""

from __future__ import annotations

import math
from dataclasses import replace

from wasmetal.errors import OpError
from wasmetal.kernels.catalog import NO_BATCH
from wasmetal.kernels.dtypes import DType
from wasmetal.ops.batch import batch_shape
from wasmetal.ops.tensor import Tensor


def require(condition: bool, message: str) -> None:
    """Raise OpError with ``message`` unless ``condition``."""
    if not condition:
        raise OpError(message)


def dtypes(op: str, allowed: tuple[DType, ...], **tensors: Tensor) -> None:
    """Each tensor has one of the ``allowed`` element types."""
    for name, tensor in tensors.items():
        if tensor.dtype not in allowed:
            names = " or ".join(dtype.name for dtype in allowed)
            raise OpError(f"{op}: {name} is {tensor.dtype.name}; it must be {names}")


def shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """The tensor has exactly this shape."""
    if tensor.shape != expected:
        raise OpError(f"{op}: {name} has shape {tensor.shape}; it must be {expected}")


def rank(op: str, dimensions: int, **tensors: Tensor) -> None:
    """Each tensor has ``dimensions`` dimensions."""
    for name, tensor in tensors.items():
        if len(tensor.shape) != dimensions:
            raise OpError(f"{op}: {name} has shape {tensor.shape}; it must have {dimensions} dimensions")


def packed(op: str, **tensors: Tensor) -> None:
    """No tensor has gaps between its rows."""
    for name, tensor in tensors.items():
        if not tensor.packed:
            raise OpError(f"{op}: {name} has a row stride of {tensor.row_stride}; its rows must be packed")


def batch(op: str, tensor: Tensor, rows: int) -> None:
    """The tensor is batch metadata for ``rows`` rows: packed I32 [1 + rows, 2]."""
    dtypes(op, (DType.I32,), batch=tensor)
    shape(op, "batch", tensor, batch_shape(rows))
    packed(op, batch=tensor)


def optional_batch(
    op: str, tensor: Tensor | None, rows: int, out: Tensor, stand_in: Tensor
) -> tuple[Tensor, dict[str, int]]:
    """(tensor to bind as batch metadata, parameters); without metadata, ``stand_in`` is bound and not read."""
    if tensor is None:
        return stand_in, {"batch_offset": NO_BATCH}
    batch(op, tensor, rows)
    separate(op, out, batch=tensor)
    return tensor, {}


def separate(op: str, out: Tensor, **inputs: Tensor) -> None:
    """No byte of ``out`` is a byte of an input."""
    for name, tensor in inputs.items():
        if _meet(out, tensor):
            raise OpError(f"{op}: the output overlaps {name}; give it separate memory")


def separate_or_same(op: str, out: Tensor, **inputs: Tensor) -> None:
    """``out`` is exactly an input, element for element, or shares no byte with it."""
    for name, tensor in inputs.items():
        if _meet(out, tensor) and not _same(out, tensor):
            raise OpError(f"{op}: the output partly overlaps {name}; it must be the same tensor or separate memory")


def matrix(op: str, name: str, tensor: Tensor) -> Tensor:
    """The tensor as a matrix, its last dimension being the columns.

    Tensors of three and more dimensions, whose stride is not that of their last dimension's rows, must be packed.
    """
    if len(tensor.shape) == 2:
        return tensor
    packed(op, **{name: tensor})
    return tensor.reshape(tensor.size // tensor.shape[-1], tensor.shape[-1])


def flat(op: str, **tensors: Tensor) -> list[Tensor]:
    """Tensors of one shape as vectors or matrices: those of more dimensions as a single row if all are packed."""
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        shape(op, name, tensor, first.shape)
        if len(tensor.shape) == 1:
            packed(op, **{name: tensor})
    if len(first.shape) <= 2:
        return list(tensors.values())
    if all(tensor.packed for tensor in tensors.values()):
        return [tensor.reshape(1, first.size) for tensor in tensors.values()]
    rows, columns = first.shape[0], math.prod(first.shape[1:])
    return [replace(tensor, shape=(rows, columns)) for tensor in tensors.values()]


def _same(one: Tensor, other: Tensor) -> bool:
    shaped = (one.dtype, one.shape, one.row_stride) == (other.dtype, other.shape, other.row_stride)
    return shaped and one.nbytes == other.nbytes and _distance(one, other) == 0


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether elements overlap: two column slices of one matrix interleave without a byte in common."""
    if not one.overlaps(other):
        return False
    if one.row_stride != other.row_stride or one.dtype is not other.dtype or 1 in (len(one.shape), len(other.shape)):
        return True
    stride = one.dtype.row_bytes(one.row_stride)
    ahead = _distance(one, other) % stride
    return ahead < _row_bytes(one) or ahead + _row_bytes(other) > stride


def _distance(one: Tensor, other: Tensor) -> int:
    """Bytes from the first element of ``one`` to that of ``other``, in the same buffer or address space."""
    if one.buffer.address is not None and other.buffer.address is not None:
        return other.buffer.address + other.offset - one.buffer.address - one.offset
    return other.offset - one.offset


def _row_bytes(tensor: Tensor) -> int:
    return tensor.dtype.row_bytes(math.prod(tensor.shape[1:]))
