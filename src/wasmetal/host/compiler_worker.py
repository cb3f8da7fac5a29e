"""The service that compiles modules and components in worker processes."""

from __future__ import annotations

from wasmetal.host.sections import check_items
from wasmetal.host.wasm import compile_component, compile_module, is_component, to_binary
from wasmetal.memory import MemoryCreator, new_engine
from wasmetal.worker.channel import Channel, Header
from wasmetal.worker.child import answer
from wasmetal.worker.confinement import Allowance

# Configured like the engine that guests run on, which loads the code.
_engine = new_engine(MemoryCreator(), parallel=True)


def run(channel: Channel, allowance: Allowance) -> None:
    """Answer requests to compile a module or a component."""
    answer(channel, allowance, _compile)


def _compile(header: Header, code: bytearray) -> tuple[Header, bytearray]:
    name = header["name"]
    given = bytes(code)
    if is_component(given):
        check_items(name, given)
        return {}, compile_component(_engine, name, given).serialize()
    binary = to_binary(name, given)
    check_items(name, binary)
    return {}, compile_module(_engine, name, binary).serialize()
