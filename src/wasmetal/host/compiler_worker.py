"""The service that compiles modules in worker processes."""

from __future__ import annotations

from wasmetal.host.sections import check_items
from wasmetal.host.wasm import compile_module, to_binary
from wasmetal.memory import MemoryCreator, new_engine
from wasmetal.worker.channel import Channel, Header
from wasmetal.worker.child import answer
from wasmetal.worker.confinement import Allowance

# Configured like the engine that guests run on, which loads the code.
_engine = new_engine(MemoryCreator(), parallel=True)


def run(channel: Channel, allowance: Allowance) -> None:
    """Answer requests to compile a module."""
    answer(channel, allowance, _compile)


def _compile(header: Header, code: bytearray) -> tuple[Header, bytearray]:
    name = header["name"]
    binary = to_binary(name, bytes(code))
    check_items(name, binary)
    return {}, compile_module(_engine, name, binary).serialize()
