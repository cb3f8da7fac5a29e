"""Tensor operations: each checks its tensors once, on the host, and records the kernels that compute it.

Operations on rows of activations take batch metadata (``wasmetal.ops.batch``). It is optional if an operation reads
only the number of valid rows from it.
"""

from wasmetal.kernels.dtypes import DType
from wasmetal.ops.attention import attention
from wasmetal.ops.batch import batch_shape, sequences_shape
from wasmetal.ops.elementwise import add, copy, gelu, gelu_mul, scale, silu_mul, swiglu_oai
from wasmetal.ops.experts import expert_linear, top_k, weighted_sum
from wasmetal.ops.fused import norm_gated, norm_linear
from wasmetal.ops.kv_append import kv_append
from wasmetal.ops.linear import embed, linear
from wasmetal.ops.matmul import matmul
from wasmetal.ops.next_token import next_token, settings_shape
from wasmetal.ops.prefill_attention import prefill_attention
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.reduce import argmax, layer_norm, rms_norm, softmax
from wasmetal.ops.rope import rope, rope_append
from wasmetal.ops.split_attention import (
    counters_shape,
    rope_split_attention,
    scratch_shape,
    split_attention,
)
from wasmetal.ops.tensor import ALIGNMENT, Tensor
from wasmetal.ops.top_logits import top_logits, top_logits_scratch_shape

__all__ = [
    "ALIGNMENT",
    "DType",
    "Recorder",
    "Tensor",
    "add",
    "argmax",
    "attention",
    "batch_shape",
    "copy",
    "counters_shape",
    "embed",
    "expert_linear",
    "gelu",
    "gelu_mul",
    "kv_append",
    "layer_norm",
    "linear",
    "matmul",
    "next_token",
    "norm_gated",
    "norm_linear",
    "prefill_attention",
    "rms_norm",
    "rope",
    "rope_append",
    "rope_split_attention",
    "scale",
    "scratch_shape",
    "sequences_shape",
    "settings_shape",
    "silu_mul",
    "softmax",
    "split_attention",
    "swiglu_oai",
    "top_k",
    "top_logits",
    "top_logits_scratch_shape",
    "weighted_sum",
]
