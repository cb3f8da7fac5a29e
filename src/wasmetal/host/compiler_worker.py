"""The service that compiles modules in worker processes."""

from __future__ import annotations

from typing import Any

from wasmetal.host.sections import check_items
from wasmetal.host.wasm import compile_module, to_binary
from wasmetal.memory import MemoryCreator, new_engine

# Configured like the engine that guests run on, which loads the code.
_engine = new_engine(MemoryCreator(), parallel=True)


def serve(header: dict[str, Any], code: bytearray) -> tuple[dict[str, Any], bytearray]:
    """Compile the module ``code``, which messages call ``header["name"]``. Raises GuestError."""
    name = header["name"]
    binary = to_binary(name, bytes(code))
    check_items(name, binary)
    return {}, compile_module(_engine, name, binary).serialize()
