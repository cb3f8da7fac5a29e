"""Reads from a SPIR-V module what it asks of its host. Opcodes and decorations as numbered in the specification."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

OP_SOURCE, OP_MEMBER_NAME, OP_ENTRY_POINT, OP_EXECUTION_MODE, OP_CAPABILITY = 3, 6, 15, 16, 17
OP_TYPE_INT, OP_TYPE_FLOAT, OP_TYPE_RUNTIME_ARRAY, OP_TYPE_STRUCT, OP_TYPE_POINTER = 21, 22, 29, 30, 32
OP_VARIABLE, OP_DECORATE, OP_MEMBER_DECORATE = 59, 71, 72
ARRAY_STRIDE, NON_WRITABLE, BINDING, DESCRIPTOR_SET, OFFSET = 6, 24, 33, 34, 35
PUSH_CONSTANT, LOCAL_SIZE = 9, 17


@dataclass
class Module:
    source_language: int | None = None
    entry_point: str = ""
    local_size: tuple[int, ...] = ()
    capabilities: set[int] = field(default_factory=set)
    bindings: dict[tuple[int, int], tuple[int, bool]] = field(default_factory=dict)
    """(set, binding): (bytes of an element, may be written)."""
    params: list[tuple[str, str, int]] = field(default_factory=list)
    """(name, type, offset) of the push constants."""


def parse(code: bytes) -> Module:
    module = Module()
    types, pointers, variables, decorations, members, names = {}, {}, {}, {}, {}, {}
    words = struct.unpack(f"<{len(code) // 4}I", code)
    assert words[0] == 0x07230203
    at = 5
    while at < len(words):
        length, opcode = words[at] >> 16, words[at] & 0xFFFF
        args = words[at + 1 : at + length]
        at += length
        if opcode == OP_SOURCE:
            module.source_language = args[0]
        elif opcode == OP_ENTRY_POINT:
            module.entry_point = _string(args[2:])
        elif opcode == OP_EXECUTION_MODE and args[1] == LOCAL_SIZE:
            module.local_size = args[2:]
        elif opcode == OP_CAPABILITY:
            module.capabilities.add(args[0])
        elif opcode == OP_MEMBER_NAME:
            names[args[0], args[1]] = _string(args[2:])
        elif opcode == OP_DECORATE:
            decorations[args[0], args[1]] = args[2] if len(args) > 2 else True
        elif opcode == OP_MEMBER_DECORATE:
            members[args[0], args[1], args[2]] = args[3] if len(args) > 3 else True
        elif opcode == OP_TYPE_INT:
            types[args[0]] = "i32" if args[2] else "u32"
        elif opcode == OP_TYPE_FLOAT:
            types[args[0]] = f"f{args[1]}"
        elif opcode in (OP_TYPE_STRUCT, OP_TYPE_RUNTIME_ARRAY):
            types[args[0]] = args[1:]
        elif opcode == OP_TYPE_POINTER:
            pointers[args[0]] = args[2]
        elif opcode == OP_VARIABLE:
            variables[args[1]] = (args[0], args[2])
    for variable, (pointer, storage) in variables.items():
        struct_type = pointers[pointer]
        if storage == PUSH_CONSTANT:
            (inner,) = types[struct_type]  # The parameter struct, in a block of its own.
            module.params = [
                (names[inner, i], types[member], members[inner, i, OFFSET]) for i, member in enumerate(types[inner])
            ]
        elif (variable, BINDING) in decorations:
            (array,) = types[struct_type]
            place = decorations[variable, DESCRIPTOR_SET], decorations[variable, BINDING]
            writable = (struct_type, 0, NON_WRITABLE) not in members and (variable, NON_WRITABLE) not in decorations
            module.bindings[place] = (decorations[array, ARRAY_STRIDE], writable)
    return module


def _string(words: tuple[int, ...]) -> str:
    return struct.pack(f"<{len(words)}I", *words).split(b"\0", 1)[0].decode()
