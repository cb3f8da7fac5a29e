"""The guest interfaces as data: each function's parameters, and the structs that cross the boundary.

``abi/*.witx`` and ``abi/wasmetal.h`` say the same in their own languages; a test holds the three together.
"""

from __future__ import annotations

import numpy as np
from wasmtime import FuncType, ValType

GPU = "wasi_ephemeral_gpu"
LLM = "wasmetal_llm"

PTR, SIZE, U32, U64 = "ptr", "size", "u32", "u64"
"""Parameter kinds. ``ptr`` and ``size`` are as wide as an address of the guest's own memory."""

INTERFACES: dict[str, dict[str, tuple[str, ...]]] = {
    GPU: {
        "buffer_create": (PTR, SIZE, U32, PTR),
        "buffer_create_device": (U64, U32, PTR),
        "buffer_destroy": (U32,),
        "buffer_read": (U32, U64, PTR, SIZE),
        "buffer_write": (U32, U64, PTR, SIZE),
        "submit": (PTR, SIZE, PTR),
        "wait": (U32, U64),
        "device_info": (PTR,),
        "counters": (PTR,),
    },
    LLM: {
        "model_open": (PTR, SIZE, PTR),
        "model_info": (U32, PTR),
        "model_end_tokens": (U32, PTR, SIZE, PTR),
        "vocabulary": (U32, PTR, SIZE, PTR),
        "tokenize": (U32, PTR, SIZE, U32, PTR, SIZE, PTR),
        "detokenize": (U32, PTR, SIZE, PTR, SIZE, PTR),
        "apply_template": (U32, PTR, SIZE, U32, PTR, SIZE, PTR),
        "session_open": (U32, PTR),
        "session_close": (U32,),
        "session_length": (U32, PTR),
        "forward": (U32, PTR, SIZE, PTR),
        "fork": (U32, PTR),
        "truncate": (U32, U32),
        "save": (U32, PTR, SIZE, PTR),
        "restore": (U32, PTR, SIZE),
    },
}
"""Parameters of every function, by interface and name. Every function returns an errno, an i32."""


def width(kind: str, memory64: bool) -> int:
    """Bits of a parameter, for a guest with a 64-bit memory or a 32-bit one."""
    return 64 if kind == U64 or (memory64 and kind in (PTR, SIZE)) else 32


def func_type(kinds: tuple[str, ...], memory64: bool) -> FuncType:
    """The WebAssembly type of a function with these parameters."""
    params = [ValType.i64() if width(kind, memory64) == 64 else ValType.i32() for kind in kinds]
    return FuncType(params, [ValType.i32()])


TENSOR = np.dtype(
    [
        ("buffer", "<u4"),
        ("dtype", "<u4"),
        ("offset", "<u8"),
        ("rank", "<u4"),
        ("row_stride", "<u4"),
        ("shape", "<u4", 4),
    ],
    align=True,
)
COMMAND = np.dtype([("op", "<u4"), ("flags", "<u4"), ("attributes", "<u4", 6), ("t", TENSOR, 6)], align=True)
DEVICE_INFO = np.dtype(
    [
        ("backend", "<u4"),
        ("unified", "<u4"),
        ("page_size", "<u4"),
        ("tensor_alignment", "<u4"),
        ("memory_bytes", "<u8"),
        ("memory_limit", "<u8"),
        ("handle_limit", "<u4"),
        ("command_limit", "<u4"),
        ("subgroup_size", "<u4"),
        ("reserved", "<u4"),
        ("name", "u1", 80),
    ],
    align=True,
)
COUNTERS = np.dtype(
    [
        ("bytes_copied", "<u8"),
        ("bytes_shared", "<u8"),
        ("bytes_loaded", "<u8"),
        ("host_calls", "<u8"),
        ("submits", "<u8"),
        ("dispatches", "<u8"),
        ("device_ns", "<u8"),
    ],
    align=True,
)
MODEL_INFO = np.dtype(
    [
        ("vocab_size", "<u4"),
        ("context_length", "<u4"),
        ("end_tokens", "<u4"),
        ("chat_template", "<u4"),
    ],
    align=True,
)

USAGE_READ, USAGE_WRITE = 1, 2
TRANSPOSE_A, TRANSPOSE_B = 1, 2
ACCUMULATE = 1
INTERLEAVED = 1
PARSE_SPECIAL, ADD_BOS = 1, 2
GENERATION_PROMPT = 1
FOREVER = 2**64 - 1
BACKENDS = ("cpu", "vulkan", "metal", "cuda")
"""A device's backend is given to guests as its index here."""
