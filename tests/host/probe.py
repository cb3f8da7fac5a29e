"""A guest that does what the test says: every host function, called with the test's own numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numpy as np
import wasmtime

from wasmetal import Guest, Program
from wasmetal.host import abi
from wasmetal.host.errno import Errno
from wasmetal.host.runtime import runtime

PAGE = 65536
T = TypeVar("T")


def probe_text(memory64: bool, pages: int, maximum: int) -> str:
    """A module that exports each host function under its own name, its memory, ``grow``, and ``trap``."""
    address = "i64" if memory64 else "i32"
    imports, exports = [], []
    for module, functions in abi.INTERFACES.items():
        for name, kinds in functions.items():
            params = " ".join("i64" if abi.width(kind, memory64) == 64 else "i32" for kind in kinds)
            imports.append(f'(import "{module}" "{name}" (func ${name} (param {params}) (result i32)))')
            arguments = " ".join(f"(local.get {i})" for i in range(len(kinds)))
            exports.append(f'(func (export "{name}") (param {params}) (result i32) (call ${name} {arguments}))')
    return "\n".join(
        [
            "(module",
            *imports,
            f'(memory (export "memory") {address if memory64 else ""} {pages} {maximum})',
            *exports,
            '(func (export "trap") unreachable)',
            f'(func (export "grow") (param {address}) (result {address}) (memory.grow (local.get 0)))',
            ")",
        ]
    )


@cache
def probe_program(memory64: bool, pages: int, maximum: int) -> Program:
    """That module, compiled once for all guests of it."""
    return Program(bytes(wasmtime.wat2wasm(probe_text(memory64, pages, maximum))))


class Probe:
    """The guest, with its memory at hand. ``OUT`` is where out-values go."""

    OUT = 64

    def __init__(self, device: Any, memory64: bool = False, pages: int = 8, maximum: int = 64, **grants: Any) -> None:
        self.guest = Guest(probe_program(memory64, pages, maximum), device=device, **grants)
        self.memory64 = memory64
        self._entered = False

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.close()

    def __getattr__(self, name: str) -> Any:
        kinds = {name: kinds for each in abi.INTERFACES.values() for name, kinds in each.items()}.get(name)
        if kinds is None:
            raise AttributeError(name)

        def call(*values: int) -> Errno:
            widths = [abi.width(kind, self.memory64) for kind in kinds]
            signed = [(v + (1 << w - 1)) % (1 << w) - (1 << w - 1) for v, w in zip(values, widths, strict=True)]
            if self._entered:
                store = self.guest._store
                return Errno(self.guest._instance.exports(store)[name](store, *signed))
            return Errno(self.guest.call(name, *signed))

        return call

    def enter(self, work: Callable[[], T]) -> T:
        """Do work on the guest's thread. Its calls then need no thread each, which makes many of them quick."""
        self._entered = True
        try:
            return self.guest._calls.enter(work)
        finally:
            self._entered = False

    @property
    def region(self) -> Any:
        memory = self.guest._instance.exports(self.guest._store)["memory"]
        return runtime().creator.region_at(ctypes.addressof(memory.data_ptr(self.guest._store).contents))

    @property
    def bytes(self) -> Any:
        """The guest's memory as it is now, uint8."""
        return self.region.view()

    def u32(self, ptr: int = OUT) -> int:
        return int(self.bytes[ptr : ptr + 4].view(np.uint32)[0])

    def floats(self, ptr: int, n: int) -> Any:
        return self.bytes[ptr : ptr + 4 * n].view(np.float32)

    def put(self, ptr: int, data: bytes | np.ndarray[Any, Any]) -> int:
        """Write bytes into the guest's memory; return their number."""
        raw = np.frombuffer(data if isinstance(data, bytes) else data.tobytes(), np.uint8)
        self.bytes[ptr : ptr + raw.size] = raw
        return int(raw.size)

    def share(self, ptr: int = PAGE, nbytes: int = 4 * PAGE, usage: int = 3) -> int:
        """A shared buffer, which must succeed."""
        assert self.buffer_create(ptr, nbytes, usage, self.OUT) == Errno.SUCCESS
        return self.u32()

    def allocate(self, nbytes: int, usage: int = 3) -> int:
        """A device buffer, which must succeed."""
        assert self.buffer_create_device(nbytes, usage, self.OUT) == Errno.SUCCESS
        return self.u32()

    def start(self, *commands: Any) -> int:
        """Submit; must succeed."""
        assert self.try_submit(*commands) == Errno.SUCCESS
        return self.u32()

    def try_submit(self, *commands: Any, at: int = 4096) -> Errno:
        return self.commands_submit(at, self.put(at, b"".join(each.tobytes() for each in commands)), self.OUT)

    def run(self, *commands: Any) -> None:
        """Submit and wait; both must succeed."""
        assert self.submission_wait(self.start(*commands), abi.FOREVER) == Errno.SUCCESS


def tensor(buffer: int, shape: tuple[int, ...], offset: int = 0, dtype: int = 0, row_stride: int = 0) -> Any:
    record = np.zeros((), abi.TENSOR)
    record["buffer"], record["dtype"], record["offset"] = buffer, dtype, offset
    record["rank"], record["row_stride"] = len(shape), row_stride
    record["shape"][: len(shape)] = shape
    return record


def command(op: int, *tensors: Any, flags: int = 0, attributes: tuple[float, ...] = ()) -> Any:
    record = np.zeros((), abi.COMMAND)
    record["op"], record["flags"] = op, flags
    record["attributes"][: len(attributes)] = np.array(attributes, np.float32).view(np.uint32)
    for i, operand in enumerate(tensors):
        if operand is not None:
            record["t"][i] = operand
    return record
