"""Compiling modules and components, and Wasmtime's errors as one line each."""

from __future__ import annotations

from pathlib import Path

import wasmtime
import wasmtime.component

from wasmetal.errors import GuestError, printable
from wasmetal.host.sections import COMPONENT


def read_module(module: str | Path | bytes) -> tuple[str, bytes]:
    """The module's name and its code, from a path or as given. Raises GuestError."""
    if isinstance(module, bytes):
        return "guest", module
    try:
        return Path(module).name, Path(module).read_bytes()
    except OSError as error:
        raise GuestError(f"cannot read {module}: {error.strerror}") from error


def compile_module(engine: wasmtime.Engine, name: str, code: bytes) -> wasmtime.Module:
    """Compile a core module, binary or text. Raises GuestError."""
    binary = to_binary(name, code)
    try:
        return wasmtime.Module(engine, binary)
    except wasmtime.WasmtimeError as error:
        raise GuestError(f"{name}: {one_line(error)}") from error


def to_binary(name: str, code: bytes) -> bytes:
    """A core module, binary or text, as binary. Of a binary only the beginning is checked. Raises GuestError."""
    if is_component(code):
        raise GuestError(f"{name} is a component; a core module is needed here (target wasm32-wasip1)")
    if code[:4] == b"\0asm":
        return code
    if not code.lstrip().startswith((b"(", b";;")):
        raise GuestError(f"{name} is not a WebAssembly module")
    try:
        binary = bytes(wasmtime.wat2wasm(code))
    except (wasmtime.WasmtimeError, UnicodeDecodeError) as error:
        raise GuestError(f"{name}: {one_line(error)}") from error
    if is_component(binary):
        raise GuestError(f"{name} is a component as text; convert it to binary")
    return binary


def is_component(code: bytes) -> bool:
    """Whether this is a component in its binary form."""
    return code[:8] == COMPONENT


def compile_component(engine: wasmtime.Engine, name: str, code: bytes) -> wasmtime.component.Component:
    """Compile a component in its binary form. Raises GuestError."""
    try:
        return wasmtime.component.Component(engine, code)
    except wasmtime.WasmtimeError as error:
        raise GuestError(f"{name}: {one_line(error)}") from error


def has_memory64(module: wasmtime.Module) -> bool:
    """Whether the memory exported as "memory", which host functions use, has 64-bit addresses."""
    exported = {each.name: each.type for each in module.exports}.get("memory")
    return isinstance(exported, wasmtime.MemoryType) and exported.is_64


def describe_trap(trap: wasmtime.Trap) -> str:
    """One line that says why the guest trapped, and in which function."""
    reason = trap.message.rpartition("wasm trap: ")[2].strip()
    frames = trap.frames
    function = frames[0].func_name or f"function {frames[0].func_index}" if frames else "the host"
    return f"the guest trapped in {printable(function)}: {one_line(reason)}"


def exited(code: int) -> GuestError:
    """The error that a guest ended with an exit code other than 0."""
    return GuestError(f"the guest ended with exit code {code}; its standard error may say why")


def one_line(message: object) -> str:
    """A Wasmtime error, which may have a backtrace and causes, in one line."""
    head, _, cause = str(message).strip().partition("Caused by:")
    lines = [text.strip().partition("\n")[0].rstrip(":") for text in (head, cause) if text.strip()]
    if len(lines) == 2 and lines[0].startswith("error while executing"):
        del lines[0]
    return printable(": ".join(lines))
