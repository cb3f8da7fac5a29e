"""The sections of a binary module or component, as their headers describe them.

https://webassembly.github.io/spec/core/binary/modules.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wasmetal.errors import GuestError

MAX_ITEMS = 1 << 17
"""Functions, types, imports, exports, globals and so on in a module. Yosys, of 65 MiB, has 47,000."""

_CUSTOM, _START, CODE, _DATA_COUNT = 0, 8, 10, 12
_TYPE = 1
_FUNCTION_TYPE = b"\x60"
_ONE_BYTE_TYPES = b"\x6f\x70\x7b\x7c\x7d\x7e\x7f"
"""The value types that are one byte: numbers, vectors, externref and funcref."""
_UNCOUNTED = (_CUSTOM, _START, CODE, _DATA_COUNT)  # functions are counted where they are declared
COMPONENT = b"\0asm\x0d\0\x01\0"
"""How a component begins, in place of a module: https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md"""
_NESTED = (1, 4)
"""Sections of a component that are a module, or a component, themselves."""
_UNCOUNTED_IN_COMPONENTS = (_CUSTOM, *_NESTED)
_MAX_DEPTH = 100
"""Components inside of one another. Wasmtime refuses more than 1000."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section."""

    kind: int
    """Its number in the specification."""
    nbytes: int
    items: int
    """How many functions, types, imports or the like it says it has."""
    content: int
    """Where the first of them begins."""
    begin: int
    """Where the section's contents begin."""


def read(code: bytes) -> Iterator[Section]:
    """The sections of a binary module or component, up to the first that is malformed.

    What is wrong there, the compiler says.
    """
    uncounted = _UNCOUNTED_IN_COMPONENTS if code[:8] == COMPONENT else _UNCOUNTED
    position = 8
    while position < len(code):
        kind = code[position]
        nbytes, position = _integer(code, position + 1)
        items, content = (0, position) if kind in uncounted else _integer(code, position)
        yield Section(kind, nbytes, items, content, position)
        position += nbytes


def check_items(name: str, code: bytes) -> None:
    """Raise GuestError if a binary module, or a component with all in it, has too many parts: each costs memory as long
    as it is loaded."""
    items = _items(name, code)
    if items > MAX_ITEMS:
        raise GuestError(f"{name} has {items} functions, types, imports and so on; at most {MAX_ITEMS} are supported")


def _items(name: str, code: bytes, depth: int = 0) -> int:
    """How many parts a module or component has. Raises GuestError if components are too deep in one another."""
    if depth > _MAX_DEPTH:
        raise GuestError(f"{name} nests components more than {_MAX_DEPTH} deep, which is not supported")
    inside = _NESTED if code[:8] == COMPONENT else ()
    return sum(
        _items(name, code[section.begin : section.begin + section.nbytes], depth + 1)
        if section.kind in inside
        else section.items
        for section in read(code)
    )


def widest_type(code: bytes) -> int | None:
    """The most parameters, or results, of a function type of a binary module; None if there are other types."""
    widest = 0
    for section in read(code):
        position = section.content
        for _ in range(section.items if section.kind == _TYPE else 0):
            if code[position : position + 1] != _FUNCTION_TYPE:
                return None
            position += 1
            for _ in ("parameters", "results"):
                count, position = _integer(code, position)
                if not all(kind in _ONE_BYTE_TYPES for kind in code[position : position + count]):
                    return None
                position += count
                widest = max(widest, count)
    return widest


def _integer(code: bytes, position: int) -> tuple[int, int]:
    """A 32-bit integer in LEB128, and where it ends; what is missing at the end of the module reads as zeros."""
    value = 0
    for shift in range(0, 35, 7):
        byte = code[position] if position < len(code) else 0
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, position
