"""The memories, globals and tables of an instance, also those that its module keeps to itself."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar

import wasmtime

from wasmetal import wasmtime_c
from wasmetal.actor import manifest
from wasmetal.actor.manifest import VALUE_BYTES
from wasmetal.actor.memory_image import PAGE, MemoryImage
from wasmetal.actor.program import ActorProgram
from wasmetal.actor.wasm_binary import Kind, ValueType
from wasmetal.actor.wasm_exports import name_of
from wasmetal.errors import MemoryRefusedError, SnapshotError
from wasmetal.host.runtime import runtime
from wasmetal.memory import Region

T = TypeVar("T")


class Instance:
    """An instance of an actor's program, by the names under which the program exports its state.

    Used only while none of its code runs.
    """

    def __init__(self, program: ActorProgram, store: wasmtime.Store, instance: wasmtime.Instance) -> None:
        """None of the instance's code has run yet."""
        self._program = program
        self._store = store
        self._exports = instance.exports(store)
        self._memories = [self._export(wasmtime.Memory, Kind.MEMORY, index) for index in range(program.state.memories)]
        self.images: tuple[MemoryImage, ...] = program.images(self.regions)
        """What its memories held when it was new."""

    # ---- Memories

    @property
    def regions(self) -> list[Region]:
        """The memories, as they are now."""
        addresses = [ctypes.addressof(memory.data_ptr(self._store).contents) for memory in self._memories]
        return [runtime().creator.region_at(address) for address in addresses]

    def grow(self, index: int, pages: int) -> Region:
        """Make a memory so many pages large. Raises SnapshotError if it is larger, or may not be so large."""
        memory = self._memories[index]
        more = pages - memory.size(self._store)
        try:
            if more < 0:
                raise MemoryRefusedError("it is larger when it is new")
            if more:
                with wasmtime_c.memory_refusals():
                    memory.grow(self._store, more)
        except (MemoryRefusedError, wasmtime.WasmtimeError) as error:
            raise SnapshotError(f"memory {index} cannot have the snapshot's {pages * PAGE} bytes: {error}") from error
        return self.regions[index]

    # ---- Globals

    def globals(self) -> tuple[manifest.Global, ...]:
        """The mutable globals. Raises SnapshotError if one refers to a function that is not known."""
        return tuple(self._read(index, kind) for index, kind in self._program.state.globals.items())

    def set_globals(self, values: Sequence[manifest.Global]) -> None:
        """Set them. Raises SnapshotError for a function that no reference can name."""
        for each in values:
            exported = self._export(wasmtime.Global, Kind.GLOBAL, each.index)
            if each.kind is ValueType.FUNCREF:
                exported.set_value(self._store, self._function(each.value))
            elif isinstance(each.value, str):
                wasmtime_c.set_global_bits(self._store, exported, bytes.fromhex(each.value))

    def _read(self, index: int, kind: ValueType) -> manifest.Global:
        exported = self._export(wasmtime.Global, Kind.GLOBAL, index)
        value: str | int | None = None
        if kind in VALUE_BYTES:
            value = wasmtime_c.global_bits(self._store, exported, VALUE_BYTES[kind]).hex()
        elif kind is ValueType.FUNCREF:  # of the other references, only null can come into being
            value = self._index(f"global {index}", exported.value(self._store))
        return manifest.Global(index, kind, value)

    # ---- Tables

    @property
    def changing(self) -> list[int]:
        """The tables that the program's code may change."""
        return [index for index, table in enumerate(self._program.state.tables) if table.changes]

    def table(self, index: int) -> list[int | None]:
        """The functions in a table, by index; None for null. Raises SnapshotError for one that is not known."""
        table = self._export(wasmtime.Table, Kind.TABLE, index)
        size = table.size(self._store)
        return [self._index(f"table {index}", table.get(self._store, position)) for position in range(size)]

    def set_table(self, index: int, functions: Sequence[int | None]) -> None:
        """Set a table's size and elements. Raises SnapshotError for a size or a function that it cannot have."""
        table = self._export(wasmtime.Table, Kind.TABLE, index)
        size = table.size(self._store)
        more = len(functions) - size
        try:
            if more < 0:
                raise wasmtime.WasmtimeError("it is larger when it is new")
            if more:
                table.grow(self._store, more, None)
        except wasmtime.WasmtimeError as error:
            raise SnapshotError(
                f"table {index} cannot have the snapshot's {len(functions)} elements: {error}"
            ) from error
        for position, function in enumerate(functions):
            if function is None and position >= size:
                continue  # new elements are null
            table.set(self._store, position, self._function(function))

    # ---- References

    @cached_property
    def _indices(self) -> dict[int, int]:
        """The functions that references may name, by what tells them apart."""
        indices = self._program.state.functions
        named = ((index, self._export(wasmtime.Func, Kind.FUNCTION, index)) for index in indices)
        return {wasmtime_c.function_address(self._store, function): index for index, function in named}

    def _index(self, where: str, reference: Any) -> int | None:
        if not isinstance(reference, wasmtime.Func):
            return None
        index = self._indices.get(wasmtime_c.function_address(self._store, reference))
        if index is None:
            raise SnapshotError(f"{where} refers to a function that is not the module's own")
        return index

    def _function(self, index: object) -> wasmtime.Func | None:
        if index is None:
            return None
        if index not in self._program.state.functions:
            raise SnapshotError(f"the snapshot refers to function {index}, which no reference of the program can name")
        assert isinstance(index, int)
        return self._export(wasmtime.Func, Kind.FUNCTION, index)

    def _export(self, kind: type[T], space: Kind, index: int) -> T:
        exported = self._exports[name_of(space, index)]
        assert isinstance(exported, kind)
        return exported
