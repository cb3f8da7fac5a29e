"""Compiling modules that are not trusted: in a worker process, since the compiler itself has no limits.

A few hundred KiB of hostile code can make it take minutes and any amount of memory.
"""

from __future__ import annotations

import wasmtime
import wasmtime.component

from wasmetal.errors import GuestError
from wasmetal.host.sections import CODE, check_items, read, widest_type
from wasmetal.host.wasm import compile_module, one_line, to_binary
from wasmetal.worker import WorkerPool

MAX_MODULE = 128 << 20
"""Bytes of a module."""
SECONDS, MEMORY = 30.0, 1 << 30
"""What compiling any module may take."""
SECONDS_FOR_BYTE, MEMORY_FOR_BYTE = 8 / (1 << 20), 64
"""What it may take more for each byte of the module. A program of 65 MiB took 115 seconds on two busy cores, 1.5 GiB of
memory, and 162 MiB when compiled."""
_COMPILED, _COMPILED_FOR_BYTE = 64 << 20, 8
"""Bytes of the compiled module."""
_SMALL = 16 << 10
_SMALL_CODE = 2 << 10
_SMALL_TYPE = 16
"""Bytes of a module and of its functions' code, and parameters or results of a type, that are compiled here: the worst
that we could make of that took 0.1 seconds and 70 MiB."""
_pool = WorkerPool("wasmetal.host.compiler_worker", GuestError, threads=4)


def compile_untrusted(engine: wasmtime.Engine, name: str, code: bytes) -> wasmtime.Module:
    """Compile a core module, binary or text, within bounds that follow from its size. Raises GuestError."""
    check_size(name, code)
    if len(code) <= _SMALL:
        code = to_binary(name, code)
        if _is_small(code):
            check_items(name, code)
            return compile_module(engine, name, code)
    try:
        return wasmtime.Module.deserialize(engine, _request(name, code))
    except wasmtime.WasmtimeError as error:
        raise GuestError(f"{name}: {one_line(error)}") from error


def compile_untrusted_component(engine: wasmtime.Engine, name: str, code: bytes) -> wasmtime.component.Component:
    """Compile a component in its binary form, within bounds that follow from its size. Raises GuestError."""
    check_size(name, code)
    try:
        return wasmtime.component.Component.deserialize(engine, _request(name, code))
    except wasmtime.WasmtimeError as error:
        raise GuestError(f"{name}: {one_line(error)}") from error


def _request(name: str, code: bytes) -> bytes | bytearray:
    """What a worker process makes of a module or component. Raises GuestError."""
    nbytes = len(code)
    _, compiled = _pool.request(
        f"compiling {name}",
        {"name": name},
        code,
        seconds=round(SECONDS + SECONDS_FOR_BYTE * nbytes),
        memory=MEMORY + MEMORY_FOR_BYTE * nbytes,
        most=_COMPILED + _COMPILED_FOR_BYTE * nbytes,
    )
    return compiled


def check_size(name: str, code: bytes) -> None:
    """Raise GuestError if a module is too large to be looked at."""
    if len(code) > MAX_MODULE:
        raise GuestError(f"{name} has {len(code)} bytes; at most {MAX_MODULE} are supported")


def binary_of(name: str, code: bytes) -> bytes:
    """A module, binary or text, as binary. Raises GuestError; text may be small only, as it is converted here."""
    check_size(name, code)
    if len(code) > _SMALL and code[:4] != b"\0asm":
        raise GuestError(f"{name} is text of {len(code)} bytes; convert it to binary, as with wat2wasm")
    return to_binary(name, code)


def _is_small(binary: bytes) -> bool:
    code = sum(section.nbytes for section in read(binary) if section.kind == CODE)
    widest = widest_type(binary)
    return len(binary) <= _SMALL and code <= _SMALL_CODE and widest is not None and widest <= _SMALL_TYPE
