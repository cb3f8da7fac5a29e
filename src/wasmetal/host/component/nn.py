"""``wasi:nn``, as Wasmtime has it: ``crates/wasi-nn/wit/wasi-nn.wit`` in its repository.

Models come by name only. The package wasmtime copies lists byte by byte, and what a call passes may have 2.7 MB, since
Wasmtime makes 48 bytes of each and stops at 128 MiB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from wasmtime.component import ResourceHost

from wasmetal.host.account import Account
from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.handles import Handles
from wasmetal.host.nn.errnos import nn_errno
from wasmetal.host.nn.records import MAX_RANK
from wasmetal.nn.backend import Backend, Context, Graph, Source
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.tensor import NnTensor, TensorType

VERSION = "0.2.0-rc-2024-10-28"
_TYPES = {
    "FP16": TensorType.F16,
    "FP32": TensorType.F32,
    "FP64": TensorType.F64,
    "U8": TensorType.U8,
    "I32": TensorType.I32,
    "I64": TensorType.I64,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_CODES = {
    NnErrno.INVALID_ARGUMENT: "invalid-argument",
    NnErrno.INVALID_ENCODING: "invalid-encoding",
    NnErrno.BUSY: "too-large",
    NnErrno.RUNTIME_ERROR: "runtime-error",
    NnErrno.UNSUPPORTED_OPERATION: "unsupported-operation",
    NnErrno.TOO_LARGE: "too-large",
    NnErrno.NOT_FOUND: "not-found",
    NnErrno.PROMPT_TOO_LONG: "too-large",
    NnErrno.MODEL_NOT_FOUND: "not-found",
}


class Resource(IntEnum):
    """The resource types, by the numbers that Wasmtime is given for them."""

    TENSOR = 1
    GRAPH = 2
    CONTEXT = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the guest's, or an output. Its bytes are charged."""

    shape: tuple[int, ...]
    type: str
    data: bytes

    def given(self) -> NnTensor:
        """As backends take it. Raises NnRefusal unless it is as long as it says it is, and of a type that they have."""
        kind = _TYPES.get(self.type)
        if kind is None:
            raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, f"tensors of {self.type} are not supported")
        if math.prod(self.shape) * kind.dtype.itemsize != len(self.data):
            raise invalid(f"a tensor of {len(self.data)} bytes, shape {list(self.shape)[:8]} and type {self.type}")
        return NnTensor(kind, self.shape, np.frombuffer(self.data, np.uint8))


@dataclass(frozen=True, slots=True)
class Error:
    """Why a call was refused."""

    errno: NnErrno


@dataclass(eq=False, slots=True)
class OpenGraph:
    """A model, which is loaded once for all graphs of its name that the guest holds, and their contexts."""

    name: str
    graph: Graph
    uses: int = 0


@dataclass(eq=False, slots=True)
class OpenContext:
    """A context that a guest holds."""

    context: Context
    model: OpenGraph


