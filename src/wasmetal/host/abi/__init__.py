"""The guest ABI: what guests import, and the records that cross the boundary.

It is described once, as data: ``gpu.py``, ``llm.py``, ``actor.py`` and ``ops.py``, in the terms of ``schema.py``. From
it come the tables below, the C header that guests are compiled with (``sdk/include/wasmetal.h``) and the witx files.
``python -m wasmetal.host.abi`` writes the files.
"""

from __future__ import annotations

from wasmtime import FuncType, ValType

from wasmetal.host.abi import actor, gpu, llm, ops
from wasmetal.host.abi.actor import MessageKind
from wasmetal.host.abi.errors import Errno
from wasmetal.host.abi.gpu import Backend, Usage
from wasmetal.host.abi.llm import TemplateFlags, TokenizeFlags
from wasmetal.host.abi.schema import PTR, SIZE, U32, U64

__all__ = [
    "ACTOR",
    "CANDIDATE",
    "COMMAND",
    "COUNTERS",
    "DESCRIPTION",
    "DEVICE_INFO",
    "FOREVER",
    "GPU",
    "INTERFACES",
    "LLM",
    "LOGIT_TOTALS",
    "MAX_TOP",
    "MAX_TOP_ROWS",
    "MESSAGE_INFO",
    "MODEL_INFO",
    "OPS",
    "PTR",
    "SAMPLING",
    "SIZE",
    "TENSOR",
    "U32",
    "U64",
    "Backend",
    "Errno",
    "MessageKind",
    "TemplateFlags",
    "TokenizeFlags",
    "Usage",
    "func_type",
    "width",
]

DESCRIPTION = (gpu.GPU, llm.LLM, actor.ACTOR)
GPU, LLM, ACTOR = (interface.name for interface in DESCRIPTION)

INTERFACES: dict[str, dict[str, tuple[str, ...]]] = {
    interface.name: {function.name: function.kinds for function in interface.functions} for interface in DESCRIPTION
}
"""How the parameters of every function are passed, by interface and name. Every function returns an errno, an i32."""

OPS = {op.number: op for op in ops.OPS.ops}
"""Every op, by its number."""

TENSOR, COMMAND = gpu.TENSOR.dtype, gpu.COMMAND.dtype
DEVICE_INFO, COUNTERS = gpu.DEVICE_INFO.dtype, gpu.COUNTERS.dtype
MODEL_INFO, SAMPLING = llm.MODEL_INFO.dtype, llm.SAMPLING.dtype
CANDIDATE, LOGIT_TOTALS = llm.CANDIDATE.dtype, llm.LOGIT_TOTALS.dtype
MESSAGE_INFO = actor.MESSAGE_INFO.dtype
FOREVER = gpu.FOREVER.value
MAX_TOP, MAX_TOP_ROWS = llm.MAX_TOP.value, llm.MAX_TOP_ROWS.value


def width(kind: str, memory64: bool) -> int:
    """Bits of a parameter, for a guest with a 64-bit memory or a 32-bit one."""
    return 64 if kind == U64 or (memory64 and kind in (PTR, SIZE)) else 32


def func_type(kinds: tuple[str, ...], memory64: bool) -> FuncType:
    """The WebAssembly type of a function with these parameters."""
    params = [ValType.i64() if width(kind, memory64) == 64 else ValType.i32() for kind in kinds]
    return FuncType(params, [ValType.i32()])
