"""What is done to a Metal source before clang compiles it: threadgroup variables, and an entry for each kernel."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

_SPACE = "device|constant|threadgroup|thread"
_VARIABLE = re.compile(r"(?<=[;{}\s])threadgroup\s+([^;=&*]*[\w>])\s+(\w+)((?:\s*\[[^\]]*\])*);")
_KERNEL = re.compile(r"(?:\[\[kernel\]\]|\bkernel)\s+void\s+(\w+)\s*\(")
_ATTRIBUTE = re.compile(r"(.*?)\s*\b\w+\s*\[\[\s*(\w+)\s*(?:\(\s*(\d+)\s*\))?\s*\]\]", re.DOTALL)
_STRUCT = re.compile(r"\bstruct\s+(\w+)")
_SCALAR = r"(?:packed_)?(?:bool|char|half|float|int|long|short|uchar|uint|ulong|ushort)[234]?|atomic_u?int|void"


class SourceError(Exception):
    """Something that Metal refuses, or the shim does not know."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A kernel's name, and the indices of the buffers that it takes."""

    name: str
    buffers: tuple[int, ...]


def translate(source: str) -> tuple[str, list[Signature]]:
    """The source as runtime.cpp needs it, line for line and then entries, and its kernels. Raises SourceError.

    ``threadgroup T name;`` has no equal in a plain function of OpenCL, and becomes a reference to memory that the
    runtime provides and watches. Each kernel gets an entry of one type, which gives it its buffers and its position.
    """
    _check_pointers(source)
    numbers = itertools.count()
    body = _VARIABLE.sub(
        lambda match: match.expand(
            r"typedef \1 \2_variable\3; threadgroup \2_variable& \2 = "
            rf"*threadgroup_variable<\2_variable>({next(numbers)});"
        ),
        source,
    )
    kernels = [_entry(body, match) for match in _KERNEL.finditer(body)]
    text = "\n".join(['#line 1 "program_source"', body, '#line 1 "entries"', *(entry for _, entry in kernels), ""])
    return text, [signature for signature, _ in kernels]


def _check_pointers(source: str) -> None:
    """Metal wants an address space with every pointer; C++ for OpenCL would take one to memory of any."""
    types = "|".join([_SCALAR, *_STRUCT.findall(source)])
    for match in re.finditer(rf"\b(?:({_SPACE})\s+)?(?:const\s+)?(?:{types})\s*[*&](?=\s*\w)", source):
        if not match[1]:
            line = source.count("\n", 0, match.start()) + 1
            raise SourceError(f"program_source:{line}: error: pointer type must have explicit address space qualifier")


def _entry(source: str, kernel: re.Match[str]) -> tuple[Signature, str]:
    name, buffers, arguments = kernel[1], [], []
    for parameter in _split(source, kernel.end()):
        match = _ATTRIBUTE.fullmatch(parameter.strip())
        if match is None:
            raise SourceError(f"program_source: error: parameter {parameter.strip()!r} of {name} has no attribute")
        kind, attribute, index = match.groups()
        if attribute == "buffer":
            buffers.append(int(index))
            pointer = f"({kind.replace('&', '*')})addresses[{index}]"
            arguments.append(f"*{pointer}" if "&" in kind else pointer)
        else:
            arguments.append(f"metal::Argument<{kind}>::of(position->{attribute})")
    entry = (
        f'extern "C" void shim_kernel_{name}(const ulong thread* addresses, const metal::Position thread* position) '
        f"{{ {name}({', '.join(arguments)}); }}"
    )
    return Signature(name, tuple(buffers)), entry


def _split(source: str, begin: int) -> list[str]:
    """The parameters that begin there, up to the closing parenthesis."""
    depth, parts = 0, [""]
    for character in source[begin:]:
        depth += (character in "([<") - (character in ")]>")
        if depth < 0:
            break
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]
