"""Command lists: the records that a guest wrote in its memory, checked and turned into calls of ops."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wasmetal import ops
from wasmetal.device.base import Buffer
from wasmetal.host import abi
from wasmetal.host.errno import Errno, Refusal
from wasmetal.ops import DType, Recorder, Tensor


@dataclass(eq=False, slots=True)
class GuestBuffer:
    """A buffer that a guest holds."""

    buffer: Buffer
    usage: int
    """Set of USAGE_READ, USAGE_WRITE."""
    shared: bool
    """Made of pages of the guest's own memory."""
    pending: int = 0
    """How many pending submissions name it."""


Encode = Callable[[Recorder, Sequence[Any], int, Sequence[float]], None]


@dataclass(frozen=True, slots=True)
class _Operand:
    read: bool
    written: bool
    optional: bool


@dataclass(frozen=True, slots=True)
class Op:
    """One op of the interface."""

    name: str
    operands: tuple[_Operand, ...]
    flags: int
    """The flags that it knows."""
    attributes: int
    """How many attributes it has; all are f32."""
    encode: Encode


def _op(name: str, operands: str, encode: Encode, flags: int = 0, attributes: int = 0) -> Op:
    """``operands`` are words; ``=`` marks one that is written, ``!`` read and written, ``?`` optional."""
    parsed = tuple(
        _Operand(read=not word.endswith("="), written=word[-1] in "=!", optional=word.endswith("?"))
        for word in operands.split()
    )
    return Op(name, parsed, flags, attributes, encode)


OPS: dict[int, Op] = {
    1: _op(
        "matmul",
        "a b out=",
        lambda rec, t, flags, _: ops.matmul(
            rec, *t, transpose_a=bool(flags & abi.TRANSPOSE_A), transpose_b=bool(flags & abi.TRANSPOSE_B)
        ),
        flags=abi.TRANSPOSE_A | abi.TRANSPOSE_B,
    ),
    2: _op(
        "linear",
        "x weight out! batch?",
        lambda rec, t, flags, _: ops.linear(rec, *t[:3], accumulate=bool(flags & abi.ACCUMULATE), batch=t[3]),
        flags=abi.ACCUMULATE,
    ),
    3: _op("embed", "table ids out= batch?", lambda rec, t, *_: ops.embed(rec, *t[:3], batch=t[3])),
    4: _op(
        "rms_norm",
        "x weight out= batch?",
        lambda rec, t, _, attributes: ops.rms_norm(rec, t[0], t[1], t[2], attributes[0], batch=t[3]),
        attributes=1,
    ),
    5: _op(
        "rope",
        "x! table batch",
        lambda rec, t, flags, _: ops.rope(rec, *t, interleaved=bool(flags & abi.INTERLEAVED)),
        flags=abi.INTERLEAVED,
    ),
    6: _op("kv_append", "k v k_pages! v_pages! batch sequences", lambda rec, t, *_: ops.kv_append(rec, *t)),
    7: _op(
        "attention",
        "q k_pages v_pages batch sequences out=",
        lambda rec, t, _, attributes: ops.attention(rec, t[0], t[1], t[2], t[3], t[4], t[5], scale=attributes[0]),
        attributes=1,
    ),
    8: _op("silu_mul", "gate up out= batch?", lambda rec, t, *_: ops.silu_mul(rec, *t[:3], batch=t[3])),
    9: _op("add", "a b out=", lambda rec, t, *_: ops.add(rec, *t)),
    10: _op(
        "scale",
        "x out=",
        lambda rec, t, _, attributes: ops.scale(rec, t[0], attributes[0], t[1]),
        attributes=1,
    ),
    11: _op("softmax", "x out=", lambda rec, t, *_: ops.softmax(rec, *t)),
    12: _op("argmax", "x out=", lambda rec, t, *_: ops.argmax(rec, *t)),
}
"""Every op, by its number."""


def encode(data: bytes, buffer_of: Callable[[int], GuestBuffer], recorder: Recorder) -> set[GuestBuffer]:
    """Record a list of commands; return the buffers that it names.

    ``data`` is a whole number of COMMAND records; ``buffer_of`` finds a buffer by its handle. Raises Refusal or OpError
    at the first command that is wrong; what was recorded until then is the caller's to throw away.
    """
    used: set[GuestBuffer] = set()
    for number, flags, *words in _COMMAND.iter_unpack(data):
        op = OPS.get(number)
        if op is None:
            raise Refusal(Errno.NOTSUP, f"op {number} is not known")
        if flags & ~op.flags:
            raise Refusal(Errno.INVAL, f"{op.name}: flags {flags:#x} are not known")
        attributes, operands = words[:_ATTRIBUTES], words[_ATTRIBUTES:]
        if any(attributes[op.attributes :]):
            raise Refusal(Errno.INVAL, f"{op.name} has {op.attributes} attributes; the others must be 0")
        tensors = [
            _tensor(op, i, operands[i * _WORDS : (i + 1) * _WORDS], buffer_of, used)
            for i in range(len(operands) // _WORDS)
        ]
        values = np.array(attributes[: op.attributes], np.uint32).view(np.float32).tolist()
        op.encode(recorder, tensors[: len(op.operands)], flags, values)
    return used


# The records of abi.COMMAND and abi.TENSOR as Python's integers, which do not wrap.
_ATTRIBUTES, _WORDS = 6, 9
_COMMAND = struct.Struct("<II" + "6I" + "IIQII4I" * 6)
_DTYPES = {dtype.value: dtype for dtype in DType}


def _tensor(
    op: Op, index: int, words: Sequence[int], buffer_of: Callable[[int], GuestBuffer], used: set[GuestBuffer]
) -> Tensor | None:
    handle, dtype, offset, rank, row_stride, *shape = words
    what = f"{op.name}: operand {index}"
    if handle == 0:
        if any(words):
            raise Refusal(Errno.INVAL, f"{what} names no buffer, so all of it must be 0")
        if index < len(op.operands) and not op.operands[index].optional:
            raise Refusal(Errno.INVAL, f"{what} is missing")
        return None
    if index >= len(op.operands):
        raise Refusal(Errno.INVAL, f"{what} must be 0: the op has {len(op.operands)}")
    held = buffer_of(handle)
    operand = op.operands[index]
    needed = operand.read * abi.USAGE_READ | operand.written * abi.USAGE_WRITE
    if needed & ~held.usage:
        raise Refusal(Errno.PERM, f"{what}: the buffer's usage forbids it")
    if not 1 <= rank <= 4 or any(shape[rank:]):
        raise Refusal(Errno.INVAL, f"{what} has rank {rank} and shape {shape}")
    if dtype not in _DTYPES:
        raise Refusal(Errno.NOTSUP, f"{what} has dtype {dtype}, which is not known")
    used.add(held)
    return Tensor(held.buffer, offset, _DTYPES[dtype], tuple(shape[:rank]), row_stride)
