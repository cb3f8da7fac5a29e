"""What the code of a module does to tables and segments: a scan of its instructions.

Most instructions are an opcode and immediates of fixed form, and runs of these are matched by one regular expression,
at C speed. Its alternatives begin with different bytes, so that no byte is tried twice. The opcodes are those of
https://webassembly.github.io/spec/core/binary/instructions.html: with SIMD and relaxed SIMD, tail calls, and several
memories.
"""

from __future__ import annotations

import re

from wasmetal.actor.wasm_binary import LEB, Reader
from wasmetal.errors import GuestError

_MEMARG = rb"(?:[\x00-\x3f]|[\x80-\xbf]" + LEB + rb"|[\x40-\x7f]" + LEB + rb"|[\xc0-\xff]" + LEB + LEB + rb")" + LEB
"""Alignment, in which bit 6 says that a memory's index follows; and offset."""
_FEW = 16
_BR_TABLES = b"|".join(re.escape(bytes([count])) + LEB * (count + 1) for count in range(_FEW))
"""The immediates of a br_table with few labels."""
_HARMLESS = (
    # blocks, branches, calls, locals, globals, table.get, memory.size and grow, integers, ref.null and ref.func
    rb"[\x02-\x04\x0c\x0d\x10\x12\x20-\x25\x3f-\x42\xd0\xd2]" + LEB
    # what has no immediates: control, parametric, comparisons and arithmetic, ref.is_null
    + rb"|[\x00\x01\x05\x0b\x0f\x1a\x1b\x45-\xc4\xd1]"
    + rb"|[\x28-\x3e]" + _MEMARG
    + rb"|[\x11\x13]" + LEB + LEB  # indirect calls
    + rb"|\x0e(?:" + _BR_TABLES + rb")"
    + rb"|\x43.{4}|\x44.{8}"
    + rb"|\xfd(?:[\x00-\x0b\x5c\x5d]" + _MEMARG
    + rb"|[\x0c\x0d].{16}"  # v128.const, i8x16.shuffle
    + rb"|[\x15-\x22]."  # lanes
    + rb"|[\x54-\x5b]" + _MEMARG + rb"."
    + rb"|[\x0e-\x14\x23-\x53\x5e-\x7f]|[\x80-\xff]\x01|[\x80-\x93]\x02)"
    # saturating conversions; memory.init and copy; memory.fill and table.size
    + rb"|\xfc(?:[\x00-\x07]|[\x08\x0a]" + LEB + LEB + rb"|[\x0b\x10]" + LEB
)  # fmt: skip
_CHANGES = rb"|[\x0c\x0e]" + LEB + LEB + rb"|[\x0f\x11]" + LEB + rb")|\x26" + LEB
"""After the prefix 0xfc, table.init and copy, grow and fill; and table.set."""
_RUN = re.compile(rb"(?:%b)){1,4096}" % _HARMLESS, re.DOTALL)
"""A run of instructions that change no table and drop no segment."""
_CHANGING_RUN = re.compile(rb"(?:%b%b){1,4096}" % (_HARMLESS, _CHANGES), re.DOTALL)
"""A run of instructions that drop no segment."""
_BR_TABLE, _SELECT_TYPES, _PREFIX = 0x0E, 0x1C, 0xFC
_DROPS = {0x09: "data.drop", 0x0D: "elem.drop"}


def changes_tables(body: Reader) -> bool:
    """Whether a function's instructions may change a table.

    ``body`` is at the first of them, and is read to its end. Raises GuestError for an instruction that is not known,
    and for one that drops a segment: nobody could tell from an instance that this was done.
    """
    run = _RUN
    while body.more:
        if matched := run.match(body.code, body.position, body.end):
            body.position = matched.end()
        elif body.code[body.position] in (_BR_TABLE, _SELECT_TYPES):
            opcode = body.byte()
            body.integers(body.u32() + (opcode == _BR_TABLE))
        elif run is _RUN and _CHANGING_RUN.match(body.code, body.position, body.end):
            run = _CHANGING_RUN
        else:
            raise _unknown(body)
    return run is _CHANGING_RUN


def _unknown(body: Reader) -> GuestError:
    """The error about the instruction that comes next."""
    opcode = body.byte()
    second = body.byte() if body.more else 0
    if opcode == _PREFIX and second in _DROPS:
        return body.error(f"{_DROPS[second]} in the code: an actor must not drop segments, which no snapshot records")
    return body.error(f"the instruction {opcode:#04x} {second:#04x} is not known, or ends early")
