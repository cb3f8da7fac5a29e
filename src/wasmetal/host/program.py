"""A program: a WebAssembly module or component, compiled and linked once, for any number of guests."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import wasmtime
import wasmtime.component

from wasmetal.errors import GuestError
from wasmetal.host import abi, program_cache
from wasmetal.host.abi.nn import NN
from wasmetal.host.compiler import compile_untrusted, compile_untrusted_component
from wasmetal.host.component.component import Component
from wasmetal.host.link import host_functions
from wasmetal.host.runtime import runtime
from wasmetal.host.wasm import compile_component, compile_module, has_memory64, is_component, one_line, read_module


class Program:
    """A compiled module or component. Guests made of it share its code; any thread may use it.

    ::

        program = wasmetal.Program("guests/chat.wasm")
        with wasmetal.Guest(program, models={"default": "smollm2:135m"}) as guest:
            guest.run()

    Compiled code is kept on disk for the next process, in ``programs`` of the cache folder (``WASMETAL_HOME``);
    ``WASMETAL_NO_PROGRAM_CACHE=1`` switches that off.
    """

    component: Component | None = None
    """What was compiled, if it is no core module."""

    def __init__(self, module: str | Path | bytes, *, trusted: bool = False) -> None:
        """``module``: a path, or the bytes, of a core module, binary or text, or of a component, binary.

        ``trusted``: compile it in this process, without limits on its size, and on the compiler's time and memory.

        Raises GuestError: no such file, not a module, too large, or an import that does not exist.
        """
        self._load(*read_module(module), trusted)

    def _load(self, name: str, code: bytes, trusted: bool) -> None:
        """Compile and link, or load what was compiled before."""
        engine = runtime().engine
        if is_component(code):
            component = program_cache.load(engine, code, wasmtime.component.Component.deserialize)
            if component is None:
                component = (compile_component if trusted else compile_untrusted_component)(engine, name, code)
                program_cache.save(component, code)
            self._link_component(Component(name, component, engine))
            return
        compiled = program_cache.load(engine, code, wasmtime.Module.deserialize)
        if compiled is None:
            compile_ = compile_module if trusted else compile_untrusted
            compiled = compile_(engine, name, code)
            program_cache.save(compiled, code)
        self._link(name, compiled)

    @classmethod
    def load(cls, name: str, compiled: bytes, is_component: bool = False) -> Self:
        """A program from what :meth:`serialize` returned in another process; it is machine code, and not checked."""
        program, engine = cls.__new__(cls), runtime().engine
        if is_component:
            loaded = wasmtime.component.Component.deserialize(engine, compiled)
            program._link_component(Component(name, loaded, engine))
        else:
            program._link(name, wasmtime.Module.deserialize(engine, compiled))
        return program

    def serialize(self) -> bytes:
        """The compiled code, for :meth:`load`."""
        return bytes((self.component or self._compiled).serialize())

    def instantiate(self, store: wasmtime.Store) -> wasmtime.Instance:
        """A new instance; the module's start function runs. Raises what Wasmtime raises."""
        return self._linked.instantiate(store)

    def _link_component(self, component: Component) -> None:
        self.name = component.name
        self.component = component
        self.memory64 = self.imports_device = self.imports_models = False
        self.imports_nn = component.imports_nn

    def _link(self, name: str, compiled: wasmtime.Module) -> None:
        self.name = name
        """The file's name; "guest" if the module was given as bytes."""
        self._compiled = compiled
        self.memory64 = has_memory64(compiled)
        """Whether the exported memory has 64-bit addresses."""
        self.imports_device = any(each.module in (abi.GPU, abi.LLM) for each in compiled.imports)
        """Whether guests need a device, because the module imports what works on one."""
        self.imports_models = any(each.module == abi.LLM for each in compiled.imports)
        """Whether guests can use models, if they are granted some."""
        self.imports_nn = any(each.module == NN.name for each in compiled.imports)
        """Whether guests can use models through wasi-nn."""
        if self.imports_nn and self.memory64:
            raise GuestError(f"{name} imports {NN.name}, which is for 32-bit memories: build it for wasm32")
        try:
            self._linked = host_functions(self.memory64).linker.instantiate_pre(compiled)
        except wasmtime.WasmtimeError as error:
            raise GuestError(one_line(error)) from None
