"""What the code of a module does to tables and segments: a scan of its instructions.

Most instructions are an opcode and immediates of fixed form, and runs of these are matched by one regular expression,
at C speed. Its alternatives begin with different bytes, so that no byte is tried twice. The opcodes are those of
https://webassembly.github.io/spec/core/binary/instructions.html: with SIMD and relaxed SIMD, tail calls, and several
memories.
"""

from __future__ import annotations

import re

from wasmetal.actor.wasm_binary import Reader

_LEB = rb"[\x80-\xff]*[\x00-\x7f]"
_MEMARG = (
    rb"(?:[\x00-\x3f]|[\x80-\xbf]" + _LEB + rb"|[\x40-\x7f]" + _LEB + rb"|[\xc0-\xff]" + _LEB + _LEB + rb")" + _LEB
)
"""Alignment, in which bit 6 says that a memory's index follows; and offset."""
_RUN = re.compile(
    rb"(?:"
    # blocks, branches, calls, locals, globals, table.get, memory.size and grow, integers, ref.null and ref.func
    + rb"[\x02-\x04\x0c\x0d\x10\x12\x20-\x25\x3f-\x42\xd0\xd2]" + _LEB
    # what has no immediates: control, parametric, comparisons and arithmetic, ref.is_null
    + rb"|[\x00\x01\x05\x0b\x0f\x1a\x1b\x45-\xc4\xd1]"
    + rb"|[\x28-\x3e]" + _MEMARG
    + rb"|[\x11\x13]" + _LEB + _LEB  # indirect calls
    + rb"|\x43.{4}|\x44.{8}"
    # saturating conversions; memory.init and copy; memory.fill and table.size
    + rb"|\xfc(?:[\x00-\x07]|[\x08\x0a]" + _LEB + _LEB + rb"|[\x0b\x10]" + _LEB + rb")"
    + rb"|\xfd(?:[\x00-\x0b\x5c\x5d]" + _MEMARG
    + rb"|[\x0c\x0d].{16}"  # v128.const, i8x16.shuffle
    + rb"|[\x15-\x22]."  # lanes
    + rb"|[\x54-\x5b]" + _MEMARG + rb"."
    + rb"|[\x0e-\x14\x23-\x53\x5e-\x7f]|[\x80-\xff]\x01|[\x80-\x93]\x02)"
    + rb"){1,4096}",
    re.DOTALL,
)  # fmt: skip
"""A run of instructions that change no table and drop no segment."""
_BR_TABLE, _SELECT_TYPES, _TABLE_SET, _PREFIX = 0x0E, 0x1C, 0x26, 0xFC
_CHANGES = {0x0C: 2, 0x0E: 2, 0x0F: 1, 0x11: 1}
"""Of the opcodes with that prefix, table.init, copy, grow and fill, and how many integers follow each."""
_DROPS = {0x09: "data.drop", 0x0D: "elem.drop"}


def changes_tables(body: Reader) -> bool:
    """Whether a function's instructions may change a table.

    ``body`` is at the first of them, and is read to its end. Raises GuestError for an instruction that is not known,
    and for one that drops a segment: nobody could tell from an instance that this was done.
    """
    changes = False
    while body.more:
        if run := _RUN.match(body.code, body.position, body.end):
            body.position = run.end()
            continue
        match body.byte():
            case opcode if opcode in (_BR_TABLE, _SELECT_TYPES):
                for _ in range(body.u32() + (opcode == _BR_TABLE)):
                    body.u32()
            case opcode if opcode == _TABLE_SET:
                body.u32()
                changes = True
            case opcode:
                second = body.byte() if opcode == _PREFIX else 0
                if second in _DROPS:
                    raise body.error(
                        f"{_DROPS[second]} in the code: an actor must not drop segments, which no snapshot records"
                    )
                if opcode != _PREFIX or second not in _CHANGES:
                    raise body.error(f"the instruction {opcode:#04x} {second:#04x} is not known")
                for _ in range(_CHANGES[second]):
                    body.u32()
                changes = True
    return changes
