"""Command lists: records in a guest's memory, checked and turned into calls of ops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wasmetal import ops
from wasmetal.device.base import Buffer
from wasmetal.host import abi
from wasmetal.host.abi.schema import Op
from wasmetal.host.errno import Errno, Refusal
from wasmetal.kernels import dtypes
from wasmetal.ops import Recorder, Tensor

_AT_ONCE = 16
"""Commands after which other threads get to run, which would otherwise wait for Python's switch interval each time that
they have called NumPy or a driver: a long list may take a second to record."""


@dataclass(eq=False, slots=True)
class GuestBuffer:
    """A buffer that a guest holds."""

    buffer: Buffer
    usage: int
    """Set of Usage."""
    shared: bool
    """Whether it wraps pages of the guest's memory."""
    offset: int = 0
    """Where those pages begin in the guest's memory."""
    pending: int = 0
    """How many pending submissions name it."""


def encode(data: bytes, buffer_of: Callable[[int], GuestBuffer], recorder: Recorder) -> set[GuestBuffer]:
    """Record a list of commands; return the buffers that it names.

    ``data`` is a whole number of COMMAND records; ``buffer_of`` finds a buffer by its handle. Raises Refusal or OpError
    at the first command that is wrong; the caller then discards what was recorded.
    """
    used: set[GuestBuffer] = set()
    records = np.frombuffer(data, abi.COMMAND)
    # Python's integers, which do not wrap.
    op_numbers, flag_sets, attribute_bits = (records[name].tolist() for name in ("op", "flags", "attributes"))
    attributes = records["attributes"].view("<f4").tolist()
    columns = [records["t"][name].tolist() for name in _FIELDS]
    for i, (number, flags, bits) in enumerate(zip(op_numbers, flag_sets, attribute_bits, strict=True)):
        if i % _AT_ONCE == _AT_ONCE - 1:
            time.sleep(0)
        call = _CALLS.get(number)
        if call is None:
            raise Refusal(Errno.NOTSUP, f"op {number} is not known")
        op = call.op
        if flags & ~call.flags:
            raise Refusal(Errno.INVAL, f"{op.name}: flags {flags:#x} are not known")
        if any(bits[len(op.attributes) :]):
            raise Refusal(Errno.INVAL, f"{op.name} has {len(op.attributes)} attributes; the others must be 0")
        operands = zip(*[column[i] for column in columns], strict=True)
        call(recorder, _tensors(op, operands, buffer_of, used), flags, attributes[i])
    return used


_FIELDS = ("buffer", "dtype", "offset", "rank", "row_stride", "shape")


class _Call:
    """Calls the function that computes an op with the operands, flags and attributes of a command."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.flags = sum(flag.bit for flag in op.flags)
        self._function: Callable[..., None] = getattr(ops, op.name)

    def __call__(
        self, recorder: Recorder, tensors: Sequence[Tensor | None], flags: int, attributes: Sequence[float]
    ) -> None:
        op = self.op
        arguments: dict[str, Any] = {operand.name: tensor for operand, tensor in zip(op.operands, tensors, strict=True)}
        for attribute, value in zip(op.attributes, attributes, strict=False):
            arguments[attribute.name] = value
        for flag in op.flags:
            arguments[flag.name] = bool(flags & flag.bit)
        self._function(recorder, **arguments)


_CALLS = {number: _Call(op) for number, op in abi.OPS.items()}


def _tensors(
    op: Op, operands: Iterable[Sequence[Any]], buffer_of: Callable[[int], GuestBuffer], used: set[GuestBuffer]
) -> list[Tensor | None]:
    """The tensors of a command, one for each operand of the op. ``operands``: _FIELDS of each."""
    tensors: list[Tensor | None] = []
    for index, (handle, dtype, offset, rank, row_stride, shape) in enumerate(operands):
        operand = op.operands[index] if index < len(op.operands) else None
        what = f"{op.name}: operand {index}"
        if handle == 0:
            if dtype or offset or rank or row_stride or any(shape):
                raise Refusal(Errno.INVAL, f"{what} names no buffer, so all of it must be 0")
            if operand and not operand.optional:
                raise Refusal(Errno.INVAL, f"{what} is missing")
            if operand:
                tensors.append(None)
            continue
        if operand is None:
            raise Refusal(Errno.INVAL, f"{what} must be 0: the op has {len(op.operands)}")
        held = buffer_of(handle)
        needed = operand.read * abi.Usage.READ | operand.written * abi.Usage.WRITE
        if needed & ~held.usage:
            raise Refusal(Errno.PERM, f"{what}: the buffer's usage forbids it")
        if not 1 <= rank <= 4 or any(shape[rank:]):
            raise Refusal(Errno.INVAL, f"{what} has rank {rank} and shape {shape}")
        if dtype not in dtypes.BY_NUMBER:
            raise Refusal(Errno.NOTSUP, f"{what} has dtype {dtype}, which is not known")
        used.add(held)
        tensors.append(Tensor(held.buffer, offset, dtypes.BY_NUMBER[dtype], tuple(shape[:rank]), row_stride))
    return tensors