class ComponentNn:
    """One guest's graphs, contexts, tensors and errors."""

    def __init__(self, account: Account, handles: Handles, models: Mapping[str, Source], backend: Backend) -> None:
        self._account = account
        self._handles = handles
        self._models = models
        self._backend = backend
        self._loaded: dict[str, OpenGraph] = {}

    def functions(self) -> dict[str, dict[str, Any]]:
        """The functions of each interface. Parameters that are resources are their numbers."""
        return {
            "errors": {"[method]error.code": self.error_code, "[method]error.data": self.error_data},
            "tensor": {
                "[constructor]tensor": self.new_tensor,
                "[method]tensor.dimensions": self.dimensions,
                "[method]tensor.ty": self.ty,
                "[method]tensor.data": self.data,
            },
            "inference": {"[method]graph-execution-context.compute": self.compute},
            "graph": {
                "[method]graph.init-execution-context": self.init_execution_context,
                "load": self.load,
                "load-by-name": self.load_by_name,
            },
        }

    # ---- errors

    def refused(self, error: BaseException) -> ResourceHost:
        """An error, for the result of a call. Raises Refusal at the guest's limit on handles."""
        return self._own(Resource.ERROR, Error(nn_errno(error)))

    def error_code(self, handle: int) -> str:
        """``error.code``."""
        return _CODES.get(self._handles.get(handle, Error).errno, "unknown")

    def error_data(self, handle: int) -> str:
        """``error.data``: nothing of the host's files."""
        return self._handles.get(handle, Error).errno.doc

    # ---- tensor

    def new_tensor(self, shape: Sequence[int], kind: str, data: bytes) -> ResourceHost:
        """The constructor of ``tensor``. Raises Refusal at a limit."""
        if len(shape) > MAX_RANK:  # the product of many integers takes long, too
            raise Refusal(Errno.TOOBIG, f"limit reached: a tensor of {len(shape)} dimensions; at most {MAX_RANK}")
        self._account.counters.bytes_copied += len(data)
        return self._new_tensor(Tensor(tuple(shape), kind, data))

    def dimensions(self, handle: int) -> list[int]:
        """``tensor.dimensions``."""
        return list(self._handles.get(handle, Tensor).shape)

    def ty(self, handle: int) -> str:
        """``tensor.ty``."""
        return self._handles.get(handle, Tensor).type

    def data(self, handle: int) -> bytes:
        """``tensor.data``."""
        tensor = self._handles.get(handle, Tensor)
        self._account.counters.bytes_copied += len(tensor.data)
        return tensor.data

    # ---- graph

    def load(self, builders: object, encoding: str, target: str) -> ResourceHost:
        """``load``: refused."""
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "components load models by name")

    def load_by_name(self, name: str) -> ResourceHost:
        """``load-by-name``."""
        source = self._models.get(name)
        if source is None:
            raise NnRefusal(NnErrno.NOT_FOUND, f"no model {name!r} was granted to the guest")
        self._handles.check_room()
        model = self._loaded.get(name)
        if model is None:
            model = self._loaded[name] = OpenGraph(name, self._backend.load(source, {}))
        model.uses += 1
        return self._own(Resource.GRAPH, model)

    def init_execution_context(self, handle: int) -> ResourceHost:
        """``graph.init-execution-context``."""
        model = self._handles.get(handle, OpenGraph)
        self._handles.check_room()
        context = OpenContext(model.graph.context(), model)
        model.uses += 1
        return self._own(Resource.CONTEXT, context)

    # ---- inference

    def compute(self, handle: int, inputs: Sequence[tuple[str, int]]) -> list[tuple[str, ResourceHost]]:
        """``graph-execution-context.compute``. The inputs are the guest's no longer, whatever comes of it."""
        held = self._handles.get(handle, OpenContext)
        given = {name: self._handles.get(number, Tensor) for name, number in inputs}
        for _, number in inputs:
            self.drop(number)
        context, tensors = held.context, held.model.graph.holds_tensors
        places = {_index(name, context.inputs): tensor.given() for name, tensor in given.items()}
        if tensors and (missing := set(range(len(context.inputs))) - places.keys()):
            raise invalid(f"input {context.inputs[min(missing)]!r} is missing")
        for index, tensor in places.items():
            context.set_input(index, tensor)
            self._account.counters.bytes_copied += tensor.data.size if tensors else 0
        try:
            context.compute()
        except NnRefusal as refusal:
            if refusal.errno is not NnErrno.CONTEXT_FULL:  # the text until then can be had
                raise
        return self._outputs(held)

    def drop(self, handle: int) -> None:
        """The destructor of every resource."""
        held = self._handles.get(handle, object)
        self._handles.remove(handle)
        if isinstance(held, Tensor):
            self._account.release(len(held.data))
        elif isinstance(held, OpenContext):
            held.context.close()
            self._leave(held.model)
        elif isinstance(held, OpenGraph):
            self._leave(held)

    def close(self) -> None:
        """Release the guest's contexts and graphs."""
        for held in self._handles:
            if isinstance(held, OpenContext):
                held.context.close()
        while self._loaded:
            self._loaded.popitem()[1].graph.close()
        self._backend.close()

    def _leave(self, model: OpenGraph) -> None:
        model.uses -= 1
        if not model.uses:
            del self._loaded[model.name]
            model.graph.close()

    def _outputs(self, held: OpenContext) -> list[tuple[str, ResourceHost]]:
        """Tensors of the outputs of types that wasi-nn has, with their names. Raises Refusal at a limit."""
        found: list[tuple[str, ResourceHost]] = []
        try:
            for index, name in enumerate(held.context.outputs):
                if described := held.context.output_type(index):
                    kind, shape = described
                    data = held.context.output(index).tobytes()
                    self._account.counters.bytes_copied += len(data) if held.model.graph.holds_tensors else 0
                    found.append((name, self._new_tensor(Tensor(shape, _NAMES[kind], data))))
        except BaseException:
            for _, tensor in found:
                self.drop(tensor.rep)
            raise
        return found

    def _new_tensor(self, tensor: Tensor) -> ResourceHost:
        self._account.charge(len(tensor.data))
        try:
            return self._own(Resource.TENSOR, tensor)
        except Refusal:
            self._account.release(len(tensor.data))
            raise

    def _own(self, kind: Resource, held: object) -> ResourceHost:
        return ResourceHost.own(self._handles.add(held), kind)


def _index(name: str, known: Sequence[str]) -> int:
    """The number of an input, by its name or as a number. Raises NnRefusal."""
    if name in known:
        return known.index(name)
    if name.isdecimal() and len(name) < 10 and int(name) < len(known):
        return int(name)
    raise invalid(f"no input is named {name[:80]!r}; there are {', '.join(known)[:200]}")
