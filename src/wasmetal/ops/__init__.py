"""Tensor operations: each checks its tensors, on the host, once, and records the kernels that compute it.

A list is recorded for up to T rows and replayed for any number of them: operations that take a ``step``, I32 [4] in a
shared buffer, read from it what changes,

    n_tokens    rows that are live; the rows after them are left as they are
    position    the position of the first row in its sequence
    last_row    the row that ``copy_row`` takes
    0           unused

so that nothing is recorded anew for a token. The contents of steps, ids and page tables may be a guest's: kernels read
them as unsigned and clamp them, and no value leads outside the tensors.
"""

from wasmetal.kernels.dtypes import DType
from wasmetal.ops.attention import attention, kv_append, rope
from wasmetal.ops.elementwise import add, copy_row, scale, silu_mul
from wasmetal.ops.linear import embed, linear
from wasmetal.ops.matmul import matmul
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.reduce import argmax, rms_norm, softmax
from wasmetal.ops.tensor import ALIGNMENT, Tensor

__all__ = [
    "ALIGNMENT",
    "DType",
    "Recorder",
    "Tensor",
    "add",
    "argmax",
    "attention",
    "copy_row",
    "embed",
    "kv_append",
    "linear",
    "matmul",
    "rms_norm",
    "rope",
    "scale",
    "silu_mul",
    "softmax",
]
