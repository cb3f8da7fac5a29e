"""Reading WebAssembly's binary format, strictly: https://webassembly.github.io/spec/core/binary/modules.html.

The bytes are hostile: whatever they are, a :class:`Reader` reads no further than they go, and raises GuestError.
"""

from __future__ import annotations

import re
from enum import IntEnum

from wasmetal.errors import GuestError, printable


class Kind(IntEnum):
    """What imports, exports and index spaces hold."""

    FUNCTION = 0
    TABLE = 1
    MEMORY = 2
    GLOBAL = 3


class ValueType(IntEnum):
    """The types of values."""

    I32 = 0x7F
    I64 = 0x7E
    F32 = 0x7D
    F64 = 0x7C
    V128 = 0x7B
    FUNCREF = 0x70
    EXTERNREF = 0x6F


class Reader:
    """Reads a range of bytes from the front."""

    def __init__(self, code: bytes, position: int, end: int) -> None:
        self.code = code
        self.position = position
        self.end = end

    @property
    def more(self) -> bool:
        """Whether bytes are left."""
        return self.position < self.end

    def error(self, what: str) -> GuestError:
        """An error at this place."""
        return GuestError(f"the module is malformed at byte {self.position}: {printable(what)}")

    def byte(self) -> int:
        """One byte."""
        self.skip(1)
        return self.code[self.position - 1]

    def skip(self, nbytes: int) -> None:
        """So many bytes."""
        if nbytes > self.end - self.position:
            raise self.error("it ends early")
        self.position += nbytes

    def take(self, nbytes: int) -> bytes:
        """So many bytes."""
        self.skip(nbytes)
        return self.code[self.position - nbytes : self.position]

    def u32(self) -> int:
        """An unsigned integer of 32 bits in LEB128."""
        return self._unsigned(32)

    def u64(self) -> int:
        """An unsigned integer of 64 bits in LEB128."""
        return self._unsigned(64)

    def signed(self, bits: int) -> None:
        """A signed integer in LEB128, whose value is not wanted."""
        for _ in range(-(-bits // 7)):
            if self.byte() < 0x80:
                return
        raise self.error("an integer is too long")

    def integers(self, count: int) -> None:
        """So many integers in LEB128, whose values are not wanted."""
        self._many(_INTEGERS, count)

    def locals(self, count: int) -> None:
        """So many declarations of local variables: how many, and their type."""
        self._many(_LOCALS, count)

    def name(self) -> str:
        """A name."""
        try:
            return self.take(self.u32()).decode()
        except UnicodeDecodeError:
            raise self.error("a name is not UTF-8") from None

    def value_type(self) -> ValueType:
        """A value's type."""
        number = self.byte()
        if number not in _VALUE_TYPES:
            raise self.error(f"value type {number:#x} is not known")
        return ValueType(number)

    def reference_type(self) -> ValueType:
        """The type of a table's elements."""
        kind = self.value_type()
        if kind not in (ValueType.FUNCREF, ValueType.EXTERNREF):
            raise self.error(f"a table of {kind.name}")
        return kind

    def limits(self) -> None:
        """The limits of a table or memory, which are not wanted."""
        flags = self.byte()
        if flags & ~0b101:  # with a maximum; with 64-bit addresses
            raise self.error(f"limits with flags {flags:#x}")
        for _ in range(1 + (flags & 1)):
            self.u64()

    def end_section(self) -> None:
        """Raise if bytes are left."""
        if self.more:
            raise self.error("a section is longer than what it holds")

    def _many(self, patterns: list[tuple[int, re.Pattern[bytes]]], count: int) -> None:
        for size, pattern in patterns:
            while count >= size:
                matched = pattern.match(self.code, self.position, self.end)
                if matched is None:
                    raise self.error("it ends early, or a value type is not known")
                self.position = matched.end()
                count -= size

    def _unsigned(self, bits: int) -> int:
        value = 0
        for shift in range(0, bits, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> bits:
                    break
                return value
        raise self.error("an integer is too large")


LEB = rb"[\x80-\xff]*[\x00-\x7f]"
"""An integer in LEB128, as a regular expression."""
_VALUE_TYPES = frozenset(ValueType)


def _repeated(pattern: bytes) -> list[tuple[int, re.Pattern[bytes]]]:
    """What matches so many of them at a time, from many to one."""
    return [(size, re.compile(rb"(?:%b){%d}" % (pattern, size), re.DOTALL)) for size in (4096, 128, 8, 1)]


_INTEGERS = _repeated(LEB)
_LOCALS = _repeated(LEB + b"[" + re.escape(bytes(_VALUE_TYPES)) + b"]")


def leb(value: int) -> bytes:
    """An unsigned integer in LEB128."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
