"""What is done to a Metal source before clang compiles it: threadgroup variables, and an entry for each kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass

_VARIABLE = re.compile(r"^(\s+)threadgroup\s+([^;=&*]*[\w>])\s+(\w+)((?:\s*\[[^\]]*\])*);", re.MULTILINE)
_KERNEL = re.compile(r"(?:\[\[kernel\]\]|\bkernel)\s+void\s+(\w+)\s*\(")
_PARAMETER = re.compile(
    r"(?P<type>.*?)\s*\b\w+\s*\[\[\s*(?P<attribute>\w+)\s*(?:\(\s*(?P<index>\d+)\s*\))?\s*\]\]", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Signature:
    """A kernel's name, and the indices of the buffers that it takes."""

    name: str
    buffers: tuple[int, ...]


def translate(source: str) -> tuple[str, list[Signature]]:
    """The source as runtime.cpp needs it, line for line and then entries, and its kernels.

    ``threadgroup T name;`` has no equal in a plain function of OpenCL, and becomes a reference to memory that the
    runtime provides, poisoned and checked. Each kernel gets an entry of one type, that reads its built-in arguments.
    """
    body = _VARIABLE.sub(
        r"\1typedef \2 \3_variable\4; threadgroup \3_variable& \3 = *threadgroup_variable<\3_variable>();", source
    )
    kernels = [_entry(body, match) for match in _KERNEL.finditer(body)]
    text = "\n".join(['#line 1 "program_source"', body, '#line 1 "entries"', *(entry for _, entry in kernels), ""])
    return text, [signature for signature, _ in kernels]


def _entry(source: str, kernel: re.Match[str]) -> tuple[Signature, str]:
    name, buffers, arguments = kernel[1], [], []
    for parameter in _split(source, kernel.end()):
        match = _PARAMETER.fullmatch(parameter.strip())
        if match is None:
            raise ValueError(f"{name}: parameter {parameter.strip()!r} has no attribute")
        kind, attribute = match["type"], match["attribute"]
        if attribute == "buffer":
            buffers.append(int(match["index"]))
            pointer = f"({kind.replace('&', '*')})addresses[{match['index']}]"
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
            return [part for part in parts if part.strip()]
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return []
