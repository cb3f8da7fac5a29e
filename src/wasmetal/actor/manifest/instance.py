"""The state of an instance of the program: memories, globals, tables."""

# ruff: noqa: D102

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from wasmetal.actor.json_fields import Fields, check, hexadecimal, integer, optional
from wasmetal.actor.manifest.chunks import Chunk, Pieces
from wasmetal.actor.memory_image import PAGE
from wasmetal.actor.wasm_binary import ValueType

NULL = 0xFFFFFFFF
"""In the chunk of a table: no function."""
VALUE_BYTES = {ValueType.I32: 4, ValueType.I64: 8, ValueType.F32: 4, ValueType.F64: 8, ValueType.V128: 16}
"""Of a global that is no reference."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A linear memory: the pages that differ from the program's initial image."""

    pages: int
    """Its size, in pages of 64 KiB."""
    content: Pieces

    def to_json(self) -> dict[str, Any]:
        return {"pages": self.pages, "content": self.content.to_json()}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        pages = fields.take("pages", integer, 0, 1 << 47)
        memory = cls(pages, fields.take("content", Pieces.from_json, pages * PAGE, PAGE))
        fields.end()
        return memory


@dataclass(frozen=True, slots=True)
class Global:
    """A mutable global."""

    index: int
    kind: ValueType
    value: str | int | None
    """Its bytes, in hexadecimal; of a reference, the function's index, or None for null."""

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "type": self.kind.name, "value": self.value}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        index = fields.take("index", integer, 0, 1 << 32)
        kind = fields.take("type", _value_type)
        if kind in VALUE_BYTES:
            held: str | int | None = fields.take("value", hexadecimal, VALUE_BYTES[kind])
        else:
            held = fields.take("value", optional, integer, 0, (1 << 32) - 1)
            check(f"{what}.value", held is None or kind is ValueType.FUNCREF, held)
        fields.end()
        return cls(index, kind, held)


@dataclass(frozen=True, slots=True)
class Table:
    """A table that the program's code may change."""

    index: int
    size: int
    functions: Chunk | None
    """An index of a function for each element, 32 bits, little-endian; all bits set: null. None: all are null."""

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "size": self.size, "functions": self.functions and self.functions.to_json()}

    @classmethod
    def from_json(cls, what: str, value: object) -> Self:
        fields = Fields(what, value)
        index = fields.take("index", integer, 0, 1 << 32)
        size = fields.take("size", integer, 0, 1 << 20)
        functions = fields.take("functions", optional, Chunk.from_json)
        check(f"{what}.functions", functions is None or functions.size == 4 * size, functions)
        fields.end()
        return cls(index, size, functions)


def _value_type(what: str, value: object) -> ValueType:
    check(what, isinstance(value, str) and value in ValueType.__members__, value)
    return ValueType[value]  # type: ignore[misc]
