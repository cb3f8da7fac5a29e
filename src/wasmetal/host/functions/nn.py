"""The interface ``wasi_ephemeral_nn``. ``wasi_nn.h`` says what each function means."""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wasmetal.host.abi.nn import Encoding, Target
from wasmetal.host.account import Account
from wasmetal.host.handles import Handles
from wasmetal.host.nn.records import Room, Word, read_builders, read_name, read_tensor
from wasmetal.host.view import GuestMemory
from wasmetal.nn import options
from wasmetal.nn.backend import Backend, Config, Context, Graph, Source
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid

_ENCODINGS = (Encoding.ONNX, Encoding.TENSORFLOWLITE, Encoding.AUTODETECT, Encoding.GGML)


@dataclass(eq=False, slots=True)
class OpenGraph:
    """A graph that a guest holds."""

    graph: Graph
    contexts: list[OpenContext] = field(default_factory=list)
    """Those that have not ended."""

    def close(self) -> None:
        """Release the model; of its contexts, the outputs stay."""
        for each in self.contexts:
            each.graph = None
            each.context.release()
        self.contexts.clear()
        self.graph.close()


@dataclass(eq=False, slots=True)
class OpenContext:
    """A context that a guest holds."""

    context: Context
    holds_tensors: bool
    graph: OpenGraph | None
    """None once it was unloaded."""

    def loaded(self) -> Context:
        """The context. Raises NnRefusal if its graph was unloaded."""
        if self.graph is None:
            raise invalid("the context's graph was unloaded")
        return self.context


class Nn:
    """One guest's graphs and contexts. Each method that ``wasi_nn.h`` names is a host function."""

    def __init__(self, account: Account, handles: Handles, models: Mapping[str, Source], backend: Backend) -> None:
        self._account = account
        self._handles = handles
        self._models = models
        self._backend = backend
        self._named: dict[str, int] = {}
        """Handles of the graphs that are loaded, by the models' names."""

    # ---- Graphs

    def load(self, memory: GuestMemory, ptr: int, count: int, encoding: int, target: int, out: int) -> None:
        handle = Word(memory, out)
        parts = read_builders(memory, ptr, count)
        _check_target(target)
        if encoding not in set(_ENCODINGS):
            raise NnRefusal(NnErrno.INVALID_ENCODING, f"models of encoding {encoding} are not supported")
        limit = self._account.limits.nn_model_bytes
        model, config = parts[0], parts[-1] if count > 1 else parts[0][:0]
        if limit == 0:
            raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "models from the guest's own bytes are not allowed")
        if count > 2:
            raise NnRefusal(NnErrno.INVALID_ENCODING, f"a model in {count} parts; its bytes and its options are two")
        if model.size > limit:
            raise NnRefusal(NnErrno.TOO_LARGE, f"limit reached: {limit} bytes of a model, which has {model.size}")
        given = options.parse(config.tobytes())
        handle.give(self._load(Source(model.tobytes(), "the guest's own"), given))

    def load_by_name(self, memory: GuestMemory, ptr: int, nbytes: int, out: int) -> None:
        handle = Word(memory, out)
        handle.give(self._load_named(read_name(memory, ptr, nbytes), None))

    def load_by_name_with_config(
        self, memory: GuestMemory, ptr: int, nbytes: int, config: int, config_bytes: int, out: int
    ) -> None:
        handle = Word(memory, out)
        name, data = read_name(memory, ptr, nbytes), memory.array(config, config_bytes)
        handle.give(self._load_named(name, options.parse(data.tobytes())))

    def unload(self, memory: GuestMemory, handle: int) -> None:
        held = self._handles.get(handle, OpenGraph)
        self._handles.remove(handle)
        self._named = {name: number for name, number in self._named.items() if number != handle}
        held.close()

    # ---- Contexts

    def init_execution_context(self, memory: GuestMemory, graph: int, out: int) -> None:
        handle = Word(memory, out)
        held = self._handles.get(graph, OpenGraph)
        self._handles.check_room()
        opened = OpenContext(held.graph.context(), held.graph.holds_tensors, held)
        held.contexts.append(opened)
        handle.give(self._handles.add(opened))

    def finalize_execution_context(self, memory: GuestMemory, handle: int) -> None:
        held = self._context(handle)
        self._handles.remove(handle)
        if held.graph:
            held.graph.contexts.remove(held)
        held.context.close()

    def set_input(self, memory: GuestMemory, handle: int, index: int, ptr: int) -> None:
        held = self._context(handle)
        tensor = read_tensor(memory, ptr)
        held.loaded().set_input(index, tensor)
        self._copied(held, tensor.data)

    def bind_input(self, memory: GuestMemory, handle: int, index: int, ptr: int) -> None:
        self._context(handle).loaded().bind_input(index, read_tensor(memory, ptr))

    def bind_output(self, memory: GuestMemory, handle: int, index: int, ptr: int) -> None:
        self._context(handle).loaded().bind_output(index, read_tensor(memory, ptr))

    def compute(self, memory: GuestMemory, handle: int) -> None:
        self._context(handle).loaded().compute()

    def compute_single(self, memory: GuestMemory, handle: int) -> None:
        self._context(handle).loaded().compute_single()

    def fini_single(self, memory: GuestMemory, handle: int) -> None:
        self._context(handle).loaded().fini_single()

    def get_output(self, memory: GuestMemory, handle: int, index: int, out: int, cap: int, needed: int) -> None:
        room, held = Room(memory, out, cap, needed), self._context(handle)
        data = held.context.output(index)
        room.give(data)
        self._copied(held, data)

    def get_output_single(self, memory: GuestMemory, handle: int, index: int, out: int, cap: int, needed: int) -> None:
        room, held = Room(memory, out, cap, needed), self._context(handle)
        room.give(held.context.output_single(index))

    def close(self) -> None:
        """Release the guest's contexts and graphs."""
        for held in self._handles:
            if isinstance(held, OpenContext):
                held.context.close()
        for held in self._handles:
            if isinstance(held, OpenGraph):
                held.close()
        self._backend.close()

    def _load_named(self, name: str, config: Config | None) -> int:
        source = self._models.get(name)
        if source is None:
            raise NnRefusal(NnErrno.NOT_FOUND, f"no model {name!r} was granted to the guest")
        if (handle := self._named.get(name)) is not None:
            if config is not None:
                self._handles.get(handle, OpenGraph).graph.configure(config)
            return handle
        handle = self._named[name] = self._load(source, config or {})
        return handle

    def _load(self, source: Source, config: Config) -> int:
        self._handles.check_room()
        return self._handles.add(OpenGraph(self._backend.load(source, config)))

    def _context(self, handle: int) -> OpenContext:
        return self._handles.get(handle, OpenContext)

    def _copied(self, held: OpenContext, data: NDArray[np.uint8]) -> None:
        if held.holds_tensors:
            self._account.counters.bytes_copied += data.size


def _check_target(target: int) -> None:
    if target not in set(Target):
        raise invalid(f"target {target} is not known")
