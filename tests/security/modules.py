"""Binary modules that are small and cost a compiler much."""


def leb128(value: int) -> bytes:
    digits = b""
    while value > 0x7F:
        digits += bytes([value & 0x7F | 0x80])
        value >>= 7
    return digits + bytes([value])


def section(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + leb128(len(content)) + content


HEAD = b"\0asm\1\0\0\0"
ONE_TYPE = section(1, b"\1\x60\0\0")
"""func ()"""


def one_function(code: bytes, locals_: int = 1) -> bytes:
    """A module with one function, which has these i32 locals."""
    body = b"\1" + leb128(locals_) + b"\x7f" + code + b"\x0b"
    return HEAD + ONE_TYPE + section(3, b"\1\0") + section(10, b"\1" + leb128(len(body)) + body)


def loops(count: int, locals_: int) -> bytes:
    """One function of that many loops, each of which reads two locals, writes one and may start again."""

    def loop(i: int) -> bytes:
        reads = b"\x20" + leb128(i * 7919 % locals_) + b"\x20" + leb128(i * 13 % locals_)
        return b"\x03\x40" + reads + b"\x6a\x22" + leb128(i * 31 % locals_) + b"\x0d\0\x0b"

    return one_function(b"".join(map(loop, range(count))), locals_)


def blocks(count: int, locals_: int) -> bytes:
    """One function of that many blocks, which any of its locals may pass changed or unchanged."""

    def block(i: int) -> bytes:
        leave = b"\x20" + leb128(i * 7919 % locals_) + b"\x0d\0"
        return b"\x02\x40" + leave + b"\x20" + leb128(i * 31 % locals_) + b"\x21" + leb128(i * 17 % locals_) + b"\x0b"

    return one_function(b"".join(map(block, range(count))), locals_)


def wide_loops(count: int, width: int) -> bytes:
    """One function of that many loops, each of which takes that many values and gives as many."""
    values = leb128(width) + b"\x7f" * width
    types = section(1, b"\3\x60" + values + values + b"\x60\0" + values + b"\x60\0\0")
    body = b"\0\x10\0" + b"\x03\0\x41\0\x0d\0\x0b" * count + b"\x00\x0b"
    head = HEAD + types + section(2, b"\1\1e\1f\0\1") + section(3, b"\1\2")
    return head + section(10, b"\1" + leb128(len(body)) + body)


def nested(depth: int) -> bytes:
    """One function of loops in loops."""
    return one_function(b"\x03\x40" * depth + b"\x0b" * depth)


def functions(count: int, exports: int = 0) -> bytes:
    """That many empty functions. The first is exported, under that many names."""
    names = (b"%x" % i for i in range(exports))
    exported = b"".join(leb128(len(name)) + name + b"\0\0" for name in names)
    head = HEAD + ONE_TYPE + section(3, leb128(count) + b"\0" * count) + section(7, leb128(exports) + exported)
    return head + section(10, leb128(count) + b"\2\0\x0b" * count)
