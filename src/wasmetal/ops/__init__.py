"""Tensor operations: each checks its tensors and records kernels that compute it."""

from wasmetal.ops.attention import attention, kv_append, rope
from wasmetal.ops.elementwise import add, copy_row, scale, silu_mul
from wasmetal.ops.linear import embed, linear
from wasmetal.ops.matmul import matmul
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.reduce import argmax, rms_norm, softmax
from wasmetal.ops.tensor import ALIGNMENT, DType, Tensor

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
