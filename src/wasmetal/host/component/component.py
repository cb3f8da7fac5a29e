"""A compiled component, which exports ``wasi:cli/run``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import wasmtime
from wasmtime import component

from wasmetal.errors import GuestError

_RUN = "wasi:cli/run@0.2."
_NN = "wasi:nn/"


class Component:
    """A component that was compiled for an engine. Any thread may use it."""

    def __init__(self, name: str, compiled: component.Component, engine: wasmtime.Engine) -> None:
        """Raises GuestError if it is no command."""
        self.name, self._compiled, self._engine = name, compiled, engine
        described = compiled.type
        self.imports_nn = any(each.startswith(_NN) for each in described.imports(engine))
        """Whether it can use models."""
        command = next((each for each in described.exports(engine) if each.startswith(_RUN)), None)
        if command is None:
            raise GuestError(f"{name} is a component that exports no {_RUN}x, which is what a command exports")
        self._run = compiled.get_export_index("run", compiled.get_export_index(command))

    def serialize(self) -> bytes:
        """The compiled code, for :meth:`Program.load`."""
        return bytes(self._compiled.serialize())

    def instantiate(self, store: wasmtime.Store, define: Callable[[component.Linker], None]) -> Any:
        """A new instance, with WASI and what ``define`` adds to it. Raises what Wasmtime raises."""
        with component.Linker(self._engine) as linker:
            linker.add_wasip2()
            define(linker)
            return linker.instantiate(store, self._compiled)

    def run(self, store: wasmtime.Store, instance: Any) -> int:
        """Run the command; its exit code. Raises what Wasmtime raises."""
        assert self._run is not None
        function = instance.get_func(store, self._run)
        if function is None:
            raise GuestError(f"{self.name} exports no function 'run' in {_RUN}x")
        outcome = function(store)
        function.post_return(store)
        return int(outcome.tag == "err")
