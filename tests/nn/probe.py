"""A guest that does what the test says: every function of wasi-nn, called with the test's own numbers."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import numpy as np
import wasmtime

from tests.host.probe import PAGE, Probe
from wasmetal import Guest, Program
from wasmetal.host.abi.nn import NN, SIGNATURES
from wasmetal.nn.errors import NnErrno
from wasmetal.nn.tensor import TensorType

OK = NnErrno.SUCCESS
SIZE = 8 * PAGE
TYPES = {kind.dtype: kind for kind in TensorType}


def text(address: str = "i32") -> str:
    """A module that exports each function of wasi-nn under its own name, and its memory."""
    lines = ["(module"]
    for name, kinds in SIGNATURES.items():
        params = " ".join("i32" for _ in kinds)
        lines.append(f'(import "{NN.name}" "{name}" (func ${name} (param {params}) (result i32)))')
    lines.append(f'(memory (export "memory") {"i64 " * (address == "i64")}8 1024)')
    for name, kinds in SIGNATURES.items():
        params = " ".join("i32" for _ in kinds)
        arguments = " ".join(f"(local.get {i})" for i in range(len(kinds)))
        lines.append(f'(func (export "{name}") (param {params}) (result i32) (call ${name} {arguments}))')
    return "\n".join([*lines, ")"])


@cache
def program() -> Program:
    """That module, compiled once."""
    return Program(bytes(wasmtime.wat2wasm(text())))


class NnProbe(Probe):
    """The guest, with its memory at hand: ``OUT`` for what functions give, ``RECORD`` for a tensor, ``DATA`` for it."""

    RECORD, DIMS, TEXT, DATA, ROOM = 1024, 1100, 4096, PAGE, 4 * PAGE

    def __init__(self, device: Any = None, **grants: Any) -> None:
        self.guest = Guest(program(), device=device, **grants)
        self.memory64 = self._entered = False

    def __getattr__(self, name: str) -> Any:
        if name not in SIGNATURES:
            raise AttributeError(name)

        def call(*values: int) -> NnErrno:
            signed = [(v + (1 << 31)) % (1 << 32) - (1 << 31) for v in values]
            if self._entered:
                store = self.guest._store
                return NnErrno(self.guest._instance.exports(store)[name](store, *signed))
            return NnErrno(self.guest.call(name, *signed))

        return call

    def graph(self, name: str | bytes = "m", config: bytes | None = None) -> int:
        """Load a model, which must succeed."""
        n = self.put(self.TEXT, name if isinstance(name, bytes) else name.encode())
        if config is None:
            assert self.load_by_name(self.TEXT, n, self.OUT) == OK
        else:
            m = self.put(self.TEXT + n, config)
            assert self.load_by_name_with_config(self.TEXT, n, self.TEXT + n, m, self.OUT) == OK
        return self.u32()

    def context(self, graph: int | None = None) -> int:
        """A context, which must be had."""
        assert self.init_execution_context(self.graph() if graph is None else graph, self.OUT) == OK
        return self.u32()

    def record(self, data: int, nbytes: int, shape: tuple[int, ...], number: int, garbage: bytes = b"\xaa" * 3) -> int:
        """Write a tensor's record; its address, which is misaligned."""
        at = self.RECORD + 1
        self.put(self.DIMS, np.array(shape, np.uint32))
        self.put(at, struct.pack("<IIB3sII", self.DIMS, len(shape), number, garbage, data, nbytes))
        return at

    def set(self, context: int, index: int, value: bytes | np.ndarray[Any, Any], at: int = DATA) -> NnErrno:
        """set_input with a text, or an array."""
        nbytes = self.put(at, value)
        if isinstance(value, bytes):
            return self.set_input(context, index, self.record(at, nbytes, (1,), TensorType.U8))
        return self.set_input(context, index, self.record(at, nbytes, value.shape, TYPES[value.dtype]))

    def output(self, context: int, index: int = 0, single: bool = False) -> bytes:
        """An output, which must be had."""
        function = self.get_output_single if single else self.get_output
        assert function(context, index, self.ROOM, 2 * PAGE, self.OUT) == OK
        return bytes(self.bytes[self.ROOM : self.ROOM + self.u32()])
