"""The interface ``wasi_ephemeral_nn``, described: wasi-nn as core modules import it, with 32-bit pointers.

https://github.com/WebAssembly/wasi-nn (``wasi-nn.witx``), with the functions that WasmEdge's guests import beside it,
and two of wasmetal's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wasmetal.documented import Documented
from wasmetal.host.abi.schema import (
    CHAR,
    UINT8,
    UINT32,
    VOID,
    Enumeration,
    Field,
    Function,
    Handle,
    Interface,
    Param,
    Scalar,
    Struct,
    reads,
    returns,
    writes,
)
from wasmetal.nn.errors import NnErrno
from wasmetal.nn.tensor import TensorType


class Encoding(Documented):
    """What a model is encoded as. Its content decides; 5 and 6 were the other way round at times."""

    OPENVINO = 0, "not supported"
    ONNX = 1
    TENSORFLOW = 2, "not supported"
    PYTORCH = 3, "not supported"
    TENSORFLOWLITE = 4
    AUTODETECT = 5
    GGML = 6, "GGUF"


class Target(Documented):
    """What the model is to run on. Whatever the guest asks for, the host has chosen the device."""

    CPU = 0
    GPU = 1
    TPU = 2
    AUTO = 3


@dataclass(frozen=True)
class NnFunction(Function):
    """A function of wasi-nn. All of its pointers are 32 bits wide, and none must be aligned."""

    namespace: str = field(default="nn", kw_only=True)

    @property
    def all_errors(self) -> dict[NnErrno, str]:
        """``errors``; every call can give INVALID_ARGUMENT, MISSING_MEMORY and RUNTIME_ERROR."""
        common = (NnErrno.INVALID_ARGUMENT, NnErrno.MISSING_MEMORY, NnErrno.RUNTIME_ERROR)
        return {**dict.fromkeys(common, ""), **self.errors}


_POINTER = np.dtype("<u4")
_NN = "nn"
ENCODING = Enumeration("encoding", Encoding, "ENCODING_", namespace=_NN)
TARGET = Enumeration("target", Target, "TARGET_", namespace=_NN)
TENSOR_TYPE = Enumeration("tensor_type", TensorType, "TYPE_", namespace=_NN)
ERRNO = Enumeration("errno", NnErrno, namespace=_NN)
GRAPH, CONTEXT = Handle("graph", namespace=_NN), Handle("context", namespace=_NN)

BUILDER = Struct(
    "builder",
    "A part of a model: its bytes, or in the last part its options as JSON.",
    (
        Field("data", Scalar("const void *", "(@witx const_pointer u8)", "", _POINTER)),
        Field("len", UINT32, "in bytes"),
    ),
    namespace=_NN,
)
TENSOR = Struct(
    "tensor",
    "A row-major tensor.",
    (
        Field("dims", Scalar("const uint32_t *", "(@witx const_pointer u32)", "", _POINTER)),
        Field("rank", UINT32, "number of dims"),
        Field("type", UINT8, "NN_TYPE_*; the three bytes after it do not matter"),
        Field("data", Scalar("void *", "(@witx pointer u8)", "", _POINTER), "need not be aligned"),
        Field("len", UINT32, "in bytes"),
    ),
    namespace=_NN,
)

_GRAPH, _CONTEXT, _INDEX = Param("graph", GRAPH), Param("context", CONTEXT), Param("index", UINT32)
_NAME, _NAME_LEN = reads("name", CHAR), Param("name_len", UINT32)
_OUT = writes("out", VOID), Param("cap", UINT32), returns("len", UINT32)
_TENSOR = reads("tensor", TENSOR)
_LOADING = {
    NnErrno.INVALID_ENCODING: "",
    NnErrno.BUSY: "",
    NnErrno.UNSUPPORTED_OPERATION: "an option that names a file of the host",
    NnErrno.TOO_LARGE: "",
}
_NAMED = {**_LOADING, NnErrno.NOT_FOUND: "", NnErrno.MODEL_NOT_FOUND: ""}
_COMPUTING = {
    NnErrno.UNSUPPORTED_OPERATION: "",
    NnErrno.TOO_LARGE: "",
    NnErrno.CONTEXT_FULL: "",
    NnErrno.PROMPT_TOO_LONG: "",
}
_GIVING = {NnErrno.TOO_LARGE: "len bytes are needed; nothing was copied", NnErrno.UNSUPPORTED_OPERATION: ""}

NN = Interface(
    "wasi_ephemeral_nn",
    "NN",
    """
    Models behind wasi-nn: texts in and out for language models (GGUF), tensors for others.

    For a language model, input 0 is the prompt, input 1 options as JSON, output 0 the text, and output 1 JSON with the
    numbers of tokens, which can be read right after input 0 was set.
    """,
    (
        ERRNO,
        ENCODING,
        TARGET,
        TENSOR_TYPE,
        GRAPH,
        CONTEXT,
        BUILDER,
        TENSOR,
        NnFunction(
            "load",
            (
                reads("builders", BUILDER),
                Param("count", UINT32),
                Param("encoding", ENCODING),
                Param("target", TARGET),
                returns("graph", GRAPH),
            ),
            "Loads a model that the guest has the bytes of, if the host allows that.",
            _LOADING,
        ),
        NnFunction(
            "load_by_name",
            (_NAME, _NAME_LEN, returns("graph", GRAPH)),
            "Loads a model that the host granted under this name; the same graph if it is loaded already.",
            _NAMED,
        ),
        NnFunction(
            "load_by_name_with_config",
            (_NAME, _NAME_LEN, reads("config", CHAR), Param("config_len", UINT32), returns("graph", GRAPH)),
            "Loads a model that the host granted under this name, with options as JSON.",
            _NAMED,
        ),
        NnFunction(
            "init_execution_context",
            (_GRAPH, returns("context", CONTEXT)),
            "Makes a context, which has the graph's options as they are now.",
            {NnErrno.BUSY: "", NnErrno.TOO_LARGE: ""},
        ),
        NnFunction(
            "set_input",
            (_CONTEXT, _INDEX, _TENSOR),
            "Copies an input.",
            {
                NnErrno.INVALID_ENCODING: "input 1 of a language model does not parse",
                NnErrno.UNSUPPORTED_OPERATION: "",
                NnErrno.TOO_LARGE: "",
            },
        ),
        NnFunction("compute", (_CONTEXT,), "Computes all outputs.", {**_COMPUTING, NnErrno.END_OF_SEQUENCE: ""}),
        NnFunction(
            "get_output",
            (_CONTEXT, _INDEX, *_OUT),
            "Copies an output to out, which has room for cap bytes.",
            _GIVING,
        ),
        NnFunction(
            "compute_single",
            (_CONTEXT,),
            "Computes the next token of a text. The first call after an input was set begins with the prompt.",
            {**_COMPUTING, NnErrno.END_OF_SEQUENCE: ""},
        ),
        NnFunction("get_output_single", (_CONTEXT, _INDEX, *_OUT), "Copies that token's text to out.", _GIVING),
        NnFunction("fini_single", (_CONTEXT,), "Ends the text.", {NnErrno.UNSUPPORTED_OPERATION: ""}),
        NnFunction(
            "unload", (_GRAPH,), "Releases a graph. Of its contexts, only outputs can still be read, until they end."
        ),
        NnFunction("finalize_execution_context", (_CONTEXT,), "Releases a context."),
        NnFunction(
            "bind_input",
            (_CONTEXT, _INDEX, _TENSOR),
            """
            wasmetal's own: every computation from now on reads the input at tensor.data, which must be a multiple of
            the element's size. Nothing is copied. nn_set_input ends that.
            """,
            {NnErrno.UNSUPPORTED_OPERATION: ""},
        ),
        NnFunction(
            "bind_output",
            (_CONTEXT, _INDEX, _TENSOR),
            """
            wasmetal's own: every computation from now on writes the output to tensor.data, which must be a multiple of
            the element's size and may not overlap what else is bound when nn_compute is called. The shape must be the
            one that is computed.
            """,
            {NnErrno.UNSUPPORTED_OPERATION: ""},
        ),
    ),
)

SIGNATURES: dict[str, tuple[str, ...]] = {function.name: function.kinds for function in NN.functions}
"""How the parameters of every function are passed, by name."""
